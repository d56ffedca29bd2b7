//! When a task of the upkeep begins, when it reads a file again without a change event, and when it
//! ends.

use std::time::Duration;

use tokio::sync::watch;

use crate::values::phase::GatewayPhase;

/// How often a file is read without a change event: some file systems send none.
pub(super) const REREAD_INTERVAL: Duration = Duration::from_secs(10);

/// When refreshes and polls begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpkeepStart {
    /// Together with the gateway's start.
    AtOnce,
    /// Once the process before this one has ended its own.
    Later,
}

/// Waits until refreshes and polls begin. Returns `None` if they are to end before.
pub(super) async fn wait_for_start(
    start: &mut watch::Receiver<UpkeepStart>,
    stop: &mut StopSignal,
) -> Option<()> {
    tokio::select! {
        begun = start.wait_for(|start| *start == UpkeepStart::AtOnce) => begun.ok().map(drop),
        () = stop.received() => None,
    }
}

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
    /// As [`StopSignal::received`], for a task that only reads: the requests of a gateway that
    /// retires need it.
    pub(super) async fn received_by_reader(&mut self) {
        let dropped = async { while self.upkeep.changed().await.is_ok() {} };
        let is_over =
            |phase: &GatewayPhase| !matches!(phase, GatewayPhase::Running | GatewayPhase::Retiring);
        tokio::select! {
            _ = self.phases.wait_for(is_over) => {}
            () = dropped => {}
        }
    }
}
