//! When each side of a socket was last heard from, and the deadlines of a socket.

use tokio::time::Instant;

/// The last sign of life of each side.
pub(super) struct LastActivity {
    pub(super) client: Instant,
    pub(super) upstream: Instant,
    /// The last message from either side.
    pub(super) message: Instant,
    /// What was received since the last update: the clock is read once for all of it.
    pub(super) now: NewActivity,
    /// The client was sent a ping since.
    pub(super) pinged: bool,
    /// A response ended since the last update.
    pub(super) turn_ended: bool,
}

/// Signs of life that [`LastActivity`] does not include yet.
#[derive(Default)]
pub(super) struct NewActivity {
    pub(super) client: bool,
    pub(super) upstream: bool,
    pub(super) message: bool,
}

impl LastActivity {
    /// Returns both sides as heard from at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            client: now,
            upstream: now,
            message: now,
            now: NewActivity::default(),
            pinged: false,
            turn_ended: false,
        }
    }

    /// Dates what was received since the last update.
    pub(super) fn update(&mut self) {
        let NewActivity {
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

/// The waits of a socket that end at a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SocketDeadlines {
    /// One side has closed, and the other is to close by then.
    pub(super) for_close: Option<Instant>,
    /// The end of a response waits for its row until then at most.
    pub(super) for_commit: Option<Instant>,
}
