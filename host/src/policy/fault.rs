//! What a policy did wrong in a call.

use std::fmt;
use std::sync::Arc;

/// A call of a policy that failed. The policy's own words are in it; the reader is the operator.
#[derive(Debug, Clone)]
pub struct Fault {
    pub(super) tag: Arc<str>,
    pub(super) call: &'static str,
    pub(super) kind: FaultKind,
    pub(super) detail: String,
}

/// How a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The guest trapped: it panicked, divided by zero, left its memory.
    Trap,
    /// It took longer than its timeout.
    Deadline,
    /// It wanted more memory than its limit.
    Memory,
    /// It answered what nobody can use: an index past the end, a reserved header, an absurd price.
    BadOutput,
    /// It said itself that it failed.
    Failed,
    /// No instance of it could be made.
    Unavailable,
}

impl Fault {
    /// How it failed.
    pub fn kind(&self) -> FaultKind {
        self.kind
    }

    /// The policy's tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Why, without the policy's name: for a reason in a ledger row.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "policy {:?}: {} in {}", self.tag, self.detail, self.call)
    }
}

impl std::error::Error for Fault {}
