//! A login: what the entries of the configuration that name one file share.
//!
//! Owns the state behind its lock, and finds the login of a file. Does not decide anything: `state`
//! does. Invariant: there is one login for each file that a credential uses.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

use super::state::{CredentialState, RequestsSincePoll};
use crate::config::{CredentialConfig, CredentialSource};

/// Tokens and their refreshes, windows and polls. Caps and intervals belong to each entry.
#[derive(Default)]
pub(super) struct Login {
    /// Counts the changes of its plan and weight.
    pub(super) plan_version: AtomicU64,
    /// Whether there were requests since the last poll.
    had_requests_since_poll: AtomicBool,
    /// Counts the refreshes that have ended.
    pub(super) refreshes: watch::Sender<u64>,
    /// Counts the changes of what is known.
    changes: watch::Sender<u64>,
    state: Mutex<CredentialState>,
}

impl Login {
    pub(super) fn state(&self) -> MutexGuard<'_, CredentialState> {
        // A panic elsewhere cannot leave these plain figures half-written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn announce_change(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Notes a request. If it is the first one since the last poll, the next one may be due.
    pub(super) fn note_request(&self) {
        if !self.had_requests_since_poll.swap(true, Ordering::Relaxed) {
            self.request_polls();
        }
    }

    /// Lets the entries look whether a poll is due.
    pub(super) fn request_polls(&self) {
        let signals = self.state().signals();
        for signals in signals {
            signals.poll_needed.notify_one();
        }
    }

    /// Lets the entries look whether a refresh is due.
    pub(super) fn request_refreshes(&self) {
        let signals = self.state().signals();
        for signals in signals {
            signals.refresh_needed.notify_one();
        }
    }

    pub(super) fn requests_since_poll(&self) -> RequestsSincePoll {
        if self.had_requests_since_poll.load(Ordering::Relaxed) {
            RequestsSincePoll::Some
        } else {
            RequestsSincePoll::None
        }
    }

    /// Forgets the requests until now: later ones ask for the next poll.
    pub(super) fn reset_requests_since_poll(&self) {
        self.had_requests_since_poll.store(false, Ordering::Relaxed);
    }
}

/// The logins of all services, by file.
#[derive(Default)]
pub struct LoginDirectory(Mutex<HashMap<PathBuf, Weak<Login>>>);

impl std::fmt::Debug for LoginDirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoginDirectory")
    }
}

/// Whether a login was created for its first credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginOrigin {
    /// No other credential uses it: it is not loaded yet.
    New,
    /// Another credential uses it, too.
    Shared,
}

impl LoginDirectory {
    /// Returns the login of a credential. Another gateway's token is no login that could be shared.
    pub(super) fn login_of(&self, config: &CredentialConfig) -> (Arc<Login>, LoginOrigin) {
        let CredentialSource::File(path) = &config.source else {
            return (Arc::default(), LoginOrigin::New);
        };
        let mut logins = self.logins();
        if let Some(login) = logins.get(path).and_then(Weak::upgrade) {
            return (login, LoginOrigin::Shared);
        }
        logins.retain(|_, login| login.strong_count() > 0);
        let login = Arc::default();
        logins.insert(path.clone(), Arc::downgrade(&login));
        (login, LoginOrigin::New)
    }

    /// Adds the login of the file at `path`.
    pub(super) fn insert(&self, path: PathBuf, login: &Arc<Login>) {
        self.logins().insert(path, Arc::downgrade(login));
    }

    /// Whether a credential uses the file of `config`.
    pub fn is_in_use(&self, config: &CredentialConfig) -> bool {
        match &config.source {
            CredentialSource::File(path) => self
                .logins()
                .get(path)
                .is_some_and(|login| login.strong_count() > 0),
            CredentialSource::External { .. } => false,
        }
    }

    fn logins(&self) -> MutexGuard<'_, HashMap<PathBuf, Weak<Login>>> {
        // A panic elsewhere cannot leave the map half-written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
