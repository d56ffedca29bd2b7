//! Reads of the ledger: sums for the command line, and rows for the usage files.

use std::path::{Path, PathBuf};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Map, Value};

use super::file::{self, LedgerError};
use crate::values::exchange::money::NanoUsd;

/// What the sums are grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageGrouping {
    /// The user, by name.
    User,
    /// The model that answered.
    Model,
    /// The credential that responded, by tag.
    Credential,
    /// The day on which the request began, in local time.
    Day,
}

impl UsageGrouping {
    fn column(self) -> &'static str {
        match self {
            Self::User => "coalesce(user, '-')",
            Self::Model => "coalesce(model, '-')",
            Self::Credential => "coalesce(credential, '-')",
            Self::Day => "date(started_at / 1000, 'unixepoch', 'localtime')",
        }
    }
}

/// The sums of a group of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageSummary {
    /// The user, model, credential or day; `-` if the rows have none.
    pub name: String,
    /// The number of requests.
    pub requests: u64,
    /// Requests whose end is not `complete`.
    pub not_complete: u64,
    /// Input tokens, including the cached ones.
    pub input: u64,
    /// Input tokens that were read from a prompt cache.
    pub cached: u64,
    /// Output tokens, including those for reasoning.
    pub output: u64,
    /// Output tokens for reasoning.
    pub reasoning: u64,
    /// The cost of the priced requests.
    pub cost: NanoUsd,
    /// Requests with usage but without a price.
    pub unpriced: u64,
}

/// The columns of a row that a usage file needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageFileRow {
    /// The number of the row, which grows with each commit.
    pub id: u64,
    /// The model that answered.
    pub model: String,
    /// The service tier as upstream names it.
    pub service_tier: String,
    /// The context window of the price; none without a price.
    pub context_window: Option<u64>,
    /// The start of the credential's week, in Unix seconds.
    pub week_start_unix: Option<u64>,
    /// The user's name, if the service has users.
    pub user: Option<String>,
    /// 1, or 0 for the warm-up of a WebSocket, which is not a request.
    pub requests: u64,
    /// Input tokens, including the cached ones.
    pub input: u64,
    /// Input tokens that were read from a prompt cache.
    pub cached: u64,
    /// Output tokens of the response.
    pub output: u64,
    /// The cost; 0 without a price.
    pub cost: NanoUsd,
}

/// Which rows a usage file contains, now and before: the process may be killed between saving this
/// and replacing the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageFileState {
    /// The last row in the file.
    pub through: u64,
    /// The file's SHA-256; none if it has not been written.
    pub digest: Option<String>,
    /// The last row in the previous file.
    pub through_before: u64,
    /// The SHA-256 of the previous file.
    pub digest_before: Option<String>,
}

/// A connection that only reads the ledger.
#[derive(Debug)]
pub struct LedgerReader {
    connection: Connection,
    path: PathBuf,
}

impl LedgerReader {
    /// Opens the ledger at `path`.
    ///
    /// # Errors
    /// The file is missing or not a ledger.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        Ok(Self {
            connection: file::open_to_read(path)?,
            path: path.to_owned(),
        })
    }

    /// Opens the ledger at `path`, which this process has open for writing.
    pub(super) fn open_checked(path: &Path) -> Result<Self, LedgerError> {
        Ok(Self {
            connection: file::open_checked(path)?,
            path: path.to_owned(),
        })
    }

    /// Runs `query`, and names the file in its error.
    pub(super) fn read<T>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, LedgerError> {
        query(&self.connection).map_err(LedgerError::sqlite(&self.path))
    }

    /// Returns the sums of all rows, grouped.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn summary(&self, by: UsageGrouping) -> Result<Vec<UsageSummary>, LedgerError> {
        self.read(|connection| summary(connection, by))
    }

    /// Returns the first `rows_max` rows of a credential after row `after` that used tokens.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn rows_after(
        &self,
        after: u64,
        service: &str,
        credential: &str,
        rows_max: u32,
    ) -> Result<Vec<UsageFileRow>, LedgerError> {
        self.read(|connection| rows_after(connection, after, service, credential, rows_max))
    }

    /// Returns the columns of a request's row by their names.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn row(&self, request_id: &str) -> Result<Option<Map<String, Value>>, LedgerError> {
        self.read(|connection| row(connection, request_id))
    }

    /// Returns the number of the last row, 0 if there is none.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn last_row(&self) -> Result<u64, LedgerError> {
        self.read(|connection| {
            connection.query_row("SELECT coalesce(max(id), 0) FROM usage", [], |row| {
                row.get(0).map(unsigned)
            })
        })
    }

    /// Returns which rows the usage file at `path` contains, if one was written.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn usage_file(&self, path: &str) -> Result<Option<UsageFileState>, LedgerError> {
        self.read(|connection| usage_file(connection, path))
    }
}

