//! The place of a credential's reverse connection.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::mux::{MuxOpenError, MuxSession, MuxStream};

/// How long a connection that ended is expected to return: longer than the first pause of a gateway
/// that was replaced.
const RETURN_TIMEOUT: Duration = Duration::from_secs(4);

/// Why a request cannot be sent over a reverse connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReverseError {
    /// No gateway is connected.
    #[error("reverse connection not established")]
    NotConnected,
    /// One is connected, but takes no more streams.
    #[error(transparent)]
    Full(#[from] MuxOpenError),
}

/// The reverse connection of a credential: at most one.
#[derive(Debug, Default)]
pub struct ReverseSlot(Mutex<SlotState>);

#[derive(Debug, Default)]
struct SlotState {
    session: Option<MuxSession>,
    /// Until when a connection is expected to return. `None` until the first one is asked for.
    return_deadline: Option<Instant>,
    /// Whether the credential is gone.
    is_closed: bool,
}

impl ReverseSlot {
    /// Makes `session` the current one, and returns the session that it replaces, which only
    /// finishes the streams that it has. If the slot is closed, so is `session`.
    pub fn install(&self, session: MuxSession) -> Option<MuxSession> {
        let mut state = self.lock();
        if state.is_closed {
            drop(state);
            session.close();
            return None;
        }
        let replaced = state.session.replace(session);
        drop(state);
        if let Some(replaced) = &replaced {
            replaced.retire();
        }
        replaced
    }

    /// Removes `session` if it is the current one. Returns whether it was.
    pub fn remove(&self, session: &MuxSession) -> bool {
        let mut state = self.lock();
        let removed = state.session.take_if(|current| current.is_same(session));
        if removed.is_some() {
            state.return_deadline = Some(Instant::now() + RETURN_TIMEOUT);
        }
        removed.is_some()
    }

    /// Returns whether requests can be sent over a connection.
    pub fn is_connected(&self) -> bool {
        self.lock()
            .session
            .as_ref()
            .is_some_and(MuxSession::is_open)
    }

    /// Returns until when a request may wait for a connection: for a short time after the one
    /// before ended, or after the first request for it.
    pub fn return_deadline(&self) -> Instant {
        let after = || Instant::now() + RETURN_TIMEOUT;
        *self.lock().return_deadline.get_or_insert_with(after)
    }

    /// Returns the current connection.
    pub fn current(&self) -> Option<MuxSession> {
        self.lock().session.clone()
    }

    /// Opens a stream over the connection.
    ///
    /// # Errors
    /// There is no connection, or it takes no more streams.
    pub fn open(&self) -> Result<MuxStream, ReverseError> {
        let session = self.current().ok_or(ReverseError::NotConnected)?;
        Ok(session.open()?)
    }

    /// Closes the connection, if there is one, and those that are still being made.
    pub fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        if let Some(session) = state.session.take() {
            session.close();
        }
    }

    fn lock(&self) -> MutexGuard<'_, SlotState> {
        // A panic elsewhere cannot leave a handle half-written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::io::duplex;

    use super::*;
    use crate::reverse::mux::{MuxEnd, MuxLimits, MuxSide, multiplex};

    /// A credential that the configuration loses while its gateway connects.
    #[tokio::test]
    async fn a_session_for_a_closed_slot_ends() {
        let (io, _peer) = duplex(1024);
        let limits = MuxLimits {
            streams: 1,
            keep_alive: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
        };
        let (session, driver) = multiplex(io, Bytes::new(), MuxSide::Opener, limits);
        let slot = ReverseSlot::default();
        slot.close();
        assert!(slot.install(session).is_none());
        let end = tokio::time::timeout(Duration::from_secs(20), driver).await;
        assert_eq!(end.expect("an end"), MuxEnd::Closed);
        assert!(!slot.is_connected());
    }
}
