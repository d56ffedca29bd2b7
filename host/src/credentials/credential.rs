//! One credential: its state behind a lock, and those that wait for changes of it.
//!
//! Owns the lock and the notifications. Does not decide anything: `state` does. Invariant: no
//! notification is sent, and nothing is waited for, while the lock is held.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Uri;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

use super::state::{CredentialState, RequestsSincePoll, StateChange};
use crate::config::{CredentialConfig, CredentialSource, DialTarget, ReverseRole, WindowCaps};
use crate::reverse::{ReverseSlot, reverse_base};
use crate::values::clock::Timestamp;
use crate::values::secret::SecretString;

/// A credential: what upstream accepts, and how much of its account is used.
pub struct Credential {
    tag: Arc<str>,
    source: CredentialSource,
    /// `None` if no gateway can connect to this one for it.
    reverse: Option<Arc<ReverseSlot>>,
    in_flight: AtomicU32,
    /// Counts the changes of its plan and weight.
    plan_version: AtomicU64,
    /// Whether there were requests since the last poll.
    had_requests_since_poll: AtomicBool,
    unusable: Notify,
    refresh_needed: Notify,
    poll_needed: Notify,
    /// Counts the refreshes that have ended.
    refreshes: watch::Sender<u64>,
    state: Mutex<CredentialState>,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential")
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

impl Credential {
    /// Creates a credential that is not loaded yet.
    pub fn new(config: CredentialConfig) -> Self {
        let may_be_reversed = matches!(
            config.source,
            CredentialSource::External {
                reverse: ReverseRole::Receiver,
                ..
            }
        );
        Self {
            tag: config.tag.into(),
            source: config.source,
            reverse: may_be_reversed.then(Arc::default),
            in_flight: AtomicU32::new(0),
            plan_version: AtomicU64::new(0),
            had_requests_since_poll: AtomicBool::new(false),
            unusable: Notify::new(),
            refresh_needed: Notify::new(),
            poll_needed: Notify::new(),
            refreshes: watch::Sender::new(0),
            state: Mutex::new(CredentialState::new(config.caps, config.poll_interval)),
        }
    }

    /// Returns its name in the configuration.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Returns its name in the configuration, for values that outlive the credential.
    pub fn shared_tag(&self) -> &Arc<str> {
        &self.tag
    }

    /// Whether it has the name and the source of `config`, whatever the caps and the poll interval.
    pub fn matches_config(&self, config: &CredentialConfig) -> bool {
        *self.tag == *config.tag && self.source == config.source
    }

    /// Applies the caps and the poll interval of `config`.
    pub fn reconfigure(&self, config: &CredentialConfig) {
        self.state().reconfigure(config.caps, config.poll_interval);
        self.poll_needed.notify_one();
    }

    /// Returns the path of its auth.json, if it has one.
    pub fn path(&self) -> Option<&Path> {
        match &self.source {
            CredentialSource::File(path) => Some(path),
            CredentialSource::External { .. } => None,
        }
    }

    /// Whether it is another gateway.
    pub fn is_external(&self) -> bool {
        self.path().is_none()
    }

    /// Returns the base of the URIs of requests to the other gateway, if it is one. Requests are
    /// sent over its reverse connection while there is one.
    pub fn external_base(&self) -> Option<Uri> {
        let CredentialSource::External { url, .. } = &self.source else {
            return None;
        };
        match (url, &self.reverse) {
            (Some(url), Some(slot)) if !slot.is_connected() => Some(url.clone()),
            (Some(url), None) => Some(url.clone()),
            (Some(_), Some(_)) | (None, _) => Some(reverse_base()),
        }
    }

    /// Returns where to connect in place of the host of its URL.
    pub fn dial_target(&self) -> DialTarget {
        match &self.source {
            CredentialSource::File(_) => DialTarget::default(),
            CredentialSource::External { target, .. } => target.clone(),
        }
    }

    /// Returns the place of its reverse connection, if another gateway may connect to this one.
    pub fn reverse_slot(&self) -> Option<&Arc<ReverseSlot>> {
        self.reverse.as_ref()
    }

    /// Returns whether another gateway that presents `token` may connect to this one for it. Takes
    /// the same time for every token of a length.
    pub fn is_reversed_by(&self, token: &SecretString) -> bool {
        matches!(
            &self.source,
            CredentialSource::External { token: known, reverse: ReverseRole::Receiver, .. }
                if known == token
        )
    }

    /// Returns the URL to connect to and the token to present there, if this gateway connects to
    /// the other one.
    pub fn reverse_target(&self) -> Option<(&Uri, &SecretString)> {
        match &self.source {
            CredentialSource::External {
                url: Some(url),
                token,
                reverse: ReverseRole::Connector,
                ..
            } => Some((url, token)),
            CredentialSource::File(_) | CredentialSource::External { .. } => None,
        }
    }

    /// Returns the shares of its windows, in percent, at which it is not used any more.
    pub fn caps(&self) -> WindowCaps {
        self.state().caps()
    }

    /// Returns a number that changes whenever its plan or weight does.
    pub fn plan_version(&self) -> u64 {
        self.plan_version.load(Ordering::Acquire)
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn track_request(self: &Arc<Self>) -> InFlightGuard {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        if !self.had_requests_since_poll.swap(true, Ordering::Relaxed) {
            self.poll_needed.notify_one();
        }
        InFlightGuard {
            credential: Arc::clone(self),
        }
    }

    /// Waits until it becomes unusable: upstream rate-limits it, its use reaches a cap, or its file
    /// is removed or broken. Changes after this call count, whether the returned future was polled
    /// before them or not.
    pub fn until_unusable(&self) -> Notified<'_> {
        self.unusable.notified()
    }

    pub(super) fn source(&self) -> &CredentialSource {
        &self.source
    }

    /// Returns the number of requests in flight.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
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

    pub(super) fn refresh_needed(&self) -> &Notify {
        &self.refresh_needed
    }

    pub(super) fn poll_needed(&self) -> &Notify {
        &self.poll_needed
    }

    pub(super) fn refreshes(&self) -> &watch::Sender<u64> {
        &self.refreshes
    }

    /// Notifies those that watch the credential. The lock must not be held.
    pub(super) fn publish(&self, change: StateChange) {
        if change.plan_changed {
            self.plan_version.fetch_add(1, Ordering::Release);
        }
        if change.became_unusable {
            self.unusable.notify_waiters();
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, CredentialState> {
        // A panic elsewhere cannot leave these plain figures half-written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the state, as it is at `now`.
    pub(super) fn state_at(&self, now: Timestamp) -> MutexGuard<'_, CredentialState> {
        let mut state = self.state();
        state.advance_clock(now);
        state
    }
}

impl Drop for Credential {
    /// Closes its reverse connection: the configuration does not have it any more, and no request
    /// uses it.
    fn drop(&mut self) {
        if let Some(slot) = &self.reverse {
            slot.close();
        }
    }
}

/// Counts a request as in flight on a credential.
#[derive(Debug)]
pub struct InFlightGuard {
    credential: Arc<Credential>,
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.credential.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
