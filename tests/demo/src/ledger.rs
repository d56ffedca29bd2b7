//! The gateway's ledger, read while the gateway runs.

use std::path::Path;

use rusqlite::types::Value as Cell;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::outcome::Outcome;

/// The ledger, open for reading.
pub(crate) struct Ledger {
    connection: Connection,
}

/// The row of one request.
pub(crate) struct Row {
    pub(crate) credential: String,
    pub(crate) status: i64,
    pub(crate) end: String,
    pub(crate) attempts: u64,
}

/// The sums over all rows.
pub(crate) struct Totals {
    pub(crate) rows: i64,
    pub(crate) unpriced: i64,
    pub(crate) cost_nanousd: i64,
}

impl Ledger {
    /// Opens the database file for reading.
    pub(crate) fn open(path: &Path) -> Outcome<Self> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map_err(|error| format!("ledger {}: {error}", path.display()))?;
        Ok(Ledger { connection })
    }

    /// Returns the row of the response with this id. It exists as soon as a client has the whole
    /// response.
    pub(crate) fn row_of(&self, response_id: &str) -> Outcome<Row> {
        let select =
            r#"SELECT credential, status, "end", attempts FROM usage WHERE response_id = ?1"#;
        let row = self.connection.query_row(select, [response_id], |row| {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get::<_, Cell>(3)?,
            ))
        });
        let (credential, status, end, attempts) =
            row.map_err(|error| format!("ledger: the row of response {response_id}: {error}"))?;
        Ok(Row {
            credential,
            status,
            end,
            attempts: attempt_count(&attempts)?,
        })
    }

    /// Returns the sums over all rows.
    pub(crate) fn totals(&self) -> Outcome<Totals> {
        let select = "SELECT count(*), count(*) FILTER (WHERE cost_nanousd IS NULL OR unpriced_reason IS NOT NULL), \
                      coalesce(sum(cost_nanousd), 0) FROM usage";
        let totals = self.connection.query_row(select, [], |row| {
            Ok(Totals {
                rows: row.get(0)?,
                unpriced: row.get(1)?,
                cost_nanousd: row.get(2)?,
            })
        });
        totals.map_err(|error| format!("ledger: the sums over all rows: {error}"))
    }
}

/// The column is a count, or a JSON list with an entry for each attempt.
fn attempt_count(cell: &Cell) -> Outcome<u64> {
    let count = match cell {
        Cell::Integer(count) => u64::try_from(*count).ok(),
        Cell::Text(text) => match serde_json::from_str(text) {
            Ok(Value::Array(attempts)) => Some(attempts.len() as u64),
            Ok(Value::Number(count)) => count.as_u64(),
            Ok(_) | Err(_) => None,
        },
        Cell::Null | Cell::Real(_) | Cell::Blob(_) => None,
    };
    count
        .ok_or_else(|| format!("ledger: attempts: expected a count or a JSON list, found {cell:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_read_as_a_count_and_as_a_list() {
        assert_eq!(attempt_count(&Cell::Integer(2)), Ok(2));
        assert_eq!(
            attempt_count(&Cell::Text(
                r#"[{"credential":"a"},{"credential":"b"}]"#.to_owned()
            )),
            Ok(2)
        );
        assert!(attempt_count(&Cell::Null).is_err());
    }
}
