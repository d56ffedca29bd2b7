//! What passes between the ledger and its writer: commands with their reservations, and the commits
//! that resolve.

use std::fmt;
use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::query::UsageFileState;
use crate::values::exchange::LedgerRow;
use crate::values::histogram::DurationHistogram;

/// What the writer reports to the ledger.
#[derive(Debug, Default)]
pub(super) struct WriterState {
    /// Whether the last commit failed.
    failing: AtomicBool,
    pub(super) commit_time: DurationHistogram,
    pub(super) listener: OnceLock<RowListener>,
}

/// Called by the writer after each commit of rows. It must not block.
pub(super) struct RowListener(pub(super) Box<dyn Fn() + Send + Sync>);

impl fmt::Debug for RowListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RowListener")
    }
}

impl WriterState {
    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Records that a commit failed. Returns whether it is the first in a row.
    pub(super) fn record_failure(&self) -> bool {
        !self.failing.swap(true, Ordering::Relaxed)
    }

    /// Records that a commit succeeded. Returns whether the one before had failed.
    pub(super) fn record_success(&self) -> bool {
        self.failing.swap(false, Ordering::Relaxed)
    }
}

pub(super) enum WriterCommand {
    Row {
        row: Box<LedgerRow>,
        room: RowReservation,
        done: oneshot::Sender<()>,
    },
    UsageFile {
        path: String,
        state: UsageFileState,
        done: oneshot::Sender<()>,
    },
    StopCleaning,
    Close,
}

/// Room for one row.
#[derive(Debug)]
pub struct RowReservation {
    /// None for a row beyond the queue, which exists only while the ledger fails.
    permit: Option<OwnedSemaphorePermit>,
}

impl RowReservation {
    pub(super) fn with_permit(permit: OwnedSemaphorePermit) -> Self {
        Self {
            permit: Some(permit),
        }
    }

    pub(super) fn beyond_the_queue() -> Self {
        Self { permit: None }
    }

    pub(super) fn is_beyond_the_queue(&self) -> bool {
        self.permit.is_none()
    }
}

/// The promise to write a row.
#[derive(Debug)]
pub struct CommitPromise(pub(super) oneshot::Sender<()>);

/// The commit of a row. Resolves to whether the row is on the file.
#[derive(Debug)]
pub struct RowCommit {
    done: oneshot::Receiver<()>,
}

impl RowCommit {
    pub(super) fn new(done: oneshot::Receiver<()>) -> Self {
        Self { done }
    }

    /// Blocks until the commit has ended. Returns whether the row is on the file.
    pub fn wait(self) -> bool {
        self.done.blocking_recv().is_ok()
    }

    #[cfg(test)]
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(
            self.done.try_recv(),
            Err(oneshot::error::TryRecvError::Empty)
        )
    }
}

impl Future for RowCommit {
    type Output = bool;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        Pin::new(&mut self.done).poll(cx).map(|done| done.is_ok())
    }
}
