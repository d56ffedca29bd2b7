//! The SDK for Tollgate policies written in Rust.
//!
//! A policy makes one kind of decision for the gateway: which credential serves a request
//! ([`Balancer`]), how header fields are rewritten ([`Rewriter`]) or what usage costs ([`Pricer`]).
//! Implement one of these traits, pass the type to the matching macro ([`export_balancer!`],
//! [`export_rewriter!`] or [`export_pricer!`]), and build the crate as a `cdylib` for
//! `wasm32-wasip2`. The resulting file is the component that the gateway loads.
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
//! The traits do not depend on WebAssembly: `cargo test` tests a policy natively, with pools and
//! requests built by [`testing`].
//!
//! A policy is a pure function of its arguments. Everything that changes between calls (time,
//! random seed, sequence number) is in the [`Request`], so that the gateway can record a call and
//! replay it exactly.

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
