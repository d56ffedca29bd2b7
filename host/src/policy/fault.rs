//! What a policy did wrong in a call.

use std::fmt;
use std::sync::Arc;

use super::slot::Slot;

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
    /// The guest trapped: it panicked, divided by zero, left its memory; or no instance of it could be made.
    Trap,
    /// It took longer than its timeout.
    Deadline,
    /// It wanted more memory than its limit.
    Memory,
    /// It answered what nobody can use: an index past the end, a reserved header, an absurd price.
    BadOutput,
    /// It said itself that it failed.
    Failed,
    /// There is no component yet, or nobody was free to run it.
    Unavailable,
    /// It failed so often of late that it is not called for a while.
    Quarantined,
}

impl FaultKind {
    /// All of them, in order.
    pub const ALL: [Self; 7] = [
        Self::Trap,
        Self::Deadline,
        Self::Memory,
        Self::BadOutput,
        Self::Failed,
        Self::Unavailable,
        Self::Quarantined,
    ];

    /// Its name in metrics and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::BadOutput => "bad_output",
            Self::Failed => "failed",
            Self::Unavailable => "unavailable",
            Self::Quarantined => "quarantined",
        }
    }

    /// Whether the component is at fault: so many of these, and it is quarantined. One that says itself that it failed
    /// works as it should.
    pub(super) fn is_misconduct(self) -> bool {
        match self {
            Self::Trap | Self::Deadline | Self::Memory | Self::BadOutput => true,
            Self::Failed | Self::Unavailable | Self::Quarantined => false,
        }
    }
}

impl Fault {
    pub(super) fn new(slot: &Slot, call: &'static str, kind: FaultKind, detail: String) -> Self {
        Self {
            tag: Arc::clone(slot.shared_tag()),
            call,
            kind,
            detail,
        }
    }

    /// How it failed.
    pub fn kind(&self) -> FaultKind {
        self.kind
    }

    /// Whether an operator should read of each one. Of a policy that is quarantined, or not there yet, they were told when
    /// that began.
    pub fn is_news(&self) -> bool {
        !matches!(self.kind, FaultKind::Quarantined | FaultKind::Unavailable)
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
