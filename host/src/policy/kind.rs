//! The kinds of policies, and a generation of any kind.

pub(crate) mod balancer;
mod guest_text;
mod header_edits;
mod pool_table;
pub(crate) mod pricer;
pub(crate) mod rewriter;

use std::sync::Arc;

use self::balancer::BalancerGeneration;
use self::pricer::PricerGeneration;
use self::rewriter::RewriterGeneration;
use crate::config::{PolicyConfig, PolicyKind};
use crate::policy::call::recorded::{CallArguments, CallOutcome, RecordedCall};
use crate::policy::contract::identity::ComponentIdentity;
use crate::policy::contract::imports;
use crate::policy::engine::PolicyEngine;
use crate::policy::generation::component::{GenerationControl, GenerationStatus};
use crate::policy::generation::load::LoadOptions;
use crate::policy::generation::load_error::PolicyLoadError;
use crate::policy::generation::shared::SharedPolicyState;
use crate::policy::generation::source::ComponentBytes;
use crate::values::limits::Limits;

/// A generation of a policy of any kind.
#[derive(Debug, Clone)]
pub enum PolicyGeneration {
    /// It selects a credential for a request.
    Balancer(Arc<BalancerGeneration>),
    /// It edits header fields.
    Rewriter(Arc<RewriterGeneration>),
    /// It prices the tokens of a response.
    Pricer(Arc<PricerGeneration>),
}

impl PolicyGeneration {
    /// Loads a component and tests it.
    ///
    /// # Errors
    /// The component or its configuration was rejected.
    pub(crate) fn load(
        engine: &PolicyEngine,
        policy: &PolicyConfig,
        source: &ComponentBytes,
        options: &LoadOptions<'_>,
    ) -> Result<Self, PolicyLoadError> {
        Ok(match policy.kind {
            PolicyKind::Balancer => {
                let balancer = BalancerGeneration::load(engine, policy, source, options)?;
                Self::Balancer(Arc::new(balancer))
            }
            PolicyKind::Rewriter => {
                let rewriter = RewriterGeneration::load(engine, policy, source, options)?;
                Self::Rewriter(Arc::new(rewriter))
            }
            PolicyKind::Pricer => {
                let pricer = PricerGeneration::load(engine, policy, source, options)?;
                Self::Pricer(Arc::new(pricer))
            }
        })
    }

    /// Creates a generation without a component: each call fails with `reason`.
    pub(crate) fn unavailable(
        policy: &PolicyConfig,
        shared: &Arc<SharedPolicyState>,
        reason: String,
    ) -> Self {
        match policy.kind {
            PolicyKind::Balancer => {
                Self::Balancer(Arc::new(BalancerGeneration::unavailable(shared, reason)))
            }
            PolicyKind::Rewriter => Self::Rewriter(Arc::new(RewriterGeneration::unavailable(
                shared,
                reason,
                policy.on_failure,
            ))),
            PolicyKind::Pricer => {
                Self::Pricer(Arc::new(PricerGeneration::unavailable(shared, reason)))
            }
        }
    }

    /// Returns which component it is.
    pub fn identity(&self) -> &ComponentIdentity {
        self.control().identity()
    }

    /// Returns the generation's state.
    pub(crate) fn status(&self) -> GenerationStatus {
        self.control().status()
    }

    /// Closes the circuit breaker.
    pub(crate) fn close_breaker(&self) {
        self.control().close_breaker();
    }

    /// Closes the circuit breaker, and puts the generation on probation again.
    pub(crate) fn restart_probation(&self) {
        self.control().restart_probation();
    }

    fn control(&self) -> &dyn GenerationControl {
        match self {
            Self::Balancer(balancer) => balancer.control(),
            Self::Rewriter(rewriter) => rewriter.control(),
            Self::Pricer(pricer) => pricer.control(),
        }
    }

    /// Repeats a recorded call, and returns this generation's outcome. `None` if the call is one of
    /// another kind of policy.
    pub fn repeat(&self, call: &RecordedCall) -> Option<CallOutcome> {
        let facts = call.request.facts();
        match (self, &call.arguments) {
            (
                Self::Balancer(balancer),
                CallArguments::Pick {
                    columns,
                    members,
                    table,
                    home,
                },
            ) => Some(balancer.repeat(&facts, columns, members, table, *home)),
            (Self::Rewriter(rewriter), CallArguments::RewriteRequest { headers }) => {
                Some(rewriter.repeat_request(&facts, headers))
            }
            (Self::Rewriter(rewriter), CallArguments::RewriteResponse { status, headers }) => {
                Some(rewriter.repeat_response(&facts, *status, headers))
            }
            (Self::Pricer(pricer), CallArguments::Price { columns, counts }) => {
                Some(pricer.repeat(&facts, columns, counts))
            }
            (Self::Balancer(_) | Self::Rewriter(_) | Self::Pricer(_), _) => None,
        }
    }
}

/// Loads a policy that no gateway runs, to repeat recorded calls or to measure it.
///
/// # Errors
/// The component or its configuration was rejected.
pub fn load_standalone(
    engine: &PolicyEngine,
    policy: &PolicyConfig,
) -> Result<PolicyGeneration, PolicyLoadError> {
    load_standalone_from(engine, policy, &ComponentBytes::read(policy)?)
}

/// Like [`load_standalone`], for a component that was already read.
pub(crate) fn load_standalone_from(
    engine: &PolicyEngine,
    policy: &PolicyConfig,
    source: &ComponentBytes,
) -> Result<PolicyGeneration, PolicyLoadError> {
    let shared = SharedPolicyState::standalone(policy, &Limits::default());
    PolicyGeneration::load(engine, policy, source, &LoadOptions::first(&shared))
}

/// Returns the kind of policy that `component` is, by its exports. `None` if it is no policy.
pub fn kind_of(component: &[u8]) -> Option<PolicyKind> {
    imports::kind_of(component)
}
