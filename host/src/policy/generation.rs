//! Generations of a policy: each is one component with one configuration, loaded and tested.
//!
//! Knows how a component is loaded, called, bounded and taken out of service; does not know what
//! the kinds of policies decide. Invariant: a call runs only in a component that passed every stage
//! of loading.

pub(crate) mod breaker;
pub(crate) mod component;
mod instances;
pub(crate) mod load;
pub(crate) mod load_error;
pub(crate) mod shared;
mod shipped;
pub(crate) mod source;
pub(crate) mod threads;
