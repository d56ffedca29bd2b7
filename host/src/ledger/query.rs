//! Reading the ledger: sums for a person, and rows for the usage files.

use std::path::Path;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Map, Value};

use super::file::{self, LedgerError};
use crate::values::money::NanoUsd;

/// What to sum by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The user.
    User,
    /// The model.
    Model,
    /// The credential.
    Credential,
    /// The day on which the request began, in local time.
    Day,
}

impl By {
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
pub struct Summary {
    /// The user, model, credential or day; `-` for none.
    pub name: String,
    /// Requests.
    pub requests: u64,
    /// Requests that ended otherwise than complete.
    pub not_complete: u64,
    /// Input tokens.
    pub input: u64,
    /// Of those, cached.
    pub cached: u64,
    /// Output tokens.
    pub output: u64,
    /// Of those, reasoning.
    pub reasoning: u64,
    /// The cost of what was priced.
    pub cost: NanoUsd,
    /// Requests with usage that was not priced.
    pub unpriced: u64,
}

/// A row as a usage file counts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    /// Its number.
    pub id: u64,
    /// The model.
    pub model: String,
    /// The service tier.
    pub service_tier: String,
    /// The context window; none where it was not priced.
    pub context_window: Option<u64>,
    /// The start of the credential's week.
    pub week_start_unix: Option<u64>,
    /// The user.
    pub user: Option<String>,
    /// Input tokens.
    pub input: u64,
    /// Of those, cached.
    pub cached: u64,
    /// Output tokens.
    pub output: u64,
    /// The cost.
    pub cost: NanoUsd,
}

/// How far a usage file was written, and how far before that: a kill can come between noting and writing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ViewState {
    /// The last row in the file.
    pub through: u64,
    /// The file's SHA-256; none where it has not been written.
    pub digest: Option<String>,
    /// The last row in the file before.
    pub through_before: u64,
    /// The SHA-256 of the file before.
    pub digest_before: Option<String>,
}

/// A connection that reads the ledger.
#[derive(Debug)]
pub struct Reader {
    pub(super) connection: Connection,
}

impl Reader {
    /// # Errors
    /// The file is missing or no ledger.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        Ok(Self {
            connection: file::open_to_read(path)?,
        })
    }

    /// The sums of all rows, grouped.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn summary(&self, by: By) -> rusqlite::Result<Vec<Summary>> {
        let sql = format!(
            "SELECT {column} AS name, count(*), sum(end <> 'complete'), sum(coalesce(input_tokens, 0)),
                sum(coalesce(cached_tokens, 0)), sum(coalesce(output_tokens, 0)), sum(coalesce(reasoning_tokens, 0)),
                sum(coalesce(cost_nanousd, 0)), sum(unpriced_reason IS NOT NULL)
            FROM usage GROUP BY name ORDER BY {order}",
            column = by.column(),
            order = if by == By::Day { "name" } else { "sum(coalesce(cost_nanousd, 0)) DESC, name" },
        );
        let mut query = self.connection.prepare(&sql)?;
        let rows = query.query_map([], |row| {
            Ok(Summary {
                name: row.get(0)?,
                requests: whole(row.get(1)?),
                not_complete: whole(row.get(2)?),
                input: whole(row.get(3)?),
                cached: whole(row.get(4)?),
                output: whole(row.get(5)?),
                reasoning: whole(row.get(6)?),
                cost: NanoUsd(whole(row.get(7)?)),
                unpriced: whole(row.get(8)?),
            })
        })?;
        rows.collect()
    }

    /// The rows with usage of a credential after row `after`, in order, at most `most`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn rows_after(
        &self,
        after: u64,
        service: &str,
        credential: &str,
        most: u32,
    ) -> rusqlite::Result<Vec<UsageRow>> {
        let mut query = self.connection.prepare_cached(
            "SELECT id, coalesce(model, ''), coalesce(service_tier, ''), context_window, week_start_unix, user,
                input_tokens, coalesce(cached_tokens, 0), coalesce(output_tokens, 0), coalesce(cost_nanousd, 0)
            FROM usage WHERE id > ?1 AND service = ?2 AND credential = ?3 AND input_tokens IS NOT NULL
            ORDER BY id LIMIT ?4",
        )?;
        let rows = query.query_map(params![signed(after), service, credential, most], |row| {
            let optional = |column: usize| {
                row.get::<_, Option<i64>>(column)
                    .map(|number| number.map(whole))
            };
            Ok(UsageRow {
                id: whole(row.get(0)?),
                model: row.get(1)?,
                service_tier: row.get(2)?,
                context_window: optional(3)?,
                week_start_unix: optional(4)?,
                user: row.get(5)?,
                input: whole(row.get(6)?),
                cached: whole(row.get(7)?),
                output: whole(row.get(8)?),
                cost: NanoUsd(whole(row.get(9)?)),
            })
        })?;
        rows.collect()
    }

    /// The row of that request: its columns, by their names.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn row(&self, request_id: &str) -> rusqlite::Result<Option<Map<String, Value>>> {
        let mut query = self
            .connection
            .prepare_cached("SELECT * FROM usage WHERE request_id = ?1")?;
        let names: Vec<String> = query.column_names().map(str::to_owned).collect();
        let row = query.query_row([request_id], |row| {
            let value = |place: usize| -> rusqlite::Result<Value> {
                Ok(match row.get_ref(place)? {
                    ValueRef::Null | ValueRef::Blob(_) => Value::Null,
                    ValueRef::Integer(number) => number.into(),
                    ValueRef::Real(number) => number.into(),
                    ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
                })
            };
            names
                .iter()
                .enumerate()
                .map(|(place, name)| Ok((name.clone(), value(place)?)))
                .collect()
        });
        row.optional()
    }

    /// The number of the last row.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn last_row(&self) -> rusqlite::Result<u64> {
        self.connection
            .query_row("SELECT coalesce(max(id), 0) FROM usage", [], |row| {
                row.get(0).map(whole)
            })
    }

    /// How far the usage file at `path` was written; none where it never was.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn view(&self, path: &str) -> rusqlite::Result<Option<ViewState>> {
        let sql =
            "SELECT through, digest, through_before, digest_before FROM usage_view WHERE path = ?1";
        let mut query = self.connection.prepare_cached(sql)?;
        let view = query.query_row([path], |row| {
            Ok(ViewState {
                through: whole(row.get(0)?),
                digest: row.get(1)?,
                through_before: whole(row.get(2)?),
                digest_before: row.get(3)?,
            })
        });
        view.optional()
    }
}

pub(super) fn whole(number: i64) -> u64 {
    number.unsigned_abs()
}

pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
