//! The only thread that writes: collects rows, commits them as a group, and resolves their commits.

mod insert;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::oneshot;

use super::command::{RowListener, RowReservation, WriterCommand, WriterState};
use super::query::UsageFileState;
use super::sessions;
use crate::values::clock::Timestamp;
use crate::values::exchange::LedgerRow;
use crate::values::limits::{LedgerFull, Limits};

/// The most entries of one commit.
const GROUP_MAX: usize = 256;

/// How long a group is collected after its first row. The last byte of a response waits that much
/// longer; in exchange, the rows of requests that end together share a commit, and sending a row
/// need not wake the writer.
const COLLECT: Duration = Duration::from_micros(300);

/// The interval at which expired sessions are deleted.
const CLEAN_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// How long the writer waits before it retries a failed commit.
const RETRY: Duration = Duration::from_secs(1);

/// Starts the writer's thread.
pub(super) fn start(
    connection: Connection,
    commands: Receiver<WriterCommand>,
    state: Arc<WriterState>,
    limits: &Limits,
) -> std::io::Result<JoinHandle<()>> {
    let writer = LedgerWriter {
        connection,
        commands,
        state,
        full: limits.ledger_full,
        session_lifetime: limits.session_lifetime,
        cleaning: SessionCleaning::Own,
        cleaned: Instant::now(),
        pending: Vec::new(),
        is_closing: false,
    };
    thread::Builder::new()
        .name("ledger".to_owned())
        .spawn(move || writer.run())
}

struct LedgerWriter {
    connection: Connection,
    commands: Receiver<WriterCommand>,
    state: Arc<WriterState>,
    full: LedgerFull,
    /// Sessions that were not used for this long are deleted.
    session_lifetime: Duration,
    cleaning: SessionCleaning,
    /// When expired sessions were last deleted.
    cleaned: Instant,
    /// The entries of the next commit. Bounded by the room that was reserved.
    pending: Vec<PendingEntry>,
    is_closing: bool,
}

/// Which process deletes expired sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SessionCleaning {
    Own,
    OfAnotherProcess,
}

struct PendingEntry {
    content: EntryContent,
    /// Released before the commit is reported, so that the next request finds the room.
    room: Option<RowReservation>,
    /// None once the commit was reported.
    done: Option<oneshot::Sender<()>>,
}

enum EntryContent {
    Row(Box<LedgerRow>),
    UsageFile(String, UsageFileState),
}

impl PendingEntry {
    fn report_committed(&mut self) {
        if let Some(done) = self.done.take() {
            // The receiver may have stopped waiting.
            let _ = done.send(());
        }
    }
}

impl LedgerWriter {
    fn run(mut self) {
        while !self.is_closing {
            self.collect();
            self.commit();
            if self.cleaning == SessionCleaning::Own && self.cleaned.elapsed() >= CLEAN_INTERVAL {
                self.delete_expired_sessions();
            }
        }
        for pending in self.pending.drain(..) {
            if let EntryContent::Row(row) = &pending.content {
                log_lost_row(row, "the ledger cannot be written");
            }
        }
    }

    /// Deletes expired sessions, so that a gateway that runs for months does not collect them.
    fn delete_expired_sessions(&mut self) {
        self.cleaned = Instant::now();
        let expired = Timestamp::now().before(self.session_lifetime);
        if let Err(error) = sessions::delete_unused_since(&self.connection, expired) {
            tracing::warn!(%error, "expired sessions not deleted");
        }
    }

