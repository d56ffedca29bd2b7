//! One credential: an entry of the configuration, and the login that it uses.
//!
//! Owns the notifications. Does not decide anything: `state` does. Invariant: no notification is
//! sent, and nothing is waited for, while the login's lock is held.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, MutexGuard};

use http::Uri;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

use super::login::{Login, LoginDirectory, LoginOrigin};
use super::state::{CredentialState, EntrySignals, RequestsSincePoll, StateChange};
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
    signals: Arc<EntrySignals>,
    login: Arc<Login>,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential")
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

impl Credential {
    /// Creates a credential that is not loaded yet, whose login no other one uses.
    pub fn new(config: CredentialConfig) -> Self {
        Self::with_login(config, Arc::default())
    }

    /// Creates a credential with the login that others of its file use. A new login is not loaded
    /// yet.
    pub fn in_directory(config: CredentialConfig, logins: &LoginDirectory) -> (Self, LoginOrigin) {
        let (login, origin) = logins.login_of(&config);
        (Self::with_login(config, login), origin)
    }

    fn with_login(config: CredentialConfig, login: Arc<Login>) -> Self {
        let may_be_reversed = matches!(
            config.source,
            CredentialSource::External {
                reverse: ReverseRole::Receiver,
                ..
            }
        );
        let signals = Arc::default();
        login
            .state()
            .set_entry(&signals, config.caps, config.poll_interval);
        Self {
            tag: config.tag.into(),
            source: config.source,
            reverse: may_be_reversed.then(Arc::default),
            in_flight: AtomicU32::new(0),
            signals,
            login,
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

    /// Applies the caps and the poll interval of `config`. Polls that were stopped begin again.
    pub fn reconfigure(&self, config: &CredentialConfig) {
        let mut state = self.state();
        state.set_entry(&self.signals, config.caps, config.poll_interval);
        state.resume_polls();
        drop(state);
        self.signals.poll_needed.notify_one();
        self.login.announce_change();
    }

    /// Returns the path of its auth.json, if it has one.
    pub fn path(&self) -> Option<&Path> {
        match &self.source {
            CredentialSource::File(path) => Some(path),
            CredentialSource::External { .. } => None,
        }
    }

    /// Whether both are about one account, because they share a file.
    pub fn shares_login_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.login, &other.login)
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
        self.state().caps_of(&self.signals)
    }

    /// Returns a number that changes whenever its plan or weight does.
    pub fn plan_version(&self) -> u64 {
        self.login.plan_version.load(Ordering::Acquire)
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn track_request(self: &Arc<Self>) -> InFlightGuard {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.login.note_request();
        InFlightGuard {
            credential: Arc::clone(self),
        }
    }

    /// Waits until it becomes unusable: upstream rate-limits it, its use reaches a cap, or its file
    /// is removed or broken. Changes after this call count, whether the returned future was polled
    /// before them or not.
    pub fn until_unusable(&self) -> Notified<'_> {
        self.signals.unusable.notified()
    }

    pub(super) fn source(&self) -> &CredentialSource {
        &self.source
    }

    /// Returns the number of requests in flight.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn requests_since_poll(&self) -> RequestsSincePoll {
        self.login.requests_since_poll()
    }

    pub(super) fn login(&self) -> &Login {
        &self.login
    }

    pub(super) fn signals(&self) -> &Arc<EntrySignals> {
        &self.signals
    }

    pub(super) fn refresh_needed(&self) -> &Notify {
        &self.signals.refresh_needed
    }

    pub(super) fn poll_needed(&self) -> &Notify {
        &self.signals.poll_needed
    }

    pub(super) fn refreshes(&self) -> &watch::Sender<u64> {
        &self.login.refreshes
    }

    /// Returns a receiver that learns of each change of what is known about the credential.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.login.changes()
    }

    /// Notifies those that watch the credential, and the others of its login. The lock must not be
    /// held.
    pub(super) fn publish(&self, change: StateChange) {
        if change.plan_changed {
            self.login.plan_version.fetch_add(1, Ordering::Release);
        }
        for signals in change.became_unusable {
            signals.unusable.notify_waiters();
        }
        self.login.announce_change();
    }

    pub(super) fn state(&self) -> MutexGuard<'_, CredentialState> {
        self.login.state()
    }

    /// Locks the state, as it is at `now`.
    pub(super) fn state_at(&self, now: Timestamp) -> MutexGuard<'_, CredentialState> {
        let mut state = self.state();
        state.advance_clock(now);
        state
    }
}

impl LoginDirectory {
    /// Returns the directory of the logins that `credentials` use.
    pub fn of<'a>(credentials: impl IntoIterator<Item = &'a Arc<Credential>>) -> Self {
        let logins = Self::default();
        for credential in credentials {
            if let Some(path) = credential.path() {
                logins.insert(path.to_owned(), &credential.login);
            }
        }
        logins
    }
}

impl Drop for Credential {
    /// Closes its reverse connection: the configuration does not have it any more, and no request
    /// uses it.
    fn drop(&mut self) {
        if let Some(slot) = &self.reverse {
            slot.close();
        }
        self.state().remove_entry(&self.signals);
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
