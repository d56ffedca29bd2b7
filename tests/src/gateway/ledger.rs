//! The ledger, read from its file while the gateway runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OpenFlags};

/// A row of the ledger, by column name.
#[derive(Debug, Clone)]
pub struct Row {
    columns: BTreeMap<String, Sql>,
}

impl Row {
    /// Returns a column's text, or `None` if it is NULL.
    ///
    /// # Panics
    /// Panics if there is no such column, or it is a number.
    pub fn text(&self, column: &str) -> Option<&str> {
        match &self.columns[column] {
            Sql::Null => None,
            Sql::Text(text) => Some(text),
            other => panic!("{column}: {other:?} is no text"),
        }
    }

    /// Returns a column's number, or `None` if it is NULL.
    ///
    /// # Panics
    /// Panics if there is no such column, or it is not an integer.
    pub fn number(&self, column: &str) -> Option<i64> {
        match &self.columns[column] {
            Sql::Null => None,
            Sql::Integer(number) => Some(*number),
            other => panic!("{column}: {other:?} is no integer"),
        }
    }

    /// Returns the attempts: credential and outcome of each.
    pub fn attempts(&self) -> Vec<(String, String)> {
        let list: serde_json::Value =
            serde_json::from_str(self.text("attempts").expect("never NULL"))
                .expect("attempts are JSON");
        let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
        list.as_array()
            .expect("a list")
            .iter()
            .map(|attempt| (text(&attempt["credential"]), text(&attempt["outcome"])))
            .collect()
    }

    /// Returns all columns, by name: a number, a text, or null.
    pub fn columns(&self) -> impl Iterator<Item = (&str, serde_json::Value)> {
        let value = |column: &Sql| match column {
            Sql::Null => serde_json::Value::Null,
            Sql::Integer(number) => (*number).into(),
            Sql::Text(text) => text.as_str().into(),
            other => panic!("{other:?} is of no type that the ledger has"),
        };
        self.columns
            .iter()
            .map(move |(name, column)| (name.as_str(), value(column)))
    }

    /// Returns everything in it as text, to search it for what must not be there.
    pub fn everything(&self) -> String {
        format!("{:?}", self.columns)
    }
}

/// Returns all rows of the ledger at `path`, in order; none if there is no ledger yet.
pub fn rows(path: &Path) -> Vec<Row> {
    let Ok(connection) = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY) else {
        return Vec::new();
    };
    connection
        .busy_timeout(Duration::from_secs(5))
        .expect("a timeout can be set");
    let Ok(mut query) = connection.prepare("SELECT * FROM usage ORDER BY id") else {
        return Vec::new();
    };
    let names: Vec<String> = query.column_names().map(str::to_owned).collect();
    let rows = query.query_map([], |row| {
        let columns = names
            .iter()
            .enumerate()
            .map(|(place, name)| Ok((name.clone(), row.get(place)?)));
        Ok(Row {
            columns: columns.collect::<rusqlite::Result<_>>()?,
        })
    });
    rows.expect("the ledger can be read")
        .map(|row| row.expect("a row"))
        .collect()
}

/// Waits until the ledger at `path` has `count` rows, for at most ten seconds. Returns them.
///
/// # Panics
/// Panics if it has fewer by then, or more.
pub async fn wait_for_rows(path: &Path, count: usize) -> Vec<Row> {
    let begun = Instant::now();
    loop {
        let found = rows(path);
        assert!(
            found.len() <= count,
            "{} rows, expected {count}: {found:#?}",
            found.len()
        );
        if found.len() == count {
            return found;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{} rows, expected {count}: {found:#?}",
            found.len()
        );
        // Another process may write it, so the file is the only signal.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Returns the status and the end of each row.
///
/// # Panics
/// Panics if a row has none.
pub fn ends(rows: &[Row]) -> Vec<(i64, &str)> {
    rows.iter()
        .map(|row| {
            let status = row.number("status").expect("a status");
            (status, row.text("end").expect("an end"))
        })
        .collect()
}
