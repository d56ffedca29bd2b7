//! A configured policy's place in the gateway: what all its generations share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Notify;

use super::quarantine::Rules;
use super::record::Recorder;
use super::repeat::Call;
use super::shadow::Shadow;
use super::stats::Stats;
use super::threads::Threads;
use crate::config::{PolicyConfig, PolicyKind};
use crate::values::clock::Timestamp;
use crate::values::limits::Limits;

/// A policy's place.
pub struct Slot {
    tag: Arc<str>,
    kind: PolicyKind,
    rules: Rules,
    slow_after: std::time::Duration,
    threads: Threads,
    stats: Stats,
    log: LogBudget,
    recorder: Option<Recorder>,
    shadow: RwLock<Option<Arc<Shadow>>>,
    /// Told when a generation is quarantined.
    trouble: Arc<Notify>,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot")
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

impl Slot {
    /// The place of `policy`. Whoever looks after it is told by `trouble` of what goes wrong in it.
    ///
    /// # Errors
    /// Its calls cannot be recorded.
    pub fn new(
        policy: &PolicyConfig,
        limits: &Limits,
        threads: &Threads,
        trouble: &Arc<Notify>,
    ) -> Result<Arc<Self>, String> {
        let recorder = policy
            .record
            .as_deref()
            .map(|path| Recorder::start(path, limits))
            .transpose()?;
        Ok(Arc::new(Self {
            recorder,
            ..Self::unwatched(policy, limits, threads, trouble)
        }))
    }

    /// A place by itself, for one who looks at a policy from outside.
    pub(super) fn alone(policy: &PolicyConfig, limits: &Limits) -> Arc<Self> {
        Arc::new(Self::unwatched(
            policy,
            limits,
            &Threads::new(limits),
            &Arc::default(),
        ))
    }

    fn unwatched(
        policy: &PolicyConfig,
        limits: &Limits,
        threads: &Threads,
        trouble: &Arc<Notify>,
    ) -> Self {
        Self {
            tag: policy.tag.as_str().into(),
            kind: policy.kind,
            rules: Rules::of(limits),
            slow_after: limits.policy_slow_after,
            threads: threads.clone(),
            stats: Stats::default(),
            log: LogBudget {
                lines_max: limits.policy_log_lines,
                second: AtomicU64::new(0),
                lines: AtomicU64::new(0),
            },
            recorder: None,
            shadow: RwLock::default(),
            trouble: Arc::clone(trouble),
        }
    }

    /// The policy's tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// What it decides.
    pub fn kind(&self) -> PolicyKind {
        self.kind
    }

    /// What its calls came to.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Calls that could not be recorded: the disk was slower than they came.
    pub fn unrecorded(&self) -> u64 {
        self.recorder.as_ref().map_or(0, Recorder::left_out)
    }

    /// The component that is run beside it.
    pub fn shadow(&self) -> Option<Arc<Shadow>> {
        self.shadow
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Runs that component beside it from now on.
    pub fn set_shadow(&self, shadow: Option<Arc<Shadow>>) {
        *self.shadow.write().unwrap_or_else(PoisonError::into_inner) = shadow;
    }

    pub(super) fn shared_tag(&self) -> &Arc<str> {
        &self.tag
    }

    pub(super) fn rules(&self) -> Rules {
        self.rules
    }

    pub(super) fn slow_after(&self) -> std::time::Duration {
        self.slow_after
    }

    pub(super) fn threads(&self) -> &Threads {
        &self.threads
    }

    pub(super) fn tell_of_trouble(&self) {
        self.trouble.notify_one();
    }

    /// Whether a guest may write one more line to the log in this second.
    pub(super) fn may_log(&self) -> bool {
        let may = self.log.take(Timestamp::now().unix());
        if !may {
            self.left_out_of_the_log();
        }
        may
    }

    pub(super) fn left_out_of_the_log(&self) {
        self.stats.left_out_of_the_log();
    }

    /// Keeps a call, where somebody wants to see it. It is put together only then.
    pub(super) fn note(&self, call: impl FnOnce() -> Call) {
        let shadow = self.shadow();
        if self.recorder.is_none() && shadow.is_none() {
            return;
        }
        let call = Arc::new(call());
        if let Some(recorder) = &self.recorder {
            recorder.take(&call);
        }
        if let Some(shadow) = shadow {
            shadow.take(&call);
        }
    }
}

/// Lines a second.
struct LogBudget {
    lines_max: u64,
    second: AtomicU64,
    lines: AtomicU64,
}

impl LogBudget {
    fn take(&self, now: u64) -> bool {
        if self.second.swap(now, Ordering::Relaxed) != now {
            self.lines.store(0, Ordering::Relaxed);
        }
        self.lines.fetch_add(1, Ordering::Relaxed) < self.lines_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_so_many_lines() {
        let budget = LogBudget {
            lines_max: 2,
            second: AtomicU64::new(0),
            lines: AtomicU64::new(0),
        };
        assert_eq!(
            [5, 5, 5, 6].map(|second| budget.take(second)),
            [true, true, false, true]
        );
    }
}
