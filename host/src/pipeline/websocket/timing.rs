//! When each side of a socket was heard last, and what a socket does not wait for for ever.

use tokio::time::Instant;

/// The last sign of life of each side.
pub(super) struct LastHeard {
    pub(super) client: Instant,
    pub(super) upstream: Instant,
    /// The last message of either.
    pub(super) message: Instant,
    /// What was heard since that was looked at: the clock is read once for all of it.
    pub(super) now: HeardSince,
    /// The client was sent a ping since.
    pub(super) pinged: bool,
    /// A response ended since that was looked at.
    pub(super) turn_ended: bool,
}

/// Signs of life that are not in [`LastHeard`] yet.
#[derive(Default)]
pub(super) struct HeardSince {
    pub(super) client: bool,
    pub(super) upstream: bool,
    pub(super) message: bool,
}

impl LastHeard {
    /// Both sides as heard at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            client: now,
            upstream: now,
            message: now,
            now: HeardSince::default(),
            pinged: false,
            turn_ended: false,
        }
    }

    pub(super) fn take_in(&mut self) {
        let HeardSince {
            client,
            upstream,
            message,
        } = std::mem::take(&mut self.now);
        if !(client || upstream || message) {
            return;
        }
        let now = Instant::now();
        if client {
            self.client = now;
            self.pinged = false;
        }
        if upstream {
            self.upstream = now;
        }
        if message {
            self.message = now;
        }
    }
}

/// What does not go on for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SocketDeadlines {
    /// One side has closed, and the other is to follow until then.
    pub(super) for_close: Option<Instant>,
    /// A response's end waits for its row, at most until then.
    pub(super) for_commit: Option<Instant>,
}
