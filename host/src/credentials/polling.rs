//! When a credential's use is asked for, and what came of it. A failure makes what is known stale, and nothing else.

use std::time::Duration;

use crate::values::clock::Timestamp;

/// After failures, one after another; the last counts for all further ones.
const BACK_OFF: [Duration; 4] = [
    Duration::from_secs(60),
    Duration::from_secs(120),
    Duration::from_secs(240),
    Duration::from_secs(300),
];

/// One that wants to be asked again at once is not.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// A usage API that wants to be left alone for longer is asked again after this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);

/// What is known of the polling of a credential.
#[derive(Debug, Default)]
pub(super) struct Polling {
    /// The last poll that told something.
    pub(super) told_at: Option<Timestamp>,
    /// Why the last one told nothing.
    pub(super) failure: Option<String>,
    asked_at: Option<Timestamp>,
    again_at: Option<Timestamp>,
    failures: usize,
}

impl Polling {
    /// When the next poll is due; none: when there was traffic.
    pub(super) fn due_at(
        &self,
        traffic: bool,
        interval: Duration,
        now: Timestamp,
    ) -> Option<Timestamp> {
        // Further ahead than they were ever set: the clock was put back.
        let asked_at = self.asked_at.filter(|at| *at <= now);
        let again_at = self.again_at.filter(|at| at.since(now) <= RETRY_AFTER_MAX);
        match (asked_at, &self.failure) {
            (None, _) => Some(now),
            (Some(_), Some(_)) => Some(again_at.unwrap_or(now)),
            (Some(asked), None) => traffic.then(|| asked.after(interval)),
        }
    }

    pub(super) fn told(&mut self, now: Timestamp) {
        *self = Self {
            told_at: Some(now),
            asked_at: Some(now),
            ..Self::default()
        };
    }

    pub(super) fn failed(&mut self, reason: String, retry_after: Option<Duration>, now: Timestamp) {
        let pause = match retry_after {
            Some(told) => told.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX),
            None => BACK_OFF[self.failures.min(BACK_OFF.len() - 1)],
        };
        self.failures += 1;
        self.asked_at = Some(now);
        self.again_at = Some(now.after(pause));
        self.failure = Some(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(2_000_000_000_000);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn once_at_start_and_then_while_there_is_traffic() {
        let mut polling = Polling::default();
        assert_eq!(polling.due_at(false, MINUTE, NOW), Some(NOW));
        polling.told(NOW);
        assert_eq!(polling.due_at(false, MINUTE, NOW), None);
        assert_eq!(polling.due_at(true, MINUTE, NOW), Some(NOW.after(MINUTE)));
        assert_eq!(
            polling.due_at(false, MINUTE, Timestamp(5)),
            Some(Timestamp(5)),
            "the clock was put back"
        );
    }

    #[test]
    fn failures_back_off_to_five_minutes_or_as_told() {
        let mut polling = Polling::default();
        for minutes in [1, 2, 4, 5, 5] {
            polling.failed("500".to_owned(), None, NOW);
            assert_eq!(
                polling.due_at(true, MINUTE, NOW),
                Some(NOW.after(MINUTE * minutes))
            );
        }
        polling.failed("429".to_owned(), Some(Duration::from_secs(7)), NOW);
        assert_eq!(
            polling.due_at(false, MINUTE, NOW),
            Some(NOW.after(Duration::from_secs(7)))
        );
        polling.told(NOW);
        assert_eq!(polling.failure, None);
    }
}
