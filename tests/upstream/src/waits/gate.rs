//! A gate in a reply: upstream stops at it until the test opens it, and the test can wait until
//! upstream has stopped there. Invariant: an open gate stays open.

use tokio::sync::watch;

use crate::waits::WAIT_MAX;

/// A point in a [`Reply`](crate::Reply) that upstream passes only once a test opens it. Clones are
/// the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    open: watch::Sender<bool>,
    reached: watch::Sender<usize>,
}

impl Gate {
    /// Creates a closed gate.
    pub fn new() -> Self {
        Gate {
            open: watch::Sender::new(false),
            reached: watch::Sender::new(0),
        }
    }

    /// Opens the gate for every reply, now and later.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Waits until a reply reaches the gate: everything before it was handed to the connection.
    ///
    /// # Panics
    /// Panics after [`WAIT_MAX`].
    pub async fn wait_until_reached(&self) {
        self.wait_until_reached_times(1).await;
    }

    /// As [`wait_until_reached`](Self::wait_until_reached), for `times` replies that share the
    /// gate.
    ///
    /// # Panics
    /// Panics after [`WAIT_MAX`].
    pub async fn wait_until_reached_times(&self, times: usize) {
        let mut reached = self.reached.subscribe();
        let waited =
            tokio::time::timeout(WAIT_MAX, reached.wait_for(|count| *count >= times)).await;
        assert!(
            waited.is_ok(),
            "scripted upstream: gate reached {} times, expected {times}, after {WAIT_MAX:?}",
            *self.reached.borrow(),
        );
    }

    /// Reports that the reply has reached the gate, and waits until it is open.
    pub(crate) async fn pass(self) {
        self.reached.send_modify(|count| *count += 1);
        // Fails only if every sender is gone, and `self` holds one.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}
