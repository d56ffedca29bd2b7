//! Calls of policies as values, and what observes them: recorders and shadows.
//!
//! Invariant: observing a call never delays it. If an observer is behind, it misses the call, and
//! the miss is counted.

pub(crate) mod comparison;
pub(crate) mod observers;
pub(crate) mod recorded;
pub(crate) mod recorder;
