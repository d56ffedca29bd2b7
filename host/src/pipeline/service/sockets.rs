//! How many WebSockets each user has open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::authenticate::UserId;

/// Open WebSockets by user. The key is `None` if the service has no users.
#[derive(Debug, Default)]
pub(super) struct OpenSockets(Mutex<HashMap<Option<UserId>, u64>>);

/// The place of one WebSocket among those of its user; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct SocketPermit {
    sockets: Arc<OpenSockets>,
    user: Option<UserId>,
}

impl OpenSockets {
    pub(super) fn reserve(
        self: &Arc<Self>,
        user: Option<UserId>,
        sockets_max: u64,
    ) -> Option<SocketPermit> {
        let mut open = self.lock();
        let count = open.entry(user).or_default();
        if *count >= sockets_max {
            return None;
        }
        *count += 1;
        Some(SocketPermit {
            sockets: Arc::clone(self),
            user,
        })
    }

    pub(super) fn count(&self) -> u64 {
        self.lock().values().sum()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Option<UserId>, u64>> {
        // A panic elsewhere cannot leave a count half-written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SocketPermit {
    fn drop(&mut self) {
        let mut open = self.sockets.lock();
        match open.get_mut(&self.user) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(open.remove(&self.user)),
        }
    }
}
