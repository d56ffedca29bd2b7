//! Policies: WebAssembly components that choose credentials, rewrite header fields and price usage.
//!
//! Owns everything that names wasmtime; refuses to know what a pool, a client or a ledger is. Invariant: a guest can
//! fail only its own call. What it gets are numbers, names and fields that were cleared of secrets, and what it gives
//! back is checked before anybody uses it.

mod bindings;
mod engine;
mod fault;
mod imports;
mod inert_wasi;
mod instance;
mod load;
mod shipped;

pub mod balancer;
pub mod pricer;
pub mod rewriter;

pub use balancer::{Balancer, Choice, Members};
pub use engine::{Engine, EngineError};
pub use fault::{Fault, FaultKind};
pub use load::{LoadError, Stamp};
pub use pricer::Pricer;
pub use rewriter::{Refused, Rewriter};

use crate::values::clock::Millis;
use crate::values::exchange::Transport;

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

/// A request, as far as policies may know it. Strings that it lacks are empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
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
    pub transport: Transport,
    /// Attempts before this one.
    pub attempt: u32,
    /// The time.
    pub now: Millis,
    /// A random number; its lower 53 bits are used.
    pub seed: u64,
    /// The request's place in the order of its pool or service.
    pub sequence: u64,
}

impl<'a> Facts<'a> {
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
        (self.seed & ((1 << 53) - 1)) as f64
    }
}
