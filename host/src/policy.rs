//! Policies: WebAssembly components that choose credentials, rewrite header fields and price usage.
//!
//! Owns everything that names wasmtime; refuses to know what a pool, a client or a ledger is. Invariant: a guest can
//! fail only its own call. What it gets are numbers, names and fields that were cleared of secrets, and what it gives
//! back is checked before anybody uses it.

mod bindings;
mod cache;
mod engine;
mod fault;
mod imports;
mod inert_wasi;
mod instance;
mod load;
mod quarantine;
mod record;
mod repeat;
mod seat;
mod shadow;
mod shipped;
mod slot;
mod stats;
mod threads;

pub mod balancer;
pub mod pricer;
pub mod rewriter;

pub use balancer::{Balancer, Choice, Members};
pub use engine::{Engine, EngineError, Urgency};
pub use fault::{Fault, FaultKind};
pub use load::{LoadError, Loading, Source, Stamp};
pub use pricer::Pricer;
pub use quarantine::Rules;
pub use repeat::{Asked, Call, OwnFacts, Policy, Said};
pub use rewriter::{Refused, Rewriter};
pub use shadow::{Disagreement, Shadow, ShadowStatus};
pub use slot::Slot;
pub use stats::Stats;
pub use threads::Threads;

use std::sync::Arc;
use std::time::Duration;

use crate::config::{PolicyConfig, PolicyKind};
use crate::values::clock::Timestamp;
use crate::values::exchange::ClientTransport;

/// A string of a request that a policy may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The user's name.
    User,
    /// The session's key.
    Session,
    /// The model.
    Model,
    /// The service tier.
    ServiceTier,
    /// The path, without the query.
    Path,
    /// The method.
    Method,
    /// The service's tag.
    Service,
    /// The chosen credential's tag.
    Credential,
}

impl Field {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "user" => Self::User,
            "session" => Self::Session,
            "model" => Self::Model,
            "service-tier" => Self::ServiceTier,
            "path" => Self::Path,
            "method" => Self::Method,
            "service" => Self::Service,
            "credential" => Self::Credential,
            _ => return None,
        })
    }
}

/// What every kind of generation can be asked.
macro_rules! generation {
    ($kind:ident $({ $($field:ident: $value:expr),* })?) => {
        impl $kind {
            /// One that cannot be called: each call fails at once, for that reason.
            pub fn absent(slot: &std::sync::Arc<super::Slot>, reason: String) -> Self {
                Self { seat: Seat::absent(slot, reason) $(, $($field: $value),*)? }
            }

            /// Which component it is.
            pub fn stamp(&self) -> &super::Stamp {
                self.seat.stamp()
            }

            /// The slot that it is in.
            pub fn slot(&self) -> &std::sync::Arc<super::Slot> {
                self.seat.slot()
            }

            pub(super) fn conduct(&self) -> super::Conduct {
                super::Conduct {
                    generation: self.seat.number(),
                    barred_for: self.seat.barred_for(),
                    is_slow: self.seat.is_slow(),
                    is_proven: self.seat.is_proven(),
                }
            }

            pub(super) fn lift(&self) {
                self.seat.lift();
            }

            pub(super) fn try_anew(&self) {
                self.seat.try_anew();
            }

            fn busy(&self, call: &'static str) -> Fault {
                let detail = "as many calls as limits.policy_queue wait for a policy thread".to_owned();
                self.seat.slot().stats().failed(super::FaultKind::Unavailable);
                Fault::new(self.seat.slot(), call, super::FaultKind::Unavailable, detail)
            }
        }
    };
}
use generation;

/// How a generation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conduct {
    /// Its number; 0 where there is none yet.
    pub generation: u64,
    /// For how long it is not called, because it failed too often.
    pub barred_for: Option<Duration>,
    /// Whether its calls run on threads of their own.
    pub is_slow: bool,
    /// Whether it has had its first calls, or has none before it to go back to.
    pub is_proven: bool,
}

impl Policy {
    /// Loads a policy of whatever kind.
    ///
    /// # Errors
    /// The component or its configuration cannot be used, or it failed when it was tried.
    pub fn load(
        engine: &Engine,
        policy: &PolicyConfig,
        source: &Source,
        loading: &Loading<'_>,
    ) -> Result<Self, LoadError> {
        Ok(match policy.kind {
            PolicyKind::Balancer => {
                Self::Balancer(Arc::new(Balancer::load(engine, policy, source, loading)?))
            }
            PolicyKind::Rewriter => {
                Self::Rewriter(Arc::new(Rewriter::load(engine, policy, source, loading)?))
            }
            PolicyKind::Pricer => {
                Self::Pricer(Arc::new(Pricer::load(engine, policy, source, loading)?))
            }
        })
    }

