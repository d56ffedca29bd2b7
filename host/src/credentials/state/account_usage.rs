//! What an account has used, as upstream reports it.
//!
//! Does not know which credential presents the account, nor that account's tokens. Invariant:
//! everything in it is about one account; another account starts with a new value.

use std::time::Duration;

use crate::config::WindowCaps;
use crate::values::clock::Timestamp;
use crate::values::credential::candidate::BalancerCandidate;
use crate::values::credential::windows::{RateLimitWindows, WindowKind, WindowReading};

/// A rate limit whose end upstream does not say, or says is over already, lasts this long.
const RATE_LIMIT_DEFAULT: Duration = Duration::from_secs(5 * 60);

/// The longest rate limit that is believed: no window is longer than a month.
const RATE_LIMIT_MAX: Duration = Duration::from_secs(31 * 24 * 60 * 60);

/// What is known about an account's usage.
#[derive(Debug, Default)]
pub(crate) struct AccountUsage {
    /// The name of the plan; empty while it is unknown.
    plan: String,
    /// The weight of its capacity, if it reports one: another gateway does.
    own_weight: Option<f64>,
    windows: RateLimitWindows,
    rate_limit: Option<RateLimit>,
    /// Counts the responses that reported windows.
    observations: u64,
}

/// A refusal by 429.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RateLimit {
    pub(crate) until: Timestamp,
    /// The window that is exhausted, if upstream says which.
    pub(crate) window: Option<WindowKind>,
}

impl AccountUsage {
    pub(crate) fn plan(&self) -> &str {
        &self.plan
    }

    pub(crate) fn own_weight(&self) -> Option<f64> {
        self.own_weight
    }

    pub(crate) fn windows(&self) -> &RateLimitWindows {
        &self.windows
    }

    pub(crate) fn observations(&self) -> u64 {
        self.observations
    }

    /// Returns the rate limit that is in force at `now`.
    pub(crate) fn rate_limit(&self, now: Timestamp) -> Option<RateLimit> {
        self.rate_limit.filter(|limit| limit.until > now)
    }

    /// Returns what a balancer sees of it, except what concerns requests or the credential's
    /// tokens.
    pub(crate) fn candidate(&self, caps: WindowCaps, now: Timestamp) -> BalancerCandidate {
        let five_hour_used = self.windows.used(WindowKind::FiveHour, now);
        let weekly_used = self.windows.used(WindowKind::Weekly, now);
        let limit = self.rate_limit(now);
        let minutes_to = |moment: Timestamp| moment.since(now).as_secs_f64() / 60.0;
        BalancerCandidate {
            usable: limit.is_none() && five_hour_used < caps.five_hour && weekly_used < caps.weekly,
            five_hour_used,
            five_hour_cap: caps.five_hour,
            five_hour_reset_minutes: self
                .windows
                .reset_at(WindowKind::FiveHour, now)
                .map(minutes_to),
            weekly_used,
            weekly_cap: caps.weekly,
            weekly_reset_minutes: self
                .windows
                .reset_at(WindowKind::Weekly, now)
                .map(minutes_to),
            limited_minutes: limit.map_or(0.0, |limit| minutes_to(limit.until)),
            in_flight: 0,
            recent_failures: 0,
            recent_latency_ms: None,
            continues: false,
            own_weight: self.own_weight,
        }
    }

    /// Returns when it is neither rate-limited nor over a cap any more; `None` if it is neither
    /// now, or the time is unknown.
    pub(crate) fn usable_again_at(&self, caps: WindowCaps, now: Timestamp) -> Option<Timestamp> {
        let limited_until = self.rate_limit(now).map(|limit| limit.until);
        [
            limited_until,
            self.reset_if_over(WindowKind::FiveHour, caps.five_hour, now),
            self.reset_if_over(WindowKind::Weekly, caps.weekly, now),
        ]
        .into_iter()
        .flatten()
        .max()
    }

    fn reset_if_over(&self, span: WindowKind, cap: f64, now: Timestamp) -> Option<Timestamp> {
        (self.windows.used(span, now) >= cap)
            .then(|| self.windows.reset_at(span, now))
            .flatten()
    }

    /// Records the windows that a response reports.
    pub(crate) fn observe(&mut self, reading: &WindowReading, now: Timestamp) {
        self.windows.observe(reading, now);
        self.observations += 1;
    }

    /// Records the windows that a poll reports: they replace the known ones, unless a response
    /// reported windows since the poll began, at `observations`.
    pub(crate) fn apply_poll(
        &mut self,
        reading: &WindowReading,
        observations: u64,
        now: Timestamp,
    ) {
        if self.observations == observations {
            self.windows.replace(reading);
        } else {
            self.windows.observe(reading, now);
        }
    }

    /// Records a refusal by 429.
    pub(crate) fn limit(&mut self, until: Timestamp, window: Option<WindowKind>) {
        self.rate_limit = Some(RateLimit { until, window });
    }

    /// Moves the end of a rate limit with a clock that was set back by `step`.
    pub(crate) fn set_clock_back(&mut self, step: Duration) {
        if let Some(limit) = &mut self.rate_limit {
            limit.until = limit.until.before(step);
        }
    }

    /// Sets the plan, and returns whether it changed.
    pub(crate) fn set_plan(&mut self, plan: &str) -> bool {
        let changed = self.plan != plan;
        if changed {
            plan.clone_into(&mut self.plan);
        }
        changed
    }

    /// Sets the weight, and returns whether it changed.
    pub(crate) fn set_own_weight(&mut self, weight: Option<f64>) -> bool {
        let changed = self.own_weight != weight;
        self.own_weight = weight;
        changed
    }
}

/// Returns when a refusal ends that upstream says ends at `until`.
pub(crate) fn rate_limit_end(until: Option<Timestamp>, now: Timestamp) -> Timestamp {
    until
        .filter(|until| *until > now)
        .unwrap_or_else(|| now.after(RATE_LIMIT_DEFAULT))
        .min(now.after(RATE_LIMIT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);
    const CAPS: WindowCaps = WindowCaps {
        five_hour: 99.0,
        weekly: 99.0,
    };

    #[test]
    fn a_rate_limit_ends_by_itself() {
        let mut usage = AccountUsage::default();
        usage.limit(Timestamp(1_060_000), None);
        assert!(!usage.candidate(CAPS, NOW).usable);
        assert_eq!(usage.candidate(CAPS, NOW).limited_minutes, 1.0);
        assert_eq!(usage.usable_again_at(CAPS, NOW), Some(Timestamp(1_060_000)));
        assert!(usage.candidate(CAPS, Timestamp(1_060_000)).usable);
    }
}
