//! The failure of a policy's call.
//!
//! Knows how a call can fail and which failures are the component's fault; does not know what
//! becomes of the request.

use std::fmt;
use std::sync::Arc;

/// A function that policies export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestFunction {
    Members,
    Pick,
    RewriteRequest,
    RewriteResponse,
    Price,
}

impl GuestFunction {
    fn as_str(self) -> &'static str {
        match self {
            Self::Members => "members",
            Self::Pick => "pick",
            Self::RewriteRequest => "rewrite-request",
            Self::RewriteResponse => "rewrite-response",
            Self::Price => "price",
        }
    }
}

impl fmt::Display for GuestFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A call of a policy that failed. Its text is for the operator: it may contain the policy's own
/// words.
#[derive(Debug, Clone, thiserror::Error)]
#[error("policy {tag:?}: {detail} in {function}")]
pub struct PolicyFault {
    tag: Arc<str>,
    function: GuestFunction,
    kind: FaultKind,
    detail: String,
}

impl PolicyFault {
    /// Returns how the call failed.
    pub(crate) fn kind(&self) -> FaultKind {
        self.kind
    }

    /// Returns whether each such fault is worth a log event. An open circuit breaker and a
    /// component that is not available were logged when that began.
    pub(crate) fn should_be_logged(&self) -> bool {
        !matches!(self.kind, FaultKind::BreakerOpen | FaultKind::Unavailable)
    }

    /// Returns the reason without the policy's tag, as a ledger row has it.
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// Returns the function that was called.
    pub(crate) fn function(&self) -> GuestFunction {
        self.function
    }
}

/// A failure of a call before the policy's tag and the function are added.
#[derive(Debug)]
pub(crate) struct CallFailure {
    pub(crate) kind: FaultKind,
    pub(crate) detail: String,
}

impl CallFailure {
    pub(crate) fn new(kind: FaultKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
        }
    }

    /// Returns the failure of a guest whose result breaks the contract.
    pub(crate) fn bad_output(problem: impl fmt::Display) -> Self {
        Self::new(FaultKind::BadOutput, format!("bad output: {problem}"))
    }

    /// Returns the failure that the guest itself reported.
    pub(crate) fn reported(reason: String) -> Self {
        Self::new(FaultKind::Failed, reason)
    }

    /// Adds the policy and the function to the failure.
    pub(crate) fn into_fault(self, tag: &Arc<str>, function: GuestFunction) -> PolicyFault {
        PolicyFault {
            tag: Arc::clone(tag),
            function,
            kind: self.kind,
            detail: self.detail,
        }
    }
}

/// How a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The guest trapped (it panicked, divided by zero, accessed memory out of bounds), or no
    /// instance of it could be created.
    Trap,
    /// The call exceeded its timeout.
    Deadline,
    /// The guest exceeded its memory limit.
    Memory,
    /// The result breaks the contract: an index past the end, a reserved header, an absurd price.
    BadOutput,
    /// The guest reported a failure itself.
    Failed,
    /// The component is not loaded, or the queue of the policy threads is full.
    Unavailable,
    /// The circuit breaker is open: the component failed too often recently.
    BreakerOpen,
}

impl FaultKind {
    /// All kinds, in declaration order.
    pub const ALL: [Self; 7] = [
        Self::Trap,
        Self::Deadline,
        Self::Memory,
        Self::BadOutput,
        Self::Failed,
        Self::Unavailable,
        Self::BreakerOpen,
    ];

    /// Returns the name in metrics and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::BadOutput => "bad_output",
            Self::Failed => "failed",
            Self::Unavailable => "unavailable",
            Self::BreakerOpen => "quarantined",
        }
    }

    /// Returns whether the component is at fault, so that the fault counts for its circuit breaker.
    /// A component that reports a failure itself works as intended.
    pub(crate) fn is_component_fault(self) -> bool {
        match self {
            Self::Trap | Self::Deadline | Self::Memory | Self::BadOutput => true,
            Self::Failed | Self::Unavailable | Self::BreakerOpen => false,
        }
    }
}
