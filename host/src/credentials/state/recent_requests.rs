//! How the recent requests of an entry went. Another entry of the same login has another route.
//!
//! Does not know why a request failed. Invariant: the number of remembered failures is bounded.

use std::collections::VecDeque;
use std::time::Duration;

use crate::values::clock::Timestamp;

/// How long a failure counts as recent, and how many are remembered.
const FAILURE_MEMORY: Duration = Duration::from_secs(5 * 60);
const FAILURES_MAX: usize = 64;

/// The weight of a new latency in the moving average.
const LATENCY_WEIGHT: f64 = 0.2;

/// Failures and latency of an entry.
#[derive(Debug, Default)]
pub(super) struct RecentRequests {
    failures: VecDeque<Timestamp>,
    latency_ms: Option<f64>,
}

impl RecentRequests {
    pub(super) fn record_failure(&mut self, now: Timestamp) {
        if self.failures.len() >= FAILURES_MAX {
            self.failures.pop_front();
        }
        self.failures.push_back(now);
    }

    pub(super) fn record_latency(&mut self, latency: Duration) {
        let latency_ms = latency.as_secs_f64() * 1e3;
        let average = self.latency_ms.map_or(latency_ms, |average| {
            average + (latency_ms - average) * LATENCY_WEIGHT
        });
        self.latency_ms = Some(average);
    }

    pub(super) fn failures(&self, now: Timestamp) -> u32 {
        let recent = self
            .failures
            .iter()
            .filter(|failed_at| now.since(**failed_at) < FAILURE_MEMORY);
        recent.count() as u32
    }

    /// Returns the moving average.
    pub(super) fn latency_ms(&self) -> Option<f64> {
        self.latency_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_forgotten_and_bounded() {
        let now = Timestamp(1_000_000);
        let mut requests = RecentRequests::default();
        for _ in 0..100 {
            requests.record_failure(now);
        }
        assert_eq!(requests.failures(now), 64);
        assert_eq!(requests.failures(now.after(FAILURE_MEMORY)), 0);
    }
}
