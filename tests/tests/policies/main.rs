//! Policies on a running gateway: loading, reloading, recording, and the components of every
//! release.

mod circuit_breaker;
mod compiled;
mod examples;
mod guests;
mod old_components;
mod record;
mod reload;
mod replay;
