//! When upstream is asked for a credential's usage next, and how the last poll ended.
//!
//! Does not know what a poll returns. Invariant: a failed poll changes nothing but the time of the
//! next one.

use std::time::Duration;

use crate::values::clock::Timestamp;

/// The pauses after consecutive failures; the last one repeats.
const BACK_OFF: [Duration; 4] = [
    Duration::from_secs(60),
    Duration::from_secs(120),
    Duration::from_secs(240),
    Duration::from_secs(300),
];

/// The bounds of the pause that a usage API's `Retry-After` can ask for.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);

/// How long a poll counts as running if its end is not reported: its task was stopped.
const RUNNING_MAX: Duration = Duration::from_secs(10);

/// Whether a credential had requests since its last poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestsSincePoll {
    Some,
    None,
}

/// What is known about the polls of a credential.
#[derive(Debug, Default)]
pub(crate) struct PollSchedule {
    succeeded_at: Option<Timestamp>,
    /// Why the last poll failed, if it did.
    failure: Option<String>,
    polled_at: Option<Timestamp>,
    /// When the poll began that has not ended yet.
    started_at: Option<Timestamp>,
    /// No poll before this; set after a failure.
    paused_until: Option<Timestamp>,
    /// Failures since the last success.
    failures: usize,
    /// No poll until something changes: the token was rejected.
    is_stopped: bool,
}

impl PollSchedule {
    /// Returns when the next poll is due: once at start, and once an `interval` while there are
    /// requests. `None` if not before there are requests, or something else changes.
    pub(crate) fn due_at(
        &self,
        requests: RequestsSincePoll,
        interval: Duration,
        now: Timestamp,
    ) -> Option<Timestamp> {
        if self.is_stopped {
            return None;
        }
        // Times further ahead than any that were ever set: the clock was set back.
        let polled_at = self.polled_at.filter(|at| *at <= now);
        let paused_until = self
            .paused_until
            .filter(|until| until.since(now) <= RETRY_AFTER_MAX);
        let due = match (polled_at, &self.failure, requests) {
            (None, _, _) => now,
            (Some(_), Some(_), _) => paused_until.unwrap_or(now),
            (Some(polled_at), None, RequestsSincePoll::Some) => polled_at.after(interval),
            (Some(_), None, RequestsSincePoll::None) => return None,
        };
        let running = self
            .started_at
            .filter(|at| *at <= now)
            .map(|at| at.after(RUNNING_MAX));
        Some(running.map_or(due, |end| end.max(due)))
    }

    /// Notes that a poll began: another credential of the same login does not poll meanwhile.
    pub(crate) fn start(&mut self, now: Timestamp) {
        self.started_at = Some(now);
    }

    pub(crate) fn succeed(&mut self, now: Timestamp) {
        *self = Self {
            succeeded_at: Some(now),
            polled_at: Some(now),
            ..Self::default()
        };
    }

    pub(crate) fn fail(&mut self, reason: String, retry_after: Option<Duration>, now: Timestamp) {
        let pause = match retry_after {
            Some(pause) => pause.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX),
            None => back_off(self.failures),
        };
        self.failures += 1;
        self.started_at = None;
        self.polled_at = Some(now);
        self.paused_until = Some(now.after(pause));
        self.failure = Some(reason);
    }

    /// Notes that a poll failed whose token was rejected. No poll is due until [`Self::repeat`].
    pub(crate) fn stop(&mut self, reason: String, now: Timestamp) {
        self.fail(reason, None, now);
        self.is_stopped = true;
    }

    /// Notes that a poll was not sent: another credential of the same login may poll.
    pub(crate) fn abandon(&mut self) {
        self.started_at = None;
    }

    /// Makes the next poll due at once.
    pub(crate) fn repeat(&mut self) {
        self.polled_at = None;
        self.started_at = None;
        self.is_stopped = false;
    }

    /// Whether polls are stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Returns when the last poll succeeded.
    pub(crate) fn succeeded_at(&self) -> Option<Timestamp> {
        self.succeeded_at
    }

    /// Returns why the last poll failed, if it did.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }
}

/// Returns the pause after `failures` consecutive failures and one more.
pub(crate) fn back_off(failures: usize) -> Duration {
    BACK_OFF[failures.min(BACK_OFF.len() - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(2_000_000_000_000);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_poll_is_due_once_at_start_and_then_while_there_are_requests() {
        let mut schedule = PollSchedule::default();
        assert_eq!(
            schedule.due_at(RequestsSincePoll::None, MINUTE, NOW),
            Some(NOW)
        );
        schedule.succeed(NOW);
        assert_eq!(schedule.due_at(RequestsSincePoll::None, MINUTE, NOW), None);
        assert_eq!(
            schedule.due_at(RequestsSincePoll::Some, MINUTE, NOW),
            Some(NOW.after(MINUTE))
        );
        assert_eq!(
            schedule.due_at(RequestsSincePoll::None, MINUTE, Timestamp(5)),
            Some(Timestamp(5)),
            "the clock was set back"
        );
    }

    #[test]
    fn no_poll_is_due_while_one_is_running() {
        let mut schedule = PollSchedule::default();
        schedule.start(NOW);
        let later = NOW.after(Duration::from_secs(1));
        let due = schedule.due_at(RequestsSincePoll::Some, MINUTE, later);
        assert_eq!(due, Some(NOW.after(RUNNING_MAX)));
        schedule.succeed(later);
        let due = schedule.due_at(RequestsSincePoll::Some, MINUTE, later);
        assert_eq!(due, Some(later.after(MINUTE)));
    }

    #[test]
    fn failures_back_off_to_five_minutes_or_for_the_time_that_upstream_asks_for() {
        let mut schedule = PollSchedule::default();
        for minutes in [1, 2, 4, 5, 5] {
            schedule.fail("500".to_owned(), None, NOW);
            assert_eq!(
                schedule.due_at(RequestsSincePoll::Some, MINUTE, NOW),
                Some(NOW.after(MINUTE * minutes))
            );
        }
        schedule.fail("429".to_owned(), Some(Duration::from_secs(7)), NOW);
        assert_eq!(
            schedule.due_at(RequestsSincePoll::None, MINUTE, NOW),
            Some(NOW.after(Duration::from_secs(7)))
        );
        schedule.succeed(NOW);
        assert_eq!(schedule.failure(), None);
    }
}