fn summary(connection: &Connection, by: UsageGrouping) -> rusqlite::Result<Vec<UsageSummary>> {
    let sql = format!(
        "SELECT {column} AS name, count(*), sum(end <> 'complete'), sum(coalesce(input_tokens, 0)),
            sum(coalesce(cached_tokens, 0)), sum(coalesce(output_tokens, 0)), sum(coalesce(reasoning_tokens, 0)),
            sum(coalesce(cost_nanousd, 0)), sum(unpriced_reason IS NOT NULL)
        FROM usage GROUP BY name ORDER BY {order}",
        column = by.column(),
        order = if by == UsageGrouping::Day { "name" } else { "sum(coalesce(cost_nanousd, 0)) DESC, name" },
    );
    let mut query = connection.prepare(&sql)?;
    let rows = query.query_map([], |row| {
        Ok(UsageSummary {
            name: row.get(0)?,
            requests: unsigned(row.get(1)?),
            not_complete: unsigned(row.get(2)?),
            input: unsigned(row.get(3)?),
            cached: unsigned(row.get(4)?),
            output: unsigned(row.get(5)?),
            reasoning: unsigned(row.get(6)?),
            cost: NanoUsd(unsigned(row.get(7)?)),
            unpriced: unsigned(row.get(8)?),
        })
    })?;
    rows.collect()
}

fn rows_after(
    connection: &Connection,
    after: u64,
    service: &str,
    credential: &str,
    rows_max: u32,
) -> rusqlite::Result<Vec<UsageFileRow>> {
    let mut query = connection.prepare_cached(
        "SELECT id, coalesce(model, ''), coalesce(service_tier, ''), context_window, week_start_unix, user,
            coalesce(input_tokens, 0), coalesce(cached_tokens, 0), coalesce(output_tokens, 0),
            coalesce(cost_nanousd, 0), prewarm = 0
        FROM usage WHERE id > ?1 AND service = ?2 AND credential = ?3
            AND (input_tokens > 0 OR output_tokens > 0)
        ORDER BY id LIMIT ?4",
    )?;
    let rows = query.query_map(
        params![signed(after), service, credential, rows_max],
        |row| {
            let optional = |column: usize| {
                row.get::<_, Option<i64>>(column)
                    .map(|number| number.map(unsigned))
            };
            Ok(UsageFileRow {
                id: unsigned(row.get(0)?),
                model: row.get(1)?,
                service_tier: row.get(2)?,
                context_window: optional(3)?,
                week_start_unix: optional(4)?,
                user: row.get(5)?,
                requests: unsigned(row.get(10)?),
                input: unsigned(row.get(6)?),
                cached: unsigned(row.get(7)?),
                output: unsigned(row.get(8)?),
                cost: NanoUsd(unsigned(row.get(9)?)),
            })
        },
    )?;
    rows.collect()
}

fn row(connection: &Connection, request_id: &str) -> rusqlite::Result<Option<Map<String, Value>>> {
    let mut query = connection.prepare_cached("SELECT * FROM usage WHERE request_id = ?1")?;
    let names: Vec<String> = query.column_names().map(str::to_owned).collect();
    let row = query.query_row([request_id], |row| {
        let value = |column: usize| -> rusqlite::Result<Value> {
            Ok(match row.get_ref(column)? {
                ValueRef::Null | ValueRef::Blob(_) => Value::Null,
                ValueRef::Integer(number) => number.into(),
                ValueRef::Real(number) => number.into(),
                ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
            })
        };
        names
            .iter()
            .enumerate()
            .map(|(column, name)| Ok((name.clone(), value(column)?)))
            .collect()
    });
    row.optional()
}

fn usage_file(connection: &Connection, path: &str) -> rusqlite::Result<Option<UsageFileState>> {
    let sql =
        "SELECT through, digest, through_before, digest_before FROM usage_view WHERE path = ?1";
    let mut query = connection.prepare_cached(sql)?;
    let state = query.query_row([path], |row| {
        Ok(UsageFileState {
            through: unsigned(row.get(0)?),
            digest: row.get(1)?,
            through_before: unsigned(row.get(2)?),
            digest_before: row.get(3)?,
        })
    });
    state.optional()
}

/// Returns a number of the ledger, which stores no negative ones.
pub(super) fn unsigned(number: i64) -> u64 {
    number.unsigned_abs()
}

/// Returns `number` as SQLite stores it.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
