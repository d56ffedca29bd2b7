//! The circuit breaker of a generation: a component that fails repeatedly is not called for a
//! while, then one call tries it.
//!
//! ```text
//! closed -- too many faults --> open -- the pause ends --> half-open (one call)
//!    ^                            ^                             |
//!    '--- the call succeeds ------+------- the call fails ------'
//! ```
//!
//! The configuration, metrics and status call an open breaker a quarantine. Invariant: asking
//! whether a call may run never waits for another call.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::values::limits::Limits;

/// The faults that open the breaker of a generation on probation.
const FAULTS_ON_PROBATION: usize = 2;

/// A pause doubles at most this often, so that the shift does not overflow.
const DOUBLINGS_MAX: u32 = 20;

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BreakerRules {
    /// The faults within `window` that open the breaker.
    faults: usize,
    window: Duration,
    /// The first pause. It doubles each time the breaker opens again.
    first_pause: Duration,
    longest_pause: Duration,
    /// The first calls of a generation, during which few faults open the breaker.
    probation_calls: u64,
}

impl BreakerRules {
    pub(crate) fn of(limits: &Limits) -> Self {
        Self {
            faults: usize::try_from(limits.policy_faults)
                .unwrap_or(usize::MAX)
                .max(1),
            window: limits.policy_fault_window,
            first_pause: limits.policy_quarantine,
            longest_pause: limits.policy_quarantine_max.max(limits.policy_quarantine),
            probation_calls: limits.policy_probation_calls,
        }
    }

    /// Returns the pause of a breaker that opened `openings` times before.
    pub(crate) fn pause(&self, openings: u32) -> Duration {
        self.first_pause
            .saturating_mul(1 << openings.min(DOUBLINGS_MAX))
            .min(self.longest_pause)
    }
}

/// Whether a generation replaced one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EarlierGeneration {
    /// The generation is the first one: there is nothing to fall back to.
    None,
    /// The gateway can fall back to the generation before, so the new one is on probation at first.
    Exists,
}

/// How a call ended, as far as the breaker is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallVerdict {
    NotAtFault,
    /// The component is at fault.
    AtFault,
}

/// The change that a call's end made to the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BreakerChange {
    /// The breaker did not open.
    Unchanged,
    /// The breaker opened because of this call.
    Opened,
}

/// The circuit breaker of one generation.
#[derive(Debug)]
pub(crate) struct CircuitBreaker {
    rules: BreakerRules,
    earlier: EarlierGeneration,
    created: Instant,
    /// The end of the pause in milliseconds since `created`, counted from 1; 0 if the breaker is
    /// closed.
    open_until: AtomicU64,
    /// The calls that ended during the probation.
    probation_calls: AtomicU64,
    history: Mutex<FaultHistory>,
}

#[derive(Debug, Default)]
struct FaultHistory {
    /// The times of the recent faults, in the unit of `open_until`.
    faults: VecDeque<u64>,
    /// How often the breaker opened since it was last closed.
    openings: u32,
}

impl CircuitBreaker {
    pub(crate) fn new(rules: BreakerRules, earlier: EarlierGeneration) -> Self {
        Self {
            rules,
            earlier,
            created: Instant::now(),
            open_until: AtomicU64::new(0),
            probation_calls: AtomicU64::new(0),
            history: Mutex::default(),
        }
    }

