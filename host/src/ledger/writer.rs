//! The one thread that writes: takes what has gathered, commits it as a group, and tells who waits.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};
use tokio::sync::oneshot;

use super::{Command, Room, State, ViewState, sessions};
use crate::values::clock::Timestamp;
use crate::values::exchange::{Attempt, Row};
use crate::values::limits::LedgerFull;
use crate::values::money::Cost;

/// Rows of one commit.
const GROUP: usize = 256;

/// How long a group gathers after its first row. A response waits so much longer for its last byte; in exchange, rows of
/// requests that end together share a commit, and their senders wake nobody.
const GATHERING: Duration = Duration::from_micros(300);

/// How often old sessions are forgotten.
const CLEAN_AGAIN: Duration = Duration::from_secs(60 * 60);

/// How often a commit that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

const INSERT: &str = "INSERT INTO usage (
    request_id, started_at, finished_at, user, credential, service, model, service_tier, transport, path, status, end,
    attempts, session, response_id, input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
    context_window, week_start_unix, cost_nanousd, unpriced_reason, priced_by, ttfb_ms, duration_ms,
    prewarm, previous_response_id
) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24,
    ?25, ?26, ?27, ?28, ?29)";

const SAVE_VIEW: &str = "INSERT INTO usage_view (path, through, digest, through_before, digest_before)
    VALUES (?1, ?2, ?3, ?4, ?5)
    ON CONFLICT (path) DO UPDATE SET through = ?2, digest = ?3, through_before = ?4, digest_before = ?5";

pub(super) fn start(
    connection: Connection,
    commands: Receiver<Command>,
    state: Arc<State>,
    keeps: Keeps,
) -> std::io::Result<JoinHandle<()>> {
    let Keeps { full, sessions_for } = keeps;
    let cleaned = Instant::now();
    let writer = Writer {
        connection,
        commands,
        state,
        full,
        sessions_for,
        cleaned,
        pending: Vec::new(),
        closing: false,
    };
    thread::Builder::new()
        .name("ledger".to_owned())
        .spawn(move || writer.run())
}

/// What the ledger keeps, and for how long.
pub(super) struct Keeps {
    pub(super) full: LedgerFull,
    /// Sessions that were used last before that are forgotten.
    pub(super) sessions_for: Duration,
}

struct Writer {
    connection: Connection,
    commands: Receiver<Command>,
    state: Arc<State>,
    full: LedgerFull,
    sessions_for: Duration,
    /// When old sessions were forgotten last.
    cleaned: Instant,
    /// What is to be committed next. Bounded by the room that was given out.
    pending: Vec<Pending>,
    closing: bool,
}

struct Pending {
    what: What,
    /// Given back with the commit, before anybody is told of it.
    room: Option<Room>,
    done: Option<oneshot::Sender<()>>,
}

enum What {
    Row(Box<Row>),
    View(String, ViewState),
}

impl Writer {
    fn run(mut self) {
        while !self.closing {
            self.gather();
            self.commit();
            if self.cleaned.elapsed() >= CLEAN_AGAIN {
                self.clean();
            }
        }
        for pending in self.pending.drain(..) {
            if let What::Row(row) = &pending.what {
                log_lost_row(row, "the ledger cannot be written");
            }
        }
    }

    /// A gateway that runs for months keeps no sessions of its first day.
    fn clean(&mut self) {
        self.cleaned = Instant::now();
        if let Err(error) =
            sessions::forget(&self.connection, Timestamp::now().before(self.sessions_for))
        {
            tracing::warn!(%error, "old sessions stay in the ledger");
        }
    }

