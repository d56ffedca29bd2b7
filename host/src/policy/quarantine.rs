//! Quarantine: a component that fails again and again is not called for a while, and then tried once.
//!
//! Owns when it is called again. Invariant: whoever asks whether it may be called waits for nobody.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::values::limits::Limits;

/// Faults among the first calls of a generation that has a good one before it: so many, and that one is back.
const FAULTS_ON_PROBATION: usize = 2;

/// A doubling pause does not grow past this many doublings, whatever its bounds.
const DOUBLINGS_MAX: u32 = 20;

/// When a component is quarantined, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// So many faults within [`Rules::window`].
    pub faults: usize,
    /// The span that faults are counted in.
    pub window: Duration,
    /// The first pause. It doubles with each further one.
    pub first: Duration,
    /// The longest pause.
    pub last: Duration,
    /// The calls in which a new generation must prove itself.
    pub probation_calls: u64,
}

impl Rules {
    /// The rules of `limits`.
    pub fn of(limits: &Limits) -> Self {
        Self {
            faults: usize::try_from(limits.policy_faults)
                .unwrap_or(usize::MAX)
                .max(1),
            window: limits.policy_fault_window,
            first: limits.policy_quarantine,
            last: limits.policy_quarantine_max.max(limits.policy_quarantine),
            probation_calls: limits.policy_probation_calls,
        }
    }

    /// The pause after so many before it.
    pub fn pause(&self, before: u32) -> Duration {
        self.first
            .saturating_mul(1 << before.min(DOUBLINGS_MAX))
            .min(self.last)
    }
}

/// The conduct of one generation.
#[derive(Debug)]
pub(super) struct Quarantine {
    rules: Rules,
    /// A generation before it was good: it has little room to fail in its first calls.
    has_predecessor: bool,
    begun: Instant,
    /// In milliseconds since `begun`; 0 where it is not barred.
    barred_until: AtomicU64,
    /// Calls of its probation that ended.
    calls: AtomicU64,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    faults: VecDeque<u64>,
    /// How often it was barred since it was last good.
    strikes: u32,
}

/// What a call's end means for the component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may go on.
    Free,
    /// It is barred from now on.
    Barred,
}

impl Quarantine {
    pub(super) fn new(rules: Rules, has_predecessor: bool) -> Self {
        Self {
            rules,
            has_predecessor,
            begun: Instant::now(),
            barred_until: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            record: Mutex::default(),
        }
    }

