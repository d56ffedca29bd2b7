//! Policies: WebAssembly components that select credentials, edit header fields and price usage.
//!
//! ```text
//! shadow       loads the component that shadows a policy
//! kind         what a balancer, a rewriter and a pricer decide, checked
//! generation   one component with one configuration: load, call, take out of service
//! call         calls as values: recorders and shadows
//! engine       wasmtime: limits, clock, compiled code, WASI
//! contract     wit/: generated types, imports, manifest, facts about a request
//! ```
//!
//! Owns everything that names wasmtime; does not know what a client or a ledger is. Invariant: a
//! guest can fail only its own call. It gets numbers, names and header fields without secrets, and
//! what it returns is checked before it is used. Each of these modules imports only from those
//! below it.

mod call;
mod contract;
mod engine;
mod generation;
mod kind;
mod shadow;

pub use call::comparison::ShadowStatus;
pub use call::recorded::{CallArguments, CallOutcome, OwnedRequestFacts, RecordedCall};
pub use contract::facts::{CallPurpose, RequestFacts};
pub use contract::identity::ComponentIdentity;
pub use engine::fault::{FaultKind, PolicyFault};
pub use engine::{EngineError, PolicyEngine};
pub use generation::load_error::PolicyLoadError;
pub use kind::balancer::{BalancerChoice, BalancerGeneration, PoolMembers};
pub use kind::pricer::PricerGeneration;
pub use kind::rewriter::{RewriterGeneration, RewriterRefusal};
pub use kind::{PolicyGeneration, kind_of, load_standalone};

pub(crate) use call::comparison::PolicyShadow;
pub(crate) use engine::compile::CompilePriority;
pub(crate) use generation::load::LoadOptions;
pub(crate) use generation::load_error::{LoadPhase, LoadStage};
pub(crate) use generation::shared::SharedPolicyState;
pub(crate) use generation::source::ComponentBytes;
pub(crate) use generation::threads::PolicyThreads;
pub(crate) use shadow::{load_shadow, shadow_config};
