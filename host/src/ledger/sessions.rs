//! Where sessions live, kept across a restart: noted with a row, in its commit, and read once at start.

use rusqlite::{Connection, Transaction, params};

use super::query::{Reader, signed, whole};
use crate::values::clock::Timestamp;
use crate::values::exchange::Row;

/// A session's home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownSession {
    /// The service's tag.
    pub service: String,
    /// The pool's tag.
    pub pool: String,
    /// The user's name; empty where the service has no users.
    pub user: String,
    /// The session's key.
    pub session: String,
    /// The credential's tag.
    pub credential: String,
    /// Its last noted use.
    pub used_at: Timestamp,
}

/// Who made a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownMaker {
    /// The service's tag.
    pub service: String,
    /// The user's name; empty where the service has no users.
    pub user: String,
    /// The response's id.
    pub response_id: String,
    /// The credential's tag.
    pub credential: String,
    /// When it was made.
    pub made_at: Timestamp,
}

const NOTE: &str = "INSERT INTO session_home (service, pool, user, session, credential, used_at)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (service, pool, user, session) DO UPDATE SET credential = ?5, used_at = ?6";

/// Notes the home that `row` tells.
pub(super) fn note(transaction: &Transaction<'_>, row: &Row) -> rusqlite::Result<()> {
    let (Some(home), Some(session)) = (&row.home, &row.session) else {
        return Ok(());
    };
    let user = row.user.as_deref().unwrap_or_default();
    let used_at = signed(row.finished_at.0);
    transaction.prepare_cached(NOTE)?.execute(params![
        row.service,
        home.pool,
        user,
        session,
        home.credential,
        used_at
    ])?;
    Ok(())
}

/// Forgets sessions that were used last before `end`.
pub(super) fn forget(connection: &Connection, end: Timestamp) -> rusqlite::Result<()> {
    connection
        .execute(
            "DELETE FROM session_home WHERE used_at < ?1",
            [signed(end.0)],
        )
        .map(drop)
}

impl Reader {
    /// The sessions that are known, at most `most`, the one that was idle longest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn sessions(&self, most: u64) -> rusqlite::Result<Vec<KnownSession>> {
        let sql = "SELECT service, pool, user, session, credential, used_at FROM session_home
            ORDER BY used_at DESC LIMIT ?1";
        let mut query = self.connection.prepare(sql)?;
        let rows = query.query_map([signed(most)], |row| {
            Ok(KnownSession {
                service: row.get(0)?,
                pool: row.get(1)?,
                user: row.get(2)?,
                session: row.get(3)?,
                credential: row.get(4)?,
                used_at: Timestamp(whole(row.get(5)?)),
            })
        })?;
        oldest_first(rows)
    }

    /// The responses that were made since `begin`, at most `most`, the oldest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn makers(&self, begin: Timestamp, most: u64) -> rusqlite::Result<Vec<KnownMaker>> {
        // By number, from the end: times are not indexed, and only the last rows count.
        let sql = "SELECT service, coalesce(user, ''), response_id, credential, finished_at FROM
            (SELECT * FROM usage ORDER BY id DESC LIMIT ?1)
            WHERE response_id IS NOT NULL AND credential IS NOT NULL AND finished_at >= ?2 ORDER BY id DESC";
        let mut query = self.connection.prepare(sql)?;
        let rows = query.query_map([signed(most), signed(begin.0)], |row| {
            Ok(KnownMaker {
                service: row.get(0)?,
                user: row.get(1)?,
                response_id: row.get(2)?,
                credential: row.get(3)?,
                made_at: Timestamp(whole(row.get(4)?)),
            })
        })?;
        oldest_first(rows)
    }
}

fn oldest_first<T>(rows: impl Iterator<Item = rusqlite::Result<T>>) -> rusqlite::Result<Vec<T>> {
    let mut rows: Vec<T> = rows.collect::<rusqlite::Result<_>>()?;
    rows.reverse();
    Ok(rows)
}
