//! The contract between the gateway and a policy: the types generated from `wit/`, and what the
//! host may give to a component and accept from it.
//!
//! Knows nothing about engines and calls.

pub(crate) mod bindings;
pub(crate) mod facts;
pub(crate) mod identity;
pub(crate) mod imports;
pub(crate) mod manifest;
