//! A gate in a reply: upstream stops before it until the test opens it, and the test can wait until upstream stands
//! there. Invariant: opened once, it stays open.

use tokio::sync::watch;

use crate::WAIT_MAX;

/// A point in a [`Reply`](crate::Reply) that upstream passes only when told to. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    open: watch::Sender<bool>,
    reached: watch::Sender<usize>,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Gate {
            open: watch::Sender::new(false),
            reached: watch::Sender::new(0),
        }
    }

    /// Lets everything pass, now and later.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Waits until a reply stands before the gate (all that comes before it was handed to the connection).
    ///
    /// # Panics
    /// After [`WAIT_MAX`].
    pub async fn wait_until_reached(&self) {
        self.wait_until_reached_times(1).await;
    }

    /// As [`wait_until_reached`](Self::wait_until_reached), for the `times`-th arrival: several replies may share a
    /// gate.
    ///
    /// # Panics
    /// After [`WAIT_MAX`].
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

    /// The reply's side: says that it is here, and waits.
    pub(crate) async fn pass(self) {
        self.reached.send_modify(|count| *count += 1);
        // Fails only where every sender is gone, and `self` holds one.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}
