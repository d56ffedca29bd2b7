//! What a Tollgate policy is written against.
//!
//! A policy decides one thing for the gateway: which credential serves a request ([`Balancer`]), how header fields
//! are rewritten ([`Rewriter`]) or what usage costs ([`Pricer`]). Implement one of these traits, name the type in
//! the macro of the same name, and build the crate as a `cdylib` for `wasm32-wasip2`; the file that comes out is
//! the component that the gateway loads.
//!
//! ```
//! use tollgate_policy::{Balancer, Candidates, Decision, NoConfig, Request, Weights};
//!
//! struct First;
//!
//! impl Balancer for First {
//!     type Config = NoConfig;
//!
//!     fn new(_: NoConfig, _: &mut Weights) -> Result<Self, String> {
//!         Ok(First)
//!     }
//!
//!     fn pick(&self, _: &Request, candidates: &Candidates) -> Decision {
//!         candidates.sticky(|| candidates.usable().next())
//!     }
//! }
//!
//! tollgate_policy::export_balancer!(First);
//! # fn main() {}
//! ```
//!
//! The traits know nothing of WebAssembly: a policy is tested with `cargo test` on any machine, with a pool built by
//! [`testing`]. A policy is a pure function of its arguments; what changes between calls (time, chance, order) is in
//! the [`Request`].

mod balancer;
#[doc(hidden)]
pub mod bindings;
mod config;
#[doc(hidden)]
pub mod export;
mod log;
mod pricer;
mod request;
mod rewriter;
pub mod testing;

pub use balancer::{Balancer, Candidate, Candidates, Decision, Weights};
pub use config::NoConfig;
pub use log::{Level, log};
pub use pricer::{Counts, Price, Pricer};
pub use request::{Request, Transport};
pub use rewriter::{Edit, Header, Headers, Refusal, Rewriter};

pub use schemars;
pub use serde;
