//! The ledger: one row for every admitted request, in a SQLite file with one writer.
//!
//! Owns the file, its schema and the order of commits; refuses to know how a row came about. Invariants: room for a
//! row is reserved before its request is served, and whoever waits for a row's commit is told only when it is on the
//! file; or, where the operator chose to serve while the file cannot be written, that it is kept. Commits are synced as WAL's `NORMAL` does: a killed process loses nothing, a power cut at most the last rows.

mod file;
mod query;
mod sessions;
mod writer;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

pub use file::LedgerError;
pub use query::{By, Reader, Summary, UsageRow, ViewState};
pub use sessions::{KnownMaker, KnownSession};

use crate::values::clock::Timestamp;
use crate::values::exchange::Row;
use crate::values::histogram::Histogram;
use crate::values::limits::{LedgerFull, Limits};

/// The file's name in the data folder.
pub const FILE_NAME: &str = "ledger.db";

/// The ledger, open for writing.
pub struct Ledger {
    path: PathBuf,
    commands: mpsc::Sender<Command>,
    room: Arc<Semaphore>,
    /// How much of it there is.
    capacity: usize,
    state: Arc<State>,
    full: LedgerFull,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Held for as long as the ledger is open: one writer, in one process.
    _lock: fs::File,
}

/// What the writer tells those who ask for room.
#[derive(Debug, Default)]
struct State {
    /// The last commit failed.
    failing: AtomicBool,
    commit_time: Histogram,
}

enum Command {
    Row {
        row: Box<Row>,
        room: Room,
        done: oneshot::Sender<()>,
    },
    View {
        path: String,
        state: ViewState,
        done: oneshot::Sender<()>,
    },
    Close,
}

/// Room for one row.
#[derive(Debug)]
pub struct Room {
    permit: Option<OwnedSemaphorePermit>,
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// As many requests as `limits.settle_queue` wait for their rows.
    #[error("too many requests under way")]
    Busy,
    /// The file cannot be written.
    #[error("the ledger cannot be written")]
    Failing,
}

/// Somebody waits for a row that is not written yet.
#[derive(Debug)]
pub struct Promise(oneshot::Sender<()>);

/// A row's commit, to be waited for.
#[derive(Debug)]
pub struct Commit {
    done: oneshot::Receiver<()>,
}

impl Commit {
    /// Blocks until it is known whether the row is on the file.
    pub fn wait(self) -> bool {
        self.done.blocking_recv().is_ok()
    }
}

impl Future for Commit {
    /// Whether the row is on the file.
    type Output = bool;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<bool> {
        std::pin::Pin::new(&mut self.done)
            .poll(cx)
            .map(|done| done.is_ok())
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Ledger {
    /// Opens the ledger in `data_dir`, makes both where they are missing, and brings an old file up to date.
    ///
    /// # Errors
    /// The folder or file cannot be used, is another's, or another process writes it. What is there is left alone.
    pub fn open(data_dir: &Path, limits: &Limits) -> Result<Self, LedgerError> {
        let lock = file::lock(data_dir)?;
        let path = data_dir.join(FILE_NAME);
        let connection = file::open(&path, limits.ledger_bytes)?;
        let forgotten = Timestamp::now().before(limits.session_lifetime);
        sessions::forget(&connection, forgotten).map_err(LedgerError::sqlite(&path))?;
        let (commands, received) = mpsc::channel();
        let state = Arc::new(State::default());
        let keeps = writer::Keeps {
            full: limits.ledger_full,
            sessions_for: limits.session_lifetime,
        };
        let writer = writer::start(connection, received, Arc::clone(&state), keeps)
            .map_err(|error| LedgerError::io(&path, &error))?;
        let room = usize::try_from(limits.settle_queue)
            .unwrap_or(usize::MAX)
            .min(Semaphore::MAX_PERMITS);
        Ok(Self {
            path,
            commands,
            room: Arc::new(Semaphore::new(room)),
            capacity: room,
            state,
            full: limits.ledger_full,
            writer: Mutex::new(Some(writer)),
            _lock: lock,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reserves room for a row. While the file cannot be written and `limits.ledger_full` says `serve`, there is
    /// always room: a row beyond the queue is written to the log instead.
    ///
    /// # Errors
    /// There is none.
    pub fn reserve(&self) -> Result<Room, NoRoom> {
        let failing = self.state.failing.load(Ordering::Relaxed);
        if failing && self.full == LedgerFull::Refuse {
            return Err(NoRoom::Failing);
        }
        match Arc::clone(&self.room).try_acquire_owned() {
            Ok(permit) => Ok(Room {
                permit: Some(permit),
            }),
            Err(_) if failing => Ok(Room { permit: None }),
            Err(_) => Err(NoRoom::Busy),
        }
    }

    /// Writes `row` into its room.
    pub fn write(&self, room: Room, row: Row) -> Commit {
        let (promise, commit) = self.promise();
        self.write_as_promised(room, row, promise);
        commit
    }

    /// A commit to be waited for, and the promise of it: a row that will be written. One that is dropped is broken.
    pub fn promise(&self) -> (Promise, Commit) {
        let (done, waiting) = oneshot::channel();
        (Promise(done), Commit { done: waiting })
    }

    /// Writes `row` into its room, as was promised.
    pub fn write_as_promised(&self, room: Room, row: Row, Promise(done): Promise) {
        let command = Command::Row {
            row: Box::new(row),
            room,
            done,
        };
        if let Err(mpsc::SendError(Command::Row { row, .. })) = self.commands.send(command) {
            // The writer ends only when the ledger is closed, and rows are settled before; a bug must not be silent.
            writer::log_lost_row(&row, "the ledger is closed");
        }
    }

    /// Rows that are promised or waited for, and not yet committed.
    pub fn waiting(&self) -> usize {
        self.capacity - self.room.available_permits().min(self.capacity)
    }

    /// Whether the last commit failed.
    pub fn is_failing(&self) -> bool {
        self.state.failing.load(Ordering::Relaxed)
    }

    /// How long commits took.
    pub fn commit_time(&self) -> &Histogram {
        &self.state.commit_time
    }

    /// Notes how far the usage file at `path` has been written.
    pub fn save_view(&self, path: &str, state: ViewState) -> Commit {
        let (done, waiting) = oneshot::channel();
        // Without a writer nobody waits: the receiver answers at once that nothing was committed.
        let _ = self.commands.send(Command::View {
            path: path.to_owned(),
            state,
            done,
        });
        Commit { done: waiting }
    }

    /// A connection that reads.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn reader(&self) -> Result<Reader, LedgerError> {
        Reader::open(&self.path)
    }

    /// Commits what is there and closes the file. Blocks until that is done.
    pub fn close(&self) {
        let _ = self.commands.send(Command::Close);
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!("the ledger's writer panicked");
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
