//! What operators see of the running gateway.
//!
//! Owns the table of policies and the outcome of configuration changes. Does not know who reads it.
//! Invariant: it keeps no service and no ledger alive, and a reader waits for nothing but another
//! reader.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::sync::watch;

use super::policies::{LastReload, PolicyTable, ReloadOutcome};
use super::upkeep::certificates::CertificateState;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::pipeline::Service;
use crate::values::phase::GatewayPhase;

/// The state of the gateway that operators can ask for.
pub(super) struct GatewayStatus {
    /// Weak: the gateway has drained when the last service is gone.
    services: RwLock<Vec<Weak<Service>>>,
    policies: Mutex<PolicyTable>,
    /// In the order of the services at the start.
    certificates: RwLock<Vec<Arc<CertificateState>>>,
    configurations: Mutex<ConfigurationReloads>,
    ledger: Weak<Ledger>,
    metrics: Arc<Metrics>,
    phases: watch::Receiver<GatewayPhase>,
}

/// Configuration changes by outcome.
#[derive(Debug, Default, Clone)]
pub(super) struct ConfigurationReloads {
    pub(super) applied: u64,
    pub(super) rejected: u64,
    pub(super) last: Option<LastReload>,
}

impl GatewayStatus {
    pub(super) fn new(
        services: Vec<Weak<Service>>,
        policies: PolicyTable,
        ledger: &Arc<Ledger>,
        metrics: &Arc<Metrics>,
        phases: &watch::Receiver<GatewayPhase>,
    ) -> Self {
        Self {
            services: RwLock::new(services),
            policies: Mutex::new(policies),
            certificates: RwLock::default(),
            configurations: Mutex::default(),
            ledger: Arc::downgrade(ledger),
            metrics: Arc::clone(metrics),
            phases: phases.clone(),
        }
    }

    pub(super) fn policies(&self) -> MutexGuard<'_, PolicyTable> {
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

    pub(super) fn replace_services(&self, services: Vec<Weak<Service>>) {
        *self
            .services
            .write()
            .unwrap_or_else(PoisonError::into_inner) = services;
    }

    pub(super) fn add_certificate(&self, certificate: &Arc<CertificateState>) {
        self.certificates
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(certificate));
    }

    pub(super) fn certificates(&self) -> Vec<Arc<CertificateState>> {
        self.certificates
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The ledger; `None` once it is closed.
    pub(super) fn ledger(&self) -> Option<Arc<Ledger>> {
        self.ledger.upgrade()
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(super) fn phase(&self) -> GatewayPhase {
        *self.phases.borrow()
    }

    pub(super) fn configurations(&self) -> ConfigurationReloads {
        self.lock_configurations().clone()
    }

    pub(super) fn configuration_applied(&self, took: Duration) {
        let mut configurations = self.lock_configurations();
        configurations.applied += 1;
        let number = configurations.applied;
        configurations.last = Some(LastReload::now(ReloadOutcome::Ok, number, None, took));
    }

    pub(super) fn configuration_rejected(&self, reason: &str) {
        tracing::error!(reason, "configuration rejected, keeping the current one");
        let mut configurations = self.lock_configurations();
        configurations.rejected += 1;
        let number = configurations.applied;
        configurations.last = Some(LastReload::now(
            ReloadOutcome::Failed,
            number,
            Some(reason.to_owned()),
            Duration::ZERO,
        ));
    }

    fn lock_configurations(&self) -> MutexGuard<'_, ConfigurationReloads> {
        self.configurations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