    /// Waits for an entry, and collects those that arrive with it.
    fn collect(&mut self) {
        if self.pending.is_empty() {
            self.collect_first();
        } else {
            self.collect_for_retry();
        }
        while self.pending.len() < GROUP_MAX && !self.is_closing {
            match self.commands.try_recv() {
                Ok(command) => self.accept(command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => self.is_closing = true,
            }
        }
    }

    fn collect_first(&mut self) {
        let Ok(command) = self.commands.recv() else {
            self.is_closing = true;
            return;
        };
        self.accept(command);
        if !self.is_closing {
            thread::sleep(COLLECT);
        }
    }

    /// Collects after a failed commit, until it is time to retry.
    fn collect_for_retry(&mut self) {
        match self.commands.recv_timeout(RETRY) {
            Ok(command) => self.accept(command),
            Err(RecvTimeoutError::Timeout) => return,
            Err(RecvTimeoutError::Disconnected) => {
                self.is_closing = true;
                return;
            }
        }
        let end = Instant::now() + RETRY;
        while !self.is_closing {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(command) = self.commands.recv_timeout(left) else {
                return;
            };
            self.accept(command);
        }
    }

    fn accept(&mut self, command: WriterCommand) {
        match command {
            WriterCommand::Row { row, room, done }
                if room.is_beyond_the_queue() && self.state.is_failing() =>
            {
                log_lost_row(&row, "the ledger cannot be written and its queue is full");
                let _ = done.send(());
            }
            WriterCommand::Row { row, room, done } => self.add(PendingEntry {
                content: EntryContent::Row(row),
                room: Some(room),
                done: Some(done),
            }),
            WriterCommand::UsageFile { path, state, done } => {
                // A newer state of a file replaces its predecessor, so that the number of entries
                // is bounded.
                self.pending.retain(|pending| match &pending.content {
                    EntryContent::UsageFile(waiting, _) => *waiting != path,
                    EntryContent::Row(_) => true,
                });
                self.add(PendingEntry {
                    content: EntryContent::UsageFile(path, state),
                    room: None,
                    done: Some(done),
                });
            }
            WriterCommand::StopCleaning => self.cleaning = SessionCleaning::OfAnotherProcess,
            WriterCommand::Close => self.is_closing = true,
        }
    }

    fn add(&mut self, mut entry: PendingEntry) {
        if self.state.is_failing() {
            release_while_failing(&mut entry, self.full);
        }
        self.pending.push(entry);
    }

    fn commit(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let begun = Instant::now();
        match self.write() {
            Ok(()) => {
                self.state.commit_time.record(begun.elapsed());
                if self.state.record_success() {
                    tracing::info!(rows = self.pending.len(), "ledger writable again");
                }
                let mut has_rows = false;
                for mut entry in self.pending.drain(..) {
                    has_rows |= matches!(entry.content, EntryContent::Row(_));
                    drop(entry.room.take());
                    entry.report_committed();
                }
                if let Some(RowListener(listener)) = self.state.listener.get()
                    && has_rows
                {
                    listener();
                }
            }
            Err(error) => {
                if self.state.record_failure() {
                    tracing::error!(%error, "ledger cannot be written; its rows wait in memory");
                }
                for entry in &mut self.pending {
                    release_while_failing(entry, self.full);
                }
            }
        }
    }

    fn write(&mut self) -> rusqlite::Result<()> {
        // Another process may write, too: the lock is taken first, and waited for.
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        for entry in &self.pending {
            match &entry.content {
                EntryContent::Row(row) => {
                    insert::row(&transaction, row)?;
                    sessions::store(&transaction, row)?;
                }
                EntryContent::UsageFile(path, state) => {
                    insert::usage_file(&transaction, path, state)?;
                }
            }
        }
        transaction.commit()
    }
}

/// Lets the receiver of an entry continue while the ledger fails, if it need not wait.
fn release_while_failing(entry: &mut PendingEntry, full: LedgerFull) {
    match (&entry.content, full) {
        // Dropped, it reports "not committed": nothing blocks on it, and the usage file is not
        // written.
        (EntryContent::UsageFile(..), _) => drop(entry.done.take()),
        (EntryContent::Row(_), LedgerFull::Serve) => entry.report_committed(),
        (EntryContent::Row(_), LedgerFull::Refuse) => {}
    }
}

/// Logs a whole row that the ledger cannot store, so that it is not lost silently.
pub(super) fn log_lost_row(row: &LedgerRow, reason: &str) {
    tracing::error!(row = ?row, reason, "row not stored in the ledger");
}
