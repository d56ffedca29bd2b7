//! How long a gateway waits before it connects again.

use std::time::Duration;

/// A session that lasted this long was no failure.
const LASTING: Duration = Duration::from_secs(60);

/// After this many failures the pause does not grow any more.
const FAILURES_MAX: u32 = 5;

/// The pauses between the attempts of one connector.
#[derive(Debug, Default)]
pub struct ReconnectPauses {
    failures: u32,
}

impl ReconnectPauses {
    /// Returns the pause after an attempt whose session lasted for `lasted`, at most `longest`.
    /// `chance`, from 0 to 1, adds up to half of it, so that connectors do not return all at once.
    pub fn after(&mut self, lasted: Duration, longest: Duration, chance: f64) -> Duration {
        if lasted >= LASTING {
            self.failures = 0;
        }
        self.failures = (self.failures + 1).min(FAILURES_MAX);
        let pause = Duration::from_secs(1 << self.failures).min(longest);
        pause + pause.mul_f64(chance.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_again_after_a_lasting_session() {
        let longest = Duration::from_secs(30);
        let mut pauses = ReconnectPauses::default();
        let seconds: Vec<u64> = (0..6)
            .map(|_| pauses.after(Duration::ZERO, longest, 0.0).as_secs())
            .collect();
        assert_eq!(seconds, [2, 4, 8, 16, 30, 30]);
        assert_eq!(
            pauses.after(Duration::ZERO, longest, 1.0),
            Duration::from_secs(45),
            "half of it is left to chance"
        );
        assert_eq!(pauses.after(LASTING, longest, 0.0), Duration::from_secs(2));
    }
}