    /// Waits for something to commit, and takes what is there besides.
    fn gather(&mut self) {
        if self.pending.is_empty() {
            match self.commands.recv() {
                Ok(command) => {
                    self.take(command);
                    if !self.closing {
                        thread::sleep(GATHERING);
                    }
                }
                Err(_) => self.closing = true,
            }
        } else {
            // The last commit failed: gather for a while, then try again.
            match self.commands.recv_timeout(RETRY) {
                Ok(command) => {
                    self.take(command);
                    self.gather_for(RETRY);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.closing = true,
            }
        }
        while self.pending.len() < GROUP && !self.closing {
            match self.commands.try_recv() {
                Ok(command) => self.take(command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => self.closing = true,
            }
        }
    }

    fn gather_for(&mut self, span: Duration) {
        let end = std::time::Instant::now() + span;
        while !self.closing {
            let left = end.saturating_duration_since(std::time::Instant::now());
            match self.commands.recv_timeout(left) {
                Ok(command) => self.take(command),
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Row { row, room, done } if room.permit.is_none() && self.is_failing() => {
                log_lost_row(&row, "the ledger cannot be written and its queue is full");
                let _ = done.send(());
            }
            Command::Row { row, room, done } => {
                let mut pending = Pending {
                    what: What::Row(row),
                    room: Some(room),
                    done: Some(done),
                };
                if self.is_failing() {
                    self.release_unless_refusing(&mut pending);
                }
                self.pending.push(pending);
            }
            Command::View { path, state, done } => {
                // A note that waits is replaced by the newer one of its file: what waits has a bound.
                self.pending.retain(
                    |pending| !matches!(&pending.what, What::View(noted, _) if *noted == path),
                );
                let mut pending = Pending {
                    what: What::View(path, state),
                    room: None,
                    done: Some(done),
                };
                if self.is_failing() {
                    self.release_unless_refusing(&mut pending);
                }
                self.pending.push(pending);
            }
            Command::Close => self.closing = true,
        }
    }

    fn is_failing(&self) -> bool {
        self.state.failing.load(Ordering::Relaxed)
    }

    fn commit(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let begun = Instant::now();
        match self.write() {
            Ok(()) => {
                self.state.commit_time.count_in(begun.elapsed());
                if self.state.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(
                        rows = self.pending.len(),
                        "the ledger can be written again; what waited is in it"
                    );
                }
                for mut pending in self.pending.drain(..) {
                    drop(pending.room.take());
                    if let Some(done) = pending.done.take() {
                        let _ = done.send(());
                    }
                }
            }
            Err(error) => {
                if !self.state.failing.swap(true, Ordering::Relaxed) {
                    tracing::error!(%error, "the ledger cannot be written; its rows wait in memory");
                }
                let mut pending = std::mem::take(&mut self.pending);
                pending
                    .iter_mut()
                    .for_each(|pending| self.release_unless_refusing(pending));
                self.pending = pending;
            }
        }
    }

    /// While the ledger fails, responses wait for their rows only where requests are refused.
    fn release_unless_refusing(&self, pending: &mut Pending) {
        match pending.what {
            // Let go without a word, it says "not committed": nobody blocks on a note, and no file is written without.
            What::View(..) => drop(pending.done.take()),
            What::Row(_) if self.full == LedgerFull::Serve => {
                if let Some(done) = pending.done.take() {
                    let _ = done.send(());
                }
            }
            What::Row(_) => {}
        }
    }

    fn write(&mut self) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(INSERT)?;
            for pending in &self.pending {
                match &pending.what {
                    What::Row(row) => {
                        insert_row(&mut insert, row)?;
                        sessions::note(&transaction, row)?;
                    }
                    What::View(path, view) => {
                        let before = i64::try_from(view.through_before).unwrap_or(i64::MAX);
                        let through = i64::try_from(view.through).unwrap_or(i64::MAX);
                        let values =
                            params![path, through, view.digest, before, view.digest_before];
                        transaction.prepare_cached(SAVE_VIEW)?.execute(values)?;
                    }
                }
            }
        }
        transaction.commit()
    }
}

fn insert_row(insert: &mut rusqlite::CachedStatement<'_>, row: &Row) -> rusqlite::Result<()> {
    let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let counts = row.counts;
    let (window, cost, unpriced) = match &row.cost {
        Some(Cost::Priced {
            amount,
            context_window,
        }) => (Some(whole(*context_window)), Some(whole(amount.0)), None),
        Some(Cost::Unpriced { reason }) => (None, None, Some(reason)),
        None => (None, None, None),
    };
    insert.execute(params![
        row.request_id,
        whole(row.started_at.0),
        whole(row.finished_at.0),
        row.user,
        row.credential,
        row.service,
        row.model,
        row.service_tier,
        row.transport,
        row.path,
        row.status,
        row.end.as_str(),
        attempts_json(&row.attempts),
        row.session,
        row.response_id,
        counts.map(|counts| whole(counts.input)),
        counts.map(|counts| whole(counts.cached)),
        counts.map(|counts| whole(counts.cache_write)),
        counts.map(|counts| whole(counts.output)),
        counts.map(|counts| whole(counts.reasoning)),
        window,
        row.week_start_unix.map(whole),
        cost,
        unpriced,
        row.priced_by,
        row.ttfb_ms.map(whole),
        whole(row.duration_ms),
        row.prewarm,
        row.previous_response_id,
    ])?;
    Ok(())
}

fn attempts_json(attempts: &[Attempt]) -> String {
    let list: Vec<serde_json::Value> = attempts
        .iter()
        .map(|attempt| serde_json::json!({"credential": attempt.credential, "outcome": attempt.outcome.name()}))
        .collect();
    serde_json::Value::Array(list).to_string()
}

/// A row that the ledger cannot take goes to the log, whole: it is never lost in silence.
pub(super) fn log_lost_row(row: &Row, reason: &str) {
    tracing::error!(row = ?row, reason, "a row that the ledger could not take");
}
