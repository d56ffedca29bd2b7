//! Reviews the policies: a generation that failed too often is replaced by the one before it and
//! retried later, and long loads are logged.

use std::time::{Duration, Instant};

use crate::server::policies::GenerationChange;
use crate::server::status::GatewayStatus;

/// How often the stage of a long load is logged.
pub(crate) const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReviewResult {
    Unchanged,
    /// Another generation of some policy serves: requests must find it.
    Changed,
}

/// Lets each policy fall back from a generation that failed too often, or retry a suspended one.
pub(crate) fn review_generations(status: &GatewayStatus) -> ReviewResult {
    let now = Instant::now();
    let mut result = ReviewResult::Unchanged;
    for entry in status.policies().entries_mut() {
        let change = entry.review(now);
        let (policy, serves) = (entry.tag(), entry.generation());
        match change {
            None => continue,
            Some(GenerationChange::Confirmed) => {
                tracing::info!(policy, serves, "retried generation passed its probation");
                continue;
            }
            Some(GenerationChange::FellBack) => {
                tracing::error!(
                    policy,
                    serves,
                    "generation failed too often, using the previous one"
                );
            }
            Some(GenerationChange::Retried) => {
                tracing::warn!(
                    policy,
                    serves,
                    "retrying a generation that failed too often"
                );
            }
        }
        result = ReviewResult::Changed;
    }
    result
}

/// Returns when the next review is due.
pub(crate) fn next_review(status: &GatewayStatus) -> Instant {
    let policies = status.policies();
    policies
        .entries()
        .iter()
        .filter_map(|entry| entry.retry_at())
        .fold(Instant::now() + PROGRESS_INTERVAL, Instant::min)
}

/// Logs the stage of each load that takes long.
pub(crate) fn log_progress(status: &GatewayStatus) {
    for entry in status.policies().entries() {
        let Some((phase, age)) = entry.load_progress().map(|progress| progress.phase()) else {
            continue;
        };
        if age >= PROGRESS_INTERVAL {
            let (policy, seconds) = (entry.tag(), age.as_secs());
            tracing::info!(
                policy,
                stage = phase.as_str(),
                seconds,
                "policy still loading"
            );
        }
    }
}
