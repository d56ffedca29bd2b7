//! The entries of the configuration that share a login: their caps, their intervals, what their
//! routes prevented, and those that wait for their changes.
//!
//! Does not know what is used of the account. Invariant: an entry is in the list as long as its
//! credential exists.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::recent_requests::RecentRequests;
use super::unsent_attempts::UnsentAttempts;
use crate::config::WindowCaps;

/// What the tasks and requests of one entry wait for.
#[derive(Debug, Default)]
pub(crate) struct EntrySignals {
    /// The entry became unusable.
    pub(crate) unusable: Notify,
    /// A refresh may be due.
    pub(crate) refresh_needed: Notify,
    /// A poll may be due.
    pub(crate) poll_needed: Notify,
}

/// An entry of the configuration.
#[derive(Debug)]
pub(super) struct LoginEntry {
    pub(super) signals: Arc<EntrySignals>,
    pub(super) caps: WindowCaps,
    /// `None` if it is never polled.
    pub(super) poll_interval: Option<Duration>,
    /// Whether it was used up before the change that is being made.
    pub(super) was_used_up: bool,
    pub(super) requests: RecentRequests,
    pub(super) unsent_refreshes: UnsentAttempts,
    pub(super) unsent_polls: UnsentAttempts,
    /// Why the last request could not be sent; `None` once upstream responds again.
    pub(super) connect_failure: Option<String>,
    /// Why the last attempt failed to make a reverse connection, if it did.
    pub(super) reverse_failure: Option<String>,
}

/// The entries of one login.
#[derive(Debug, Default)]
pub(super) struct LoginEntries(Vec<LoginEntry>);

impl LoginEntries {
    /// Adds an entry, or replaces its settings.
    pub(super) fn set(
        &mut self,
        signals: &Arc<EntrySignals>,
        caps: WindowCaps,
        poll_interval: Option<Duration>,
    ) {
        match self.0.iter_mut().find(|entry| entry.is(signals)) {
            Some(entry) => {
                entry.caps = caps;
                entry.poll_interval = poll_interval;
            }
            None => self.0.push(LoginEntry {
                signals: Arc::clone(signals),
                caps,
                poll_interval,
                was_used_up: false,
                requests: RecentRequests::default(),
                unsent_refreshes: UnsentAttempts::default(),
                unsent_polls: UnsentAttempts::default(),
                connect_failure: None,
                reverse_failure: None,
            }),
        }
    }

    pub(super) fn remove(&mut self, signals: &Arc<EntrySignals>) {
        self.0.retain(|entry| !entry.is(signals));
    }

    /// Returns the entry of a credential that exists.
    pub(super) fn of(&self, signals: &Arc<EntrySignals>) -> &LoginEntry {
        match self.0.iter().find(|entry| entry.is(signals)) {
            Some(entry) => entry,
            None => unreachable!("a credential's entry is removed when it is dropped"),
        }
    }

    /// As [`Self::of`], to change it.
    pub(super) fn of_mut(&mut self, signals: &Arc<EntrySignals>) -> &mut LoginEntry {
        match self.0.iter_mut().find(|entry| entry.is(signals)) {
            Some(entry) => entry,
            None => unreachable!("a credential's entry is removed when it is dropped"),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &LoginEntry> {
        self.0.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut LoginEntry> {
        self.0.iter_mut()
    }

    /// Returns the signals of all entries.
    pub(super) fn signals(&self) -> Vec<Arc<EntrySignals>> {
        self.0
            .iter()
            .map(|entry| Arc::clone(&entry.signals))
            .collect()
    }
}

impl LoginEntry {
    fn is(&self, signals: &Arc<EntrySignals>) -> bool {
        Arc::ptr_eq(&self.signals, signals)
    }
}
