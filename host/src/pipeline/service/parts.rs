//! What a service is made of.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::credentials::Credential;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::policy::{BalancerGeneration, PricerGeneration, RewriterGeneration};
use crate::upstream::UpstreamClient;
use crate::values::headers::hops::HopId;
use crate::values::limits::Limits;
use crate::values::phase::GatewayPhase;

/// What the stages use: credentials, policies, and where rows and counts are written.
#[derive(Debug, Clone)]
pub(crate) struct ServiceParts {
    /// The credentials, in the order of the configuration.
    pub(crate) credentials: Vec<Arc<Credential>>,
    /// The connections of each credential, in the same order.
    pub(crate) upstreams: Vec<UpstreamClient>,
    /// The balancer of each pool, in the order of the configuration.
    pub(crate) balancers: Vec<Arc<BalancerGeneration>>,
    /// The balancer that chooses when a pool's own balancer fails.
    pub(crate) stand_in: Arc<BalancerGeneration>,
    /// The rewriters, in the order in which they edit a head.
    pub(crate) rewriters: Vec<Arc<RewriterGeneration>>,
    pub(crate) pricer: Arc<PricerGeneration>,
    pub(crate) ledger: Arc<Ledger>,
    /// What is counted for operators.
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Arc<Limits>,
    /// The service's id among the hops of a request.
    pub(crate) hop: HopId,
    /// Whether the gateway is serving, draining or ending.
    pub(crate) phases: watch::Receiver<GatewayPhase>,
    /// Held as long as anything holds the service, so that the receiver learns when all of its
    /// requests have ended.
    pub(crate) _alive: mpsc::Sender<()>,
}
