//! The place of a credential's reverse connection.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::mux::{MuxOpenError, MuxSession, MuxStream};

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
pub struct ReverseSlot(Mutex<Option<MuxSession>>);

impl ReverseSlot {
    /// Makes `session` the current one, and returns the session that it replaces, which only
    /// finishes the streams that it has.
    pub fn install(&self, session: MuxSession) -> Option<MuxSession> {
        let replaced = self.lock().replace(session);
        if let Some(replaced) = &replaced {
            replaced.retire();
        }
        replaced
    }

    /// Removes `session` if it is the current one. Returns whether it was.
    pub fn remove(&self, session: &MuxSession) -> bool {
        let mut current = self.lock();
        let is_current = current
            .as_ref()
            .is_some_and(|current| current.is_same(session));
        if is_current {
            *current = None;
        }
        is_current
    }

    /// Returns whether requests can be sent over a connection.
    pub fn is_connected(&self) -> bool {
        self.lock().as_ref().is_some_and(MuxSession::is_open)
    }

    /// Opens a stream over the connection.
    ///
    /// # Errors
    /// There is no connection, or it takes no more streams.
    pub fn open(&self) -> Result<MuxStream, ReverseError> {
        let session = self.lock().clone();
        let session = session.ok_or(ReverseError::NotConnected)?;
        Ok(session.open()?)
    }

    /// Closes the connection, if there is one.
    pub fn close(&self) {
        if let Some(session) = self.lock().take() {
            session.close();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<MuxSession>> {
        // A panic elsewhere cannot leave a handle half-written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
