//! The policies of the running gateway: for each, the generation that serves and the one before it.
//!
//! Owns loading policies and which generation serves. Does not know who calls a policy or who asked
//! for a reload. Invariant: a generation that serves was loaded, configured and tried; a failure on
//! the way leaves the current one in place.

mod generations;
mod initial;
mod last_reload;
mod loader;
mod report;

pub(super) use generations::{GenerationChange, PolicyEntry, PolicyTable};
pub(super) use initial::{InitialPolicies, PendingPolicy, StartWait, load_initial};
pub(super) use last_reload::{LastReload, ReloadOutcome};
pub(super) use loader::{LoadProgress, PolicyLoader};
pub(super) use report::{PolicyState, PolicyStatus};
