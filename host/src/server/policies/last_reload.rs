//! The outcome of the last reload of a policy or of the configuration. The field names are those of
//! the admin API.

use std::time::Duration;

use serde::Serialize;

use crate::values::clock::Timestamp;

/// The last reload of a policy or of the configuration.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LastReload {
    /// When the reload ended, in Unix milliseconds.
    at: u64,
    outcome: ReloadOutcome,
    /// The generation that serves after it.
    generation: u64,
    /// Why it failed, for an operator; `None` after a success.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// From the first read of the file to the first request that finds it.
    took_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReloadOutcome {
    Ok,
    /// The generation before keeps serving.
    Failed,
    /// An operator rolled it back.
    RolledBack,
    /// It failed too often in service.
    TakenBack,
    /// It serves again after it failed too often.
    TriedAgain,
}

impl LastReload {
    pub(crate) fn now(
        outcome: ReloadOutcome,
        generation: u64,
        reason: Option<String>,
        took: Duration,
    ) -> Self {
        Self {
            at: Timestamp::now().0,
            outcome,
            generation,
            reason,
            took_ms: took.as_millis() as u64,
        }
    }

    pub(crate) fn is_failure(&self) -> bool {
        self.outcome == ReloadOutcome::Failed
    }
}
