//! A counter that a test can wait for. Invariant: it only grows, so a wait cannot miss a value.

use tokio::sync::watch;

use crate::waits::WAIT_MAX;

#[derive(Debug, Default)]
pub(crate) struct Count {
    value: watch::Sender<usize>,
}

impl Count {
    pub(crate) fn add_one(&self) {
        self.value.send_modify(|value| *value += 1);
    }

    pub(crate) fn now(&self) -> usize {
        *self.value.borrow()
    }

    /// Waits until the count is at least `least`. Panics after [`WAIT_MAX`] with `what` and the
    /// count.
    pub(crate) async fn wait_for(&self, least: usize, what: &str) {
        let mut value = self.value.subscribe();
        let waited = tokio::time::timeout(WAIT_MAX, value.wait_for(|value| *value >= least))
            .await
            .is_ok();
        assert!(
            waited,
            "scripted upstream: expected {least} {what} within {WAIT_MAX:?}, saw {}",
            self.now()
        );
    }
}