    /// Checks whether a call may run at `at`.
    ///
    /// # Errors
    /// The breaker is open for the returned time.
    pub(crate) fn admit(&self, at: Instant) -> Result<(), Duration> {
        let until = self.open_until.load(Ordering::Relaxed);
        if until == 0 {
            return Ok(());
        }
        let now = self.milliseconds(at);
        if now < until {
            return Err(Duration::from_millis(until - now));
        }
        // Half-open: one call tries the component. Others are rejected until its outcome is known.
        let openings = self.history().openings;
        let next = now + milliseconds(self.rules.pause(openings));
        match self
            .open_until
            .compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed)
        {
            Ok(_) => Ok(()),
            Err(_) => Err(self.rules.pause(openings)),
        }
    }

    /// Notes that a call ended at `at`.
    pub(crate) fn call_ended(&self, verdict: CallVerdict, at: Instant) -> BreakerChange {
        let is_on_probation = self.count_probation_call();
        let is_open = self.open_until.load(Ordering::Relaxed) != 0;
        match verdict {
            CallVerdict::NotAtFault => {
                if is_open {
                    self.close();
                }
                BreakerChange::Unchanged
            }
            CallVerdict::AtFault => {
                let faults_max = if is_on_probation {
                    FAULTS_ON_PROBATION.min(self.rules.faults)
                } else {
                    self.rules.faults
                };
                let now = self.milliseconds(at);
                let mut history = self.history();
                history.add(now, &self.rules);
                if !is_open && history.faults.len() < faults_max {
                    return BreakerChange::Unchanged;
                }
                let pause = self.rules.pause(history.openings);
                history.openings = history.openings.saturating_add(1);
                history.faults.clear();
                self.open_until
                    .store(now + milliseconds(pause).max(1), Ordering::Relaxed);
                BreakerChange::Opened
            }
        }
    }

    /// Closes the breaker and forgets its history.
    pub(crate) fn close(&self) {
        *self.history() = FaultHistory::default();
        self.open_until.store(0, Ordering::Relaxed);
    }

    /// Closes the breaker, and puts the generation on probation again.
    pub(crate) fn restart_probation(&self) {
        self.probation_calls.store(0, Ordering::Relaxed);
        self.close();
    }

    /// Returns how long the breaker stays open from `at` on. `None` if it is closed.
    pub(crate) fn open_for(&self, at: Instant) -> Option<Duration> {
        let until = self.open_until.load(Ordering::Relaxed);
        (until != 0).then(|| Duration::from_millis(until.saturating_sub(self.milliseconds(at))))
    }

    /// Returns whether the generation is past its first calls, or has no earlier one.
    pub(crate) fn has_passed_probation(&self) -> bool {
        self.earlier == EarlierGeneration::None
            || self.probation_calls.load(Ordering::Relaxed) >= self.rules.probation_calls
    }

    /// Counts a call that ended, and returns whether it is one of the probation.
    fn count_probation_call(&self) -> bool {
        let most = self.rules.probation_calls;
        self.earlier == EarlierGeneration::Exists
            && self.probation_calls.load(Ordering::Relaxed) < most
            && self.probation_calls.fetch_add(1, Ordering::Relaxed) < most
    }

    fn milliseconds(&self, at: Instant) -> u64 {
        // From 1 on: 0 stands for a closed breaker.
        milliseconds(at.saturating_duration_since(self.created)) + 1
    }

    fn history(&self) -> MutexGuard<'_, FaultHistory> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FaultHistory {
    /// Adds a fault, and forgets those that no longer count.
    fn add(&mut self, now: u64, rules: &BreakerRules) {
        let window = milliseconds(rules.window);
        self.faults.push_back(now);
        while self.faults.len() > rules.faults
            || self
                .faults
                .front()
                .is_some_and(|first| now - first > window)
        {
            self.faults.pop_front();
        }
    }
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::BreakerChange::{Opened, Unchanged};
    use super::CallVerdict::{AtFault, NotAtFault};
    use super::*;

    fn breaker(earlier: EarlierGeneration) -> (CircuitBreaker, impl Fn(u64) -> Instant) {
        let rules = BreakerRules {
            faults: 3,
            window: Duration::from_secs(60),
            first_pause: Duration::from_secs(10),
            longest_pause: Duration::from_secs(35),
            probation_calls: 5,
        };
        let breaker = CircuitBreaker::new(rules, earlier);
        let created = breaker.created;
        (breaker, move |seconds| {
            created + Duration::from_secs(seconds)
        })
    }

    #[test]
    fn faults_outside_the_window_do_not_add_up() {
        let (breaker, at) = breaker(EarlierGeneration::None);
        for fault in 0..10 {
            assert_eq!(
                breaker.call_ended(AtFault, at(fault * 40)),
                Unchanged,
                "fault {fault}"
            );
        }
        assert_eq!(breaker.admit(at(400)), Ok(()));
    }

    #[test]
    fn open_breaker_admits_one_call_and_opens_for_longer_if_that_fails() {
        let (breaker, at) = breaker(EarlierGeneration::None);
        assert_eq!(
            [0, 1, 2].map(|second| breaker.call_ended(AtFault, at(second))),
            [Unchanged, Unchanged, Opened]
        );
        assert_eq!(breaker.admit(at(3)), Err(Duration::from_secs(9)));
        assert_eq!(breaker.admit(at(12)), Ok(()), "half-open");
        assert!(breaker.admit(at(12)).is_err(), "one call at a time");
        assert_eq!(breaker.call_ended(AtFault, at(12)), Opened);
        assert_eq!(breaker.open_for(at(12)), Some(Duration::from_secs(20)));
        assert_eq!(breaker.admit(at(33)), Ok(()));
        assert_eq!(breaker.call_ended(AtFault, at(33)), Opened);
        assert_eq!(
            breaker.open_for(at(33)),
            Some(Duration::from_secs(35)),
            "the longest pause"
        );
        assert_eq!(breaker.admit(at(70)), Ok(()));
        assert_eq!(breaker.call_ended(NotAtFault, at(70)), Unchanged);
        assert_eq!(
            (breaker.admit(at(70)), breaker.open_for(at(70))),
            (Ok(()), None),
            "closed"
        );
    }

    #[test]
    fn few_faults_open_the_breaker_of_a_generation_on_probation() {
        let (new, at) = breaker(EarlierGeneration::Exists);
        assert_eq!(
            [0, 1].map(|second| new.call_ended(AtFault, at(second))),
            [Unchanged, Opened]
        );
        let (proven, at) = breaker(EarlierGeneration::Exists);
        for second in 0..5 {
            assert_eq!(proven.call_ended(NotAtFault, at(second)), Unchanged);
        }
        assert_eq!(
            [5, 6, 7].map(|second| proven.call_ended(AtFault, at(second))),
            [Unchanged, Unchanged, Opened]
        );
        assert!(proven.has_passed_probation());
        proven.restart_probation();
        assert!(!proven.has_passed_probation());
        assert_eq!(
            [8, 9].map(|second| proven.call_ended(AtFault, at(second))),
            [Unchanged, Opened]
        );
    }
}
