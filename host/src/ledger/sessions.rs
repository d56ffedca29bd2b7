//! The home of each session, stored with a row in its commit, and read once after a restart.

use rusqlite::{Connection, Transaction, params};

use super::file::LedgerError;
use super::query::{LedgerReader, signed, unsigned};
use crate::values::clock::Timestamp;
use crate::values::exchange::LedgerRow;

/// A session and the credential that is its home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSession {
    /// The tag of the service that the session belongs to.
    pub service: String,
    /// The tag of the pool that chose the credential.
    pub pool: String,
    /// The user's name; empty if the service has no users.
    pub user: String,
    /// The key that the client identified its session by.
    pub session: String,
    /// The tag of the credential, which may have left the configuration since.
    pub credential: String,
    /// Its last stored use.
    pub used_at: Timestamp,
}

/// The credential that issued a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseIssuer {
    /// The tag of the service that the session belongs to.
    pub service: String,
    /// The user's name; empty if the service has no users.
    pub user: String,
    /// The id that upstream gave the response.
    pub response_id: String,
    /// The tag of the credential, which may have left the configuration since.
    pub credential: String,
    /// When the response was issued.
    pub issued_at: Timestamp,
}

const STORE: &str = "INSERT INTO session_home (service, pool, user, session, credential, used_at)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (service, pool, user, session) DO UPDATE SET credential = ?5, used_at = ?6";

/// Stores the home of the row's session, if the row has a new one.
pub(super) fn store(transaction: &Transaction<'_>, row: &LedgerRow) -> rusqlite::Result<()> {
    let (Some(home), Some(session)) = (&row.home, &row.session) else {
        return Ok(());
    };
    let user = row.user.as_deref().unwrap_or_default();
    let used_at = signed(row.finished_at.0);
    transaction.prepare_cached(STORE)?.execute(params![
        row.service,
        home.pool,
        user,
        session,
        home.credential,
        used_at
    ])?;
    Ok(())
}

/// Deletes the sessions that were not used since `time`.
pub(super) fn delete_unused_since(
    connection: &Connection,
    time: Timestamp,
) -> rusqlite::Result<()> {
    connection
        .execute(
            "DELETE FROM session_home WHERE used_at < ?1",
            [signed(time.0)],
        )
        .map(drop)
}

impl LedgerReader {
    /// Returns the `sessions_max` sessions that were used last, in the order of their use.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn sessions(&self, sessions_max: u64) -> Result<Vec<StoredSession>, LedgerError> {
        self.read(|connection| sessions(connection, sessions_max))
    }

    /// Returns the issuers of the responses in the last `rows_max` rows that ended since `begin`,
    /// the oldest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn issuers(
        &self,
        begin: Timestamp,
        rows_max: u64,
    ) -> Result<Vec<ResponseIssuer>, LedgerError> {
        self.read(|connection| issuers(connection, begin, rows_max))
    }
}

fn sessions(connection: &Connection, sessions_max: u64) -> rusqlite::Result<Vec<StoredSession>> {
    let sql = "SELECT service, pool, user, session, credential, used_at FROM session_home
        ORDER BY used_at DESC LIMIT ?1";
    let mut query = connection.prepare(sql)?;
    let rows = query.query_map([signed(sessions_max)], |row| {
        Ok(StoredSession {
            service: row.get(0)?,
            pool: row.get(1)?,
            user: row.get(2)?,
            session: row.get(3)?,
            credential: row.get(4)?,
            used_at: Timestamp(unsigned(row.get(5)?)),
        })
    })?;
    oldest_first(rows)
}

fn issuers(
    connection: &Connection,
    begin: Timestamp,
    rows_max: u64,
) -> rusqlite::Result<Vec<ResponseIssuer>> {
    // By number, from the end: times are not indexed, and only the last rows count.
    let sql = "SELECT service, coalesce(user, ''), response_id, credential, finished_at FROM
        (SELECT * FROM usage ORDER BY id DESC LIMIT ?1)
        WHERE response_id IS NOT NULL AND credential IS NOT NULL AND finished_at >= ?2 ORDER BY id DESC";
    let mut query = connection.prepare(sql)?;
    let rows = query.query_map([signed(rows_max), signed(begin.0)], |row| {
        Ok(ResponseIssuer {
            service: row.get(0)?,
            user: row.get(1)?,
            response_id: row.get(2)?,
            credential: row.get(3)?,
            issued_at: Timestamp(unsigned(row.get(4)?)),
        })
    })?;
    oldest_first(rows)
}

fn oldest_first<T>(rows: impl Iterator<Item = rusqlite::Result<T>>) -> rusqlite::Result<Vec<T>> {
    let mut rows: Vec<T> = rows.collect::<rusqlite::Result<_>>()?;
    rows.reverse();
    Ok(rows)
}
