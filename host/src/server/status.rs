//! What operators look at: how services, policies and the configuration are.
//!
//! Owns the table of policies, and nothing that keeps a service alive; refuses to know who looks. Invariant: whoever looks
//! waits for nobody but for another look.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::sync::watch;

use super::policies::{LastReload, Policies};
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::pipeline::Service;
use crate::values::phase::Phase;

/// What operators look at.
pub(super) struct Board {
    /// Not held: a gateway has ended when nothing holds a service any more.
    pub(super) services: RwLock<Vec<Weak<Service>>>,
    pub(super) policies: Mutex<Policies>,
    pub(super) world: BoardWorld,
    /// What came of the last change of the configuration.
    pub(super) configured: Mutex<Configured>,
}

/// What the board shows besides.
pub(super) struct BoardWorld {
    pub(super) ledger: Weak<Ledger>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) phases: watch::Receiver<Phase>,
}

/// What came of changes of the configuration.
#[derive(Debug, Default, Clone)]
pub(super) struct Configured {
    pub(super) taken_up: u64,
    pub(super) refused: u64,
    pub(super) last: Option<LastReload>,
}

impl Board {
    pub(super) fn policies(&self) -> MutexGuard<'_, Policies> {
        self.policies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn services(&self) -> Vec<Arc<Service>> {
        self.services
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    pub(super) fn refuse_configuration(&self, reason: &str) {
        tracing::error!(
            reason,
            "the configuration is not taken up; the one before it goes on"
        );
        let mut configured = self.configured();
        configured.refused += 1;
        let (serves, reason) = (configured.taken_up, Some(reason.to_owned()));
        configured.last = Some(LastReload::now("failed", serves, reason, Duration::ZERO));
    }

    pub(super) fn configured(&self) -> MutexGuard<'_, Configured> {
        self.configured
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
