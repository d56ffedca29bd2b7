//! The log lines of a policy's guests: written to the gateway's log under the policy's tag, within
//! a budget per second that all its instances share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::stats::PolicyStats;
use crate::values::clock::Timestamp;

/// The most bytes of one line; the rest is cut off.
const LINE_BYTES_MAX: usize = 1024;

pub(crate) struct GuestLog {
    tag: Arc<str>,
    budget: LogBudget,
    stats: Arc<PolicyStats>,
}

impl GuestLog {
    pub(crate) fn new(tag: &Arc<str>, lines_per_second_max: u64, stats: &Arc<PolicyStats>) -> Self {
        Self {
            tag: Arc::clone(tag),
            budget: LogBudget::new(lines_per_second_max),
            stats: Arc::clone(stats),
        }
    }

    /// Writes a line, or drops and counts it if this second's budget is used up. Levels are those
    /// of the contract.
    pub(super) fn write(&self, level: u32, line: &str) {
        if !self.budget.has_room(Timestamp::now().unix()) {
            self.drop_line();
            return;
        }
        let text = &line[..line.floor_char_boundary(LINE_BYTES_MAX)];
        let policy = &*self.tag;
        match level {
            0 => tracing::error!(policy, "{text}"),
            1 => tracing::warn!(policy, "{text}"),
            2 => tracing::info!(policy, "{text}"),
            3 => tracing::debug!(policy, "{text}"),
            _ => tracing::trace!(policy, "{text}"),
        }
    }

    /// Counts a line that is not written.
    pub(super) fn drop_line(&self) {
        self.stats.count_dropped_log_line();
    }
}

/// A number of lines per second.
struct LogBudget {
    lines_per_second_max: u64,
    /// The Unix second that `lines` counts.
    second: AtomicU64,
    lines: AtomicU64,
}

impl LogBudget {
    fn new(lines_per_second_max: u64) -> Self {
        Self {
            lines_per_second_max,
            second: AtomicU64::new(0),
            lines: AtomicU64::new(0),
        }
    }

    /// Counts one more line in the second `now`, and returns whether it is within the budget.
    fn has_room(&self, now: u64) -> bool {
        if self.second.swap(now, Ordering::Relaxed) != now {
            self.lines.store(0, Ordering::Relaxed);
        }
        self.lines.fetch_add(1, Ordering::Relaxed) < self.lines_per_second_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_its_budget_of_lines() {
        let budget = LogBudget::new(2);
        assert_eq!(
            [5, 5, 5, 6].map(|second| budget.has_room(second)),
            [true, true, false, true]
        );
    }
}
