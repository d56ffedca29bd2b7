//! When the usage files are written: what the writing thread waits for.
//!
//! Does not know what is written. Invariant: at most one announcement of new rows is in the queue,
//! however many rows are committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::target::UsageFileTarget;

/// How often it is checked at most whether files have new rows: a busy credential without a file
/// causes no more work than this.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// How often files are checked without an announcement: a process that is being replaced still adds
/// rows.
const QUIET_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// What the writing thread is asked to do.
pub(super) enum UsageFilesCommand {
    Follow {
        targets: Vec<UsageFileTarget>,
        /// Dropped when the files are open: rows count from then on.
        opened: oneshot::Sender<()>,
    },
    Close {
        /// Dropped when the files were written for the last time.
        closed: oneshot::Sender<()>,
    },
    /// The ledger has new rows.
    RowsCommitted,
}

/// What the writing thread does next.
pub(super) enum Wake {
    /// Write the files that may be written at this time.
    Write(Instant),
    /// Write other files from now on.
    Follow(Vec<UsageFileTarget>, oneshot::Sender<()>),
    /// Write the files for the last time.
    Close(oneshot::Sender<()>),
    /// No command can follow: write the files for the last time.
    End,
}

/// Whether new rows were announced since the last write.
#[derive(Clone, Default)]
pub(super) struct RowsAnnounced(Arc<AtomicBool>);

impl RowsAnnounced {
    /// Returns `true` to the first caller since the last write. That caller announces the rows.
    pub(super) fn claim(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    fn reset(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The times of writes, and the commands in between.
pub(super) struct WriteSchedule {
    commands: Receiver<UsageFilesCommand>,
    announced: RowsAnnounced,
    /// When files are written next, if anything is known to be written.
    due: Option<Instant>,
    /// No write before this.
    earliest: Instant,
}

impl WriteSchedule {
    /// Creates a schedule with a write at once: the last process may have been killed before it
    /// wrote its last rows.
    pub(super) fn new(commands: Receiver<UsageFilesCommand>) -> Self {
        let now = Instant::now();
        Self {
            commands,
            announced: RowsAnnounced::default(),
            due: Some(now),
            earliest: now,
        }
    }

    pub(super) fn announced(&self) -> RowsAnnounced {
        self.announced.clone()
    }

    /// Waits for the next thing to do.
    pub(super) fn wait(&mut self) -> Wake {
        loop {
            let now = Instant::now();
            let received = match self.due {
                Some(due) if due <= now => {
                    // Before the rows are read: a row that is committed meanwhile is announced.
                    self.announced.reset();
                    return Wake::Write(now);
                }
                Some(due) => self.commands.recv_timeout(due - now),
                None => self.commands.recv_timeout(QUIET_CHECK_INTERVAL),
            };
            match received {
                Ok(UsageFilesCommand::Follow { targets, opened }) => {
                    return Wake::Follow(targets, opened);
                }
                Ok(UsageFilesCommand::Close { closed }) => return Wake::Close(closed),
                Ok(UsageFilesCommand::RowsCommitted) => self.due_at(self.earliest),
                Err(RecvTimeoutError::Timeout) => self.due_at(Instant::now()),
                Err(RecvTimeoutError::Disconnected) => return Wake::End,
            }
        }
    }

    /// Notes that the files that were due at `now` are written, and when the next one may be.
    pub(super) fn written(&mut self, now: Instant, next: Option<Instant>) {
        self.earliest = now + CHECK_INTERVAL;
        self.due = next;
    }

    fn due_at(&mut self, time: Instant) {
        self.due = Some(self.due.map_or(time, |due| due.min(time)));
    }
}
