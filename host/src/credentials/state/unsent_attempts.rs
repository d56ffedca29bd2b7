//! The refreshes or polls of an entry that its route did not let through.
//!
//! Does not know what was attempted. Invariant: such an attempt pauses only the entry, because
//! another entry of the same login has another route.

use std::time::Duration;

use crate::values::clock::Timestamp;

/// A pause that ends later than this was set before the clock was set back.
const PAUSE_MAX: Duration = Duration::from_secs(60 * 60);

/// Consecutive attempts of one entry that were not sent.
#[derive(Debug, Default)]
pub(super) struct UnsentAttempts {
    count: usize,
    paused_until: Option<Timestamp>,
    reason: Option<String>,
}

impl UnsentAttempts {
    /// Adds an attempt; the next one is made after `pause`.
    pub(super) fn add(&mut self, reason: &str, pause: Duration, now: Timestamp) {
        self.count += 1;
        self.paused_until = Some(now.after(pause));
        self.reason = Some(reason.to_owned());
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Returns when an attempt that is due at `due` is made.
    pub(super) fn delay(&self, due: Timestamp, now: Timestamp) -> Timestamp {
        self.paused_until
            .filter(|until| until.since(now) <= PAUSE_MAX)
            .map_or(due, |until| until.max(due))
    }

    /// Returns why the last attempt was not sent.
    pub(super) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}