    /// Whether it may be called at `at`.
    ///
    /// # Errors
    /// For how long it may not.
    pub(super) fn admits(&self, at: Instant) -> Result<(), Duration> {
        let until = self.barred_until.load(Ordering::Relaxed);
        if until == 0 {
            return Ok(());
        }
        let now = self.millis(at);
        if now < until {
            return Err(Duration::from_millis(until - now));
        }
        // One call tries it. The others stay out until it is known what came of that.
        let strikes = self.record().strikes;
        let next = now + millis(self.rules.pause(strikes));
        match self
            .barred_until
            .compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed)
        {
            Ok(_) => Ok(()),
            Err(_) => Err(self.rules.pause(strikes)),
        }
    }

    /// A call ended at `at`.
    pub(super) fn ended(&self, was_misconduct: bool, at: Instant) -> Verdict {
        let on_probation = self.is_on_probation();
        let barred = self.barred_until.load(Ordering::Relaxed) != 0;
        if !was_misconduct {
            if barred {
                self.lift();
            }
            return Verdict::Free;
        }
        let now = self.millis(at);
        let mut record = self.record();
        let window = millis(self.rules.window);
        record.faults.push_back(now);
        while record.faults.len() > self.rules.faults
            || record
                .faults
                .front()
                .is_some_and(|first| now - first > window)
        {
            record.faults.pop_front();
        }
        let room = if on_probation {
            FAULTS_ON_PROBATION.min(self.rules.faults)
        } else {
            self.rules.faults
        };
        if !barred && record.faults.len() < room {
            return Verdict::Free;
        }
        let until = now + millis(self.rules.pause(record.strikes)).max(1);
        record.strikes = record.strikes.saturating_add(1);
        record.faults.clear();
        self.barred_until.store(until, Ordering::Relaxed);
        Verdict::Barred
    }

    /// Lets it be called again, as one that was never barred.
    pub(super) fn lift(&self) {
        *self.record() = Record::default();
        self.barred_until.store(0, Ordering::Relaxed);
    }

    /// Lets it be called again, and prove itself again.
    pub(super) fn try_anew(&self) {
        self.calls.store(0, Ordering::Relaxed);
        self.lift();
    }

    /// For how long it is barred from `at` on; none where it is not.
    pub(super) fn barred_for(&self, at: Instant) -> Option<Duration> {
        let until = self.barred_until.load(Ordering::Relaxed);
        (until != 0).then(|| Duration::from_millis(until.saturating_sub(self.millis(at))))
    }

    /// Whether it has had its first calls, or has no predecessor.
    pub(super) fn is_proven(&self) -> bool {
        !self.has_predecessor || self.calls.load(Ordering::Relaxed) >= self.rules.probation_calls
    }

    /// Whether the call that ended is one of its first, where it has a predecessor.
    fn is_on_probation(&self) -> bool {
        let most = self.rules.probation_calls;
        self.has_predecessor
            && self.calls.load(Ordering::Relaxed) < most
            && self.calls.fetch_add(1, Ordering::Relaxed) < most
    }

    fn millis(&self, at: Instant) -> u64 {
        // 0 means something else.
        millis(at.saturating_duration_since(self.begun)) + 1
    }

    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quarantine(has_predecessor: bool) -> (Quarantine, impl Fn(u64) -> Instant) {
        let rules = Rules {
            faults: 3,
            window: Duration::from_secs(60),
            first: Duration::from_secs(10),
            last: Duration::from_secs(35),
            probation_calls: 5,
        };
        let quarantine = Quarantine::new(rules, has_predecessor);
        let begun = quarantine.begun;
        (quarantine, move |seconds| {
            begun + Duration::from_secs(seconds)
        })
    }

    #[test]
    fn faults_far_apart_do_not_count_together() {
        let (quarantine, at) = quarantine(false);
        for fault in 0..10 {
            assert_eq!(
                quarantine.ended(true, at(fault * 40)),
                Verdict::Free,
                "fault {fault}"
            );
        }
        assert_eq!(quarantine.admits(at(400)), Ok(()));
    }

    #[test]
    fn it_is_barred_tried_once_and_barred_for_longer() {
        let (quarantine, at) = quarantine(false);
        assert_eq!(
            [0, 1, 2]
                .map(|second| quarantine.ended(true, at(second)))
                .last(),
            Some(&Verdict::Barred)
        );
        assert_eq!(quarantine.admits(at(3)), Err(Duration::from_secs(9)));
        // One tries; the next stays out meanwhile.
        assert_eq!(quarantine.admits(at(12)), Ok(()));
        assert!(quarantine.admits(at(12)).is_err());
        assert_eq!(quarantine.ended(true, at(12)), Verdict::Barred);
        assert_eq!(quarantine.barred_for(at(12)), Some(Duration::from_secs(20)));
        assert_eq!(quarantine.admits(at(33)), Ok(()));
        assert_eq!(quarantine.ended(true, at(33)), Verdict::Barred);
        assert_eq!(
            quarantine.barred_for(at(33)),
            Some(Duration::from_secs(35)),
            "up to the longest pause"
        );
        assert_eq!(quarantine.admits(at(70)), Ok(()));
        assert_eq!(quarantine.ended(false, at(70)), Verdict::Free);
        assert_eq!(
            (quarantine.admits(at(70)), quarantine.barred_for(at(70))),
            (Ok(()), None),
            "good again"
        );
    }

    #[test]
    fn a_new_generation_has_little_room_to_fail() {
        let (new, at) = quarantine(true);
        assert_eq!(new.ended(true, at(0)), Verdict::Free);
        assert_eq!(new.ended(true, at(1)), Verdict::Barred);
        let (proven, at) = quarantine(true);
        for second in 0..5 {
            assert_eq!(proven.ended(false, at(second)), Verdict::Free);
        }
        assert_eq!(
            [5, 6, 7].map(|second| proven.ended(true, at(second))),
            [Verdict::Free, Verdict::Free, Verdict::Barred]
        );
        assert!(proven.is_proven());
        proven.try_anew();
        assert!(
            !proven.is_proven(),
            "what failed after its first calls has to prove itself again"
        );
        assert_eq!(
            [8, 9].map(|second| proven.ended(true, at(second))),
            [Verdict::Free, Verdict::Barred]
        );
    }
}
