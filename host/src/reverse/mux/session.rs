//! A session, as those that open and accept its streams see it.

use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use super::end::MuxEnd;
use super::state::{MuxPhase, MuxShared};
use super::stream::MuxStream;

/// Why no stream can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MuxOpenError {
    /// The session ended, or the peer accepts no more streams.
    #[error("the reverse connection is closed")]
    Closed,
    /// As many streams are open as `limits.reverse_streams` allows.
    #[error("limits.reverse_streams is reached")]
    TooManyStreams,
}

/// A handle of a session. The session lasts as long as its driver runs.
#[derive(Debug, Clone)]
pub struct MuxSession(Arc<MuxShared>);

impl MuxSession {
    pub(super) fn new(shared: Arc<MuxShared>) -> Self {
        Self(shared)
    }

    /// Returns whether both are handles of one session.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns whether streams can be opened.
    pub fn is_open(&self) -> bool {
        *self.0.phase.borrow() == MuxPhase::Open
    }

    /// Returns the number of streams.
    pub fn streams(&self) -> usize {
        self.0.lock().streams()
    }

    /// Opens a stream. Data can be sent at once.
    ///
    /// # Errors
    /// The session is closed, or has too many streams.
    pub fn open(&self) -> Result<MuxStream, MuxOpenError> {
        if !self.is_open() {
            return Err(MuxOpenError::Closed);
        }
        let mut state = self.0.lock();
        if !state.has_room() {
            return Err(MuxOpenError::TooManyStreams);
        }
        let id = state.open(Instant::now()).ok_or(MuxOpenError::Closed)?;
        drop(state);
        let stream = MuxStream::new(&self.0, id);
        self.0.publish_count();
        self.0.output.notify_one();
        // It may have ended in between, and with it the streams that it had then.
        if self.0.has_ended() {
            return Err(MuxOpenError::Closed);
        }
        Ok(stream)
    }

    /// Returns the next stream that the peer opens, or `None` once the session has ended or accepts
    /// no more. Only one task may wait for it.
    pub async fn accept(&self) -> Option<MuxStream> {
        loop {
            if let Poll::Ready(stream) = self.poll_waiting() {
                return stream;
            }
            self.0.accepted.notified().await;
        }
    }

    fn poll_waiting(&self) -> Poll<Option<MuxStream>> {
        let mut state = self.0.lock();
        match state.next_waiting() {
            Some(id) => Poll::Ready(Some(MuxStream::new(&self.0, id))),
            None if !state.accepts_streams() || self.0.has_ended() => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    /// Announces that no more streams will be accepted. Those that the peer opens before it learns
    /// that are still accepted.
    pub fn announce_end(&self) {
        self.0.lock().announce_end();
        self.0.output.notify_one();
    }

    /// Announces that no more streams are accepted. Those that are open continue, and those that
    /// were acknowledged can still be accepted.
    pub fn stop_accepting(&self) {
        self.0.lock().stop_accepting();
        self.0.accepted.notify_one();
        self.0.output.notify_one();
    }

    /// Announces that this side neither opens nor accepts more streams. Those that are open
    /// continue.
    pub fn retire(&self) {
        self.0.leave_open();
        self.stop_accepting();
    }

    /// Waits until no stream is left.
    pub async fn until_idle(&self) {
        // The sender is in `self`.
        let _ = self.0.count.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Waits until no stream can be opened any more.
    pub async fn until_closing(&self) {
        let is_closing = |phase: &MuxPhase| *phase != MuxPhase::Open;
        let _ = self.0.phase.subscribe().wait_for(is_closing).await;
    }

    /// Returns whether the peer announced that it takes no more streams, and did not just vanish.
    pub fn was_asked_to_leave(&self) -> bool {
        self.0.lock().has_peer_announced()
    }

    /// Ends the session, and with it all of its streams.
    pub fn close(&self) {
        self.0.close.notify_one();
    }

    /// Returns why the session ended, if it has.
    pub fn end(&self) -> Option<MuxEnd> {
        match &*self.0.phase.borrow() {
            MuxPhase::Ended(end) => Some(end.clone()),
            MuxPhase::Open | MuxPhase::Closing => None,
        }
    }
}
