//! When a task of the upkeep reads a file again without a change event, and when it ends.

use std::time::Duration;

use tokio::sync::watch;

use crate::values::phase::GatewayPhase;

/// How often a file is read without a change event: some file systems send none.
pub(super) const REREAD_INTERVAL: Duration = Duration::from_secs(10);

/// Tells a task when to end: the gateway shuts down, or what the task is for was dropped.
#[derive(Clone)]
pub(super) struct StopSignal {
    phases: watch::Receiver<GatewayPhase>,
    upkeep: watch::Receiver<()>,
}

impl StopSignal {
    /// Creates a signal that comes once `upkeep`'s sender is dropped, at the latest.
    pub(super) fn new(phases: &watch::Receiver<GatewayPhase>, upkeep: watch::Receiver<()>) -> Self {
        Self {
            phases: phases.clone(),
            upkeep,
        }
    }

    pub(super) async fn received(&mut self) {
        let dropped = async { while self.upkeep.changed().await.is_ok() {} };
        tokio::select! {
            // An error means that the gateway was dropped.
            _ = self.phases.wait_for(|phase| *phase != GatewayPhase::Running) => {}
            () = dropped => {}
        }
    }
}
