//! The ledger: one row for every admitted request, in a SQLite file with one writer.
//!
//! Owns the file, its schema and the order of commits; does not know how a row came about.
//! Invariants: room for a row is reserved before its request is served, and a [`RowCommit`]
//! resolves only when the row is on the file, or in memory if the operator chose to serve while the
//! file cannot be written. Commits are synced as WAL's `NORMAL` does: killing the process loses
//! nothing, a power cut at most the last rows.

mod command;
mod file;
mod query;
mod sessions;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::{fs, io};

use tokio::sync::{Semaphore, oneshot};

pub(crate) use command::{CommitPromise, RowCommit, RowReservation};
pub(crate) use file::LedgerError;
pub(crate) use query::{LedgerReader, UsageFileRow, UsageFileState, UsageGrouping, UsageSummary};
pub(crate) use sessions::{ResponseIssuer, StoredSession};

use crate::values::clock::Timestamp;
use crate::values::exchange::LedgerRow;
use crate::values::histogram::DurationHistogram;
use crate::values::limits::{LedgerFull, Limits};

use command::{RowListener, WriterCommand, WriterState};

/// The name of the file in the data folder.
pub(crate) const FILE_NAME: &str = "ledger.db";

/// The ledger, open for writing.
pub struct Ledger {
    path: PathBuf,
    commands: mpsc::Sender<WriterCommand>,
    /// A permit for each row that may be reserved.
    room: Arc<Semaphore>,
    capacity: usize,
    state: Arc<WriterState>,
    full: LedgerFull,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Held while the ledger is open, so that no process writes it that does not share the lock.
    lock: fs::File,
}

/// Why no row can be reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReservationError {
    /// `limits.settle_queue` rows are reserved already.
    #[error("too many requests in flight")]
    Busy,
    /// The file cannot be written.
    #[error("the ledger cannot be written")]
    Failing,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Ledger {
    /// Opens the ledger in `data_dir`. Creates the folder and the file if they are missing, and
    /// migrates an old file.
    ///
    /// # Errors
    /// The folder or the file cannot be used, the file is not a ledger, or another process writes
    /// it. What is there is not changed.
    pub fn open(data_dir: &Path, limits: &Limits) -> Result<Self, LedgerError> {
        Self::open_beside(data_dir, limits, None)
    }

    /// Opens the ledger in `data_dir` beside another process, whose [`Ledger::lock`] is
    /// `shared_lock`. Both write rows; SQLite orders their commits. A lock of another folder is not
    /// used.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub fn open_beside(
        data_dir: &Path,
        limits: &Limits,
        shared_lock: Option<fs::File>,
    ) -> Result<Self, LedgerError> {
        let lock = file::lock(data_dir, shared_lock)?;
        let path = data_dir.join(FILE_NAME);
        let connection = file::open(&path, limits.ledger_bytes)?;
        let expired = Timestamp::now().before(limits.session_lifetime);
        sessions::delete_unused_since(&connection, expired).map_err(LedgerError::sqlite(&path))?;
        let (commands, received) = mpsc::channel();
        let state = Arc::new(WriterState::default());
        let writer = writer::start(connection, received, Arc::clone(&state), limits)
            .map_err(|error| LedgerError::io(&path, &error))?;
        let capacity = usize::try_from(limits.settle_queue)
            .unwrap_or(usize::MAX)
            .min(Semaphore::MAX_PERMITS);
        Ok(Self {
            path,
            commands,
            room: Arc::new(Semaphore::new(capacity)),
            capacity,
            state,
            full: limits.ledger_full,
            writer: Mutex::new(Some(writer)),
            lock,
        })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the lock, for a process that opens the ledger beside this one.
    ///
    /// # Errors
    /// This process has too many open files.
    pub fn lock(&self) -> io::Result<fs::File> {
        self.lock.try_clone()
    }

    /// Leaves expired sessions to another process: from now on this one only adds rows and
    /// sessions.
    pub fn stop_cleaning(&self) {
        let _ = self.commands.send(WriterCommand::StopCleaning);
    }

    /// Reserves room for a row. If the file cannot be written and `limits.ledger_full` is `serve`,
    /// this always succeeds: a row beyond the queue is written to the log instead.
    ///
    /// # Errors
    /// All room is reserved, or the file cannot be written.
    pub fn reserve(&self) -> Result<RowReservation, ReservationError> {
        let is_failing = self.state.is_failing();
        if is_failing && self.full == LedgerFull::Refuse {
            return Err(ReservationError::Failing);
        }
        match Arc::clone(&self.room).try_acquire_owned() {
            Ok(permit) => Ok(RowReservation::with_permit(permit)),
            Err(_) if is_failing => Ok(RowReservation::beyond_the_queue()),
            Err(_) => Err(ReservationError::Busy),
        }
    }

    /// Writes `row` into its reserved room.
    pub fn write(&self, room: RowReservation, row: LedgerRow) -> RowCommit {
        let (promise, commit) = self.promise();
        self.write_as_promised(room, row, promise);
        commit
    }

    /// Returns the commit of a row that will be written later, and the promise to write it. If the
    /// promise is dropped, the commit fails.
    pub fn promise(&self) -> (CommitPromise, RowCommit) {
        let (done, waiting) = oneshot::channel();
        (CommitPromise(done), RowCommit::new(waiting))
    }

    /// Writes `row` into its reserved room and so keeps the promise.
    pub fn write_as_promised(
        &self,
        room: RowReservation,
        row: LedgerRow,
        CommitPromise(done): CommitPromise,
    ) {
        let command = WriterCommand::Row {
            row: Box::new(row),
            room,
            done,
        };
        if let Err(mpsc::SendError(WriterCommand::Row { row, .. })) = self.commands.send(command) {
            // Rows are settled before the ledger is closed, which ends the writer: this is a bug,
            // and must be visible.
            writer::log_lost_row(&row, "the ledger is closed");
        }
    }

    /// Returns how many rows are reserved and not yet committed.
    pub fn waiting(&self) -> usize {
        self.capacity - self.room.available_permits().min(self.capacity)
    }

    /// Whether the last commit failed.
    pub fn is_failing(&self) -> bool {
        self.state.is_failing()
    }

    /// Returns how long commits took.
    pub fn commit_time(&self) -> &DurationHistogram {
        &self.state.commit_time
    }

    /// Saves which rows the usage file at `path` contains.
    pub fn save_usage_file(&self, path: &str, state: UsageFileState) -> RowCommit {
        let (done, waiting) = oneshot::channel();
        // If the writer has ended, `done` is dropped with the command, and the commit fails at
        // once.
        let _ = self.commands.send(WriterCommand::UsageFile {
            path: path.to_owned(),
            state,
            done,
        });
        RowCommit::new(waiting)
    }

    /// Calls `listener` after each commit of rows, on the writer's thread, which it must not block.
    /// Only the first listener of a ledger counts.
    pub fn notify_of_rows(&self, listener: impl Fn() + Send + Sync + 'static) {
        let _ = self.state.listener.set(RowListener(Box::new(listener)));
    }

    /// Opens a connection that reads.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn reader(&self) -> Result<LedgerReader, LedgerError> {
        LedgerReader::open_checked(&self.path)
    }

    /// Commits the rows that wait and closes the file. Blocks until that is done.
    pub fn close(&self) {
        let _ = self.commands.send(WriterCommand::Close);
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!("ledger writer panicked");
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