    /// One that cannot be called: each call fails at once, for that reason.
    pub fn absent(policy: &PolicyConfig, slot: &Arc<Slot>, reason: String) -> Self {
        match policy.kind {
            PolicyKind::Balancer => Self::Balancer(Arc::new(Balancer::absent(slot, reason))),
            PolicyKind::Rewriter => Self::Rewriter(Arc::new(
                Rewriter::absent(slot, reason).failing(policy.on_failure),
            )),
            PolicyKind::Pricer => Self::Pricer(Arc::new(Pricer::absent(slot, reason))),
        }
    }

    /// Which component it is.
    pub fn stamp(&self) -> &Stamp {
        match self {
            Self::Balancer(balancer) => balancer.stamp(),
            Self::Rewriter(rewriter) => rewriter.stamp(),
            Self::Pricer(pricer) => pricer.stamp(),
        }
    }

    /// How it does.
    pub fn conduct(&self) -> Conduct {
        match self {
            Self::Balancer(balancer) => balancer.conduct(),
            Self::Rewriter(rewriter) => rewriter.conduct(),
            Self::Pricer(pricer) => pricer.conduct(),
        }
    }

    /// Lets a generation that was barred be called again.
    pub fn lift(&self) {
        match self {
            Self::Balancer(balancer) => balancer.lift(),
            Self::Rewriter(rewriter) => rewriter.lift(),
            Self::Pricer(pricer) => pricer.lift(),
        }
    }

    /// Lets a generation that was barred be called again, and prove itself again.
    pub fn try_anew(&self) {
        match self {
            Self::Balancer(balancer) => balancer.try_anew(),
            Self::Rewriter(rewriter) => rewriter.try_anew(),
            Self::Pricer(pricer) => pricer.try_anew(),
        }
    }
}

/// A policy by itself, for one who looks at it from outside: what it says to what others were asked, and what a call costs.
///
/// # Errors
/// The component or its configuration cannot be used, or it failed when it was tried.
pub fn load_alone(engine: &Engine, policy: &PolicyConfig) -> Result<Policy, LoadError> {
    let slot = Slot::alone(policy, &crate::values::limits::Limits::default());
    Policy::load(
        engine,
        policy,
        &Source::read(policy)?,
        &Loading::first(&slot),
    )
}

/// The kind of policy that a component is, by what it exports; none where it is none.
pub fn kind_of(component: &[u8]) -> Option<PolicyKind> {
    let kinds = [
        PolicyKind::Balancer,
        PolicyKind::Rewriter,
        PolicyKind::Pricer,
    ];
    kinds
        .into_iter()
        .find(|kind| imports::check(component, *kind).is_ok())
}

/// A request, as far as policies may know it. Strings that it lacks are empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
    /// The request's id. No policy sees it: it is for whoever looks for a call later.
    pub request_id: &'a str,
    /// The user's name.
    pub user: &'a str,
    /// The session's key.
    pub session: &'a str,
    /// The model.
    pub model: &'a str,
    /// The service tier.
    pub service_tier: &'a str,
    /// The path, without the query.
    pub path: &'a str,
    /// The method.
    pub method: &'a str,
    /// The service's tag.
    pub service: &'a str,
    /// The chosen credential's tag.
    pub credential: &'a str,
    /// How the client speaks.
    pub transport: ClientTransport,
    /// Attempts before this one.
    pub attempt: u32,
    /// The time.
    pub now: Timestamp,
    /// A random number; its lower 53 bits are used.
    pub seed: u64,
    /// The request's place in the order of its pool or service.
    pub sequence: u64,
    /// It is no request, but a component that is tried: that counts for nothing.
    pub trial: bool,
}

impl<'a> Facts<'a> {
    /// What a component is tried with.
    fn trial() -> Facts<'static> {
        let now = Timestamp::now();
        Facts {
            model: "gpt-5.4",
            path: "/v1/responses",
            method: "POST",
            now,
            trial: true,
            ..Facts::default()
        }
    }

    fn field(&self, field: Field) -> &'a str {
        match field {
            Field::User => self.user,
            Field::Session => self.session,
            Field::Model => self.model,
            Field::ServiceTier => self.service_tier,
            Field::Path => self.path,
            Field::Method => self.method,
            Field::Service => self.service,
            Field::Credential => self.credential,
        }
    }

    /// The seed as the contract has it: an integer that an `f64` holds exactly.
    fn seed_number(&self) -> f64 {
        (self.seed & repeat::SEED) as f64
    }
}
