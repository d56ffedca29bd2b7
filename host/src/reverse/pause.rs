//! How long a gateway waits before it connects again.

use std::time::Duration;

/// A session that lasted this long was no failure.
const LASTING: Duration = Duration::from_secs(60);

/// After this many failures the pause does not grow any more.
const FAILURES_MAX: u32 = 5;

/// A session that lasted this long was not replaced by another connector's, which returns at once.
const UNDISPUTED: Duration = Duration::from_secs(10);

/// The longest pause before the return to a gateway that asked to connect again.
const RETURN_PAUSE_MAX: Duration = Duration::from_millis(100);

/// How an attempt to keep a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectorOutcome {
    /// There was no session.
    Failed,
    /// The session broke or was closed, after this time.
    Ended(Duration),
    /// The other gateway announced that it takes no more requests over the session, after this
    /// time: another process or another connection is in its place.
    AskedToReturn(Duration),
}

/// What a connector does before its next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReconnectPause {
    /// It returns as soon as it can: requests may be waiting for it.
    Return(Duration),
    /// It pauses, because the attempt failed or the session was short.
    Failure(Duration),
}

impl ReconnectPause {
    /// Returns how long it is.
    pub fn length(self) -> Duration {
        match self {
            Self::Return(length) | Self::Failure(length) => length,
        }
    }
}

/// The pauses between the attempts of one connector.
#[derive(Debug, Default)]
pub struct ReconnectPauses {
    failures: u32,
    /// Whether the last attempt was a return. Two connectors with one token would otherwise replace
    /// each other without a pause.
    has_returned: bool,
}

impl ReconnectPauses {
    /// Returns the pause after an attempt, at most `longest`. `chance`, from 0 to 1, adds up to half
    /// of it, so that connectors do not return all at once.
    pub fn after(
        &mut self,
        outcome: ConnectorOutcome,
        longest: Duration,
        chance: f64,
    ) -> ReconnectPause {
        let chance = chance.clamp(0.0, 1.0);
        let (lasted, is_asked) = match outcome {
            ConnectorOutcome::Failed => (Duration::ZERO, false),
            ConnectorOutcome::Ended(lasted) => (lasted, false),
            ConnectorOutcome::AskedToReturn(lasted) => (lasted, true),
        };
        if lasted >= LASTING {
            self.failures = 0;
        }
        let returns = is_asked && (!self.has_returned || lasted >= UNDISPUTED);
        self.has_returned = returns;
        if returns {
            return ReconnectPause::Return(longest.min(RETURN_PAUSE_MAX).mul_f64(chance));
        }
        self.failures = (self.failures + 1).min(FAILURES_MAX);
        let pause = Duration::from_secs(1 << self.failures).min(longest);
        ReconnectPause::Failure(pause + pause.mul_f64(chance / 2.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(30);

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_again_after_a_lasting_session() {
        let mut pauses = ReconnectPauses::default();
        let failed = ConnectorOutcome::Failed;
        let seconds: Vec<u64> = (0..6)
            .map(|_| pauses.after(failed, LONGEST, 0.0).length().as_secs())
            .collect();
        assert_eq!(seconds, [2, 4, 8, 16, 30, 30]);
        assert_eq!(
            pauses.after(failed, LONGEST, 1.0).length(),
            Duration::from_secs(45),
            "half of it is left to chance"
        );
        assert_eq!(
            pauses.after(ConnectorOutcome::Ended(LASTING), LONGEST, 0.0),
            ReconnectPause::Failure(Duration::from_secs(2))
        );
    }

    #[test]
    fn a_connector_that_is_asked_to_returns_at_once_and_not_again_if_it_is_replaced() {
        let mut pauses = ReconnectPauses::default();
        let (short, long) = (Duration::from_secs(1), UNDISPUTED);
        let mut asked_after = |lasted| {
            let outcome = ConnectorOutcome::AskedToReturn(lasted);
            pauses.after(outcome, LONGEST, 1.0)
        };
        assert_eq!(asked_after(short), ReconnectPause::Return(RETURN_PAUSE_MAX));
        assert_eq!(
            asked_after(short),
            ReconnectPause::Failure(Duration::from_secs(3))
        );
        assert_eq!(asked_after(long), ReconnectPause::Return(RETURN_PAUSE_MAX));
        assert_eq!(asked_after(long), ReconnectPause::Return(RETURN_PAUSE_MAX));
        assert_eq!(
            asked_after(short),
            ReconnectPause::Failure(Duration::from_secs(6)),
            "the pauses still grow"
        );
    }
}
