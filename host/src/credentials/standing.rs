//! How a credential stands with upstream: windows, refusals, failures, latency.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::Caps;
use crate::values::candidate::Candidate;
use crate::values::clock::Timestamp;
use crate::values::windows::{Span, Windows};

/// Failures count for so long, and so many are remembered.
const FAILURES_FOR: Duration = Duration::from_secs(5 * 60);
const FAILURES: usize = 64;

/// How much of a moving average a new latency is.
const LATENCY_SHARE: f64 = 0.2;

/// What is known of a credential's standing.
#[derive(Debug, Default)]
pub struct Standing {
    /// Its plan; empty while unknown.
    pub plan: String,
    /// Its windows.
    pub windows: Windows,
    /// Upstream refuses it until then.
    pub limited_until: Option<Timestamp>,
    /// The window that is why, where that is known.
    pub limited_by: Option<Span>,
    /// The weight of its capacity, where it tells that itself.
    pub own_weight: Option<f64>,
    /// How often responses told something of the windows.
    pub(super) observations: u64,
    failures: VecDeque<Timestamp>,
    latency_ms: Option<f64>,
}

impl Standing {
    pub(super) fn candidate(&self, caps: Caps, now: Timestamp) -> Candidate {
        let five_hour_used = self.windows.used(Span::FiveHour, now);
        let weekly_used = self.windows.used(Span::Weekly, now);
        let limited = self.limited_until.filter(|until| *until > now);
        let minutes_to = |moment: Timestamp| moment.since(now).as_secs_f64() / 60.0;
        Candidate {
            usable: limited.is_none()
                && five_hour_used < caps.five_hour
                && weekly_used < caps.weekly,
            five_hour_used,
            five_hour_cap: caps.five_hour,
            five_hour_reset: self.windows.reset_at(Span::FiveHour, now).map(minutes_to),
            weekly_used,
            weekly_cap: caps.weekly,
            weekly_reset: self.windows.reset_at(Span::Weekly, now).map(minutes_to),
            limited: limited.map_or(0.0, minutes_to),
            in_flight: 0,
            recent_failures: self.recent_failures(now),
            recent_latency: self.latency_ms,
            continues: false,
            own_weight: self.own_weight,
        }
    }

    /// When nothing keeps it from being chosen any more: none where nothing does, or nobody knows.
    pub(super) fn usable_again_at(&self, caps: Caps, now: Timestamp) -> Option<Timestamp> {
        let over = |span: Span, cap: f64| {
            (self.windows.used(span, now) >= cap)
                .then(|| self.windows.reset_at(span, now))
                .flatten()
        };
        let limited = self.limited_until.filter(|until| *until > now);
        [
            limited,
            over(Span::FiveHour, caps.five_hour),
            over(Span::Weekly, caps.weekly),
        ]
        .into_iter()
        .flatten()
        .max()
    }

    pub(super) fn failed(&mut self, now: Timestamp) {
        if self.failures.len() >= FAILURES {
            self.failures.pop_front();
        }
        self.failures.push_back(now);
    }

    pub(super) fn answered(&mut self, latency: Duration) {
        let latency_ms = latency.as_secs_f64() * 1e3;
        let average = self.latency_ms.map_or(latency_ms, |known| {
            known + (latency_ms - known) * LATENCY_SHARE
        });
        self.latency_ms = Some(average);
    }

    fn recent_failures(&self, now: Timestamp) -> u32 {
        let recent = self
            .failures
            .iter()
            .filter(|failed| now.since(**failed) < FAILURES_FOR);
        recent.count() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);
    const CAPS: Caps = Caps {
        five_hour: 99.0,
        weekly: 99.0,
    };

    #[test]
    fn a_refusal_ends_by_itself() {
        let standing = Standing {
            limited_until: Some(Timestamp(1_060_000)),
            ..Standing::default()
        };
        assert!(!standing.candidate(CAPS, NOW).usable);
        assert_eq!(standing.candidate(CAPS, NOW).limited, 1.0);
        assert_eq!(
            standing.usable_again_at(CAPS, NOW),
            Some(Timestamp(1_060_000))
        );
        assert!(standing.candidate(CAPS, Timestamp(1_060_000)).usable);
    }

    #[test]
    fn failures_are_forgotten_and_bounded() {
        let mut standing = Standing::default();
        for _ in 0..100 {
            standing.failed(NOW);
        }
        assert_eq!(standing.candidate(CAPS, NOW).recent_failures, 64);
        assert_eq!(
            standing
                .candidate(CAPS, NOW.after(FAILURES_FOR))
                .recent_failures,
            0
        );
    }
}
