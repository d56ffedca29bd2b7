//! The state that all generations of a policy share: counters, the log's budget, recorder and
//! shadow.
//!
//! It does not know components. It outlives a reload, so that counters continue.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::breaker::BreakerRules;
use super::threads::PolicyThreads;
use crate::config::PolicyConfig;
use crate::policy::call::comparison::PolicyShadow;
use crate::policy::call::observers::CallObservers;
use crate::policy::call::recorded::RecordedCall;
use crate::policy::call::recorder::{CallRecorder, RecordError};
use crate::policy::engine::guest_log::GuestLog;
use crate::policy::engine::stats::PolicyStats;
use crate::values::limits::Limits;

pub(crate) struct SharedPolicyState {
    tag: Arc<str>,
    breaker_rules: BreakerRules,
    /// A policy whose calls take longer than this is slow.
    slow_after: Duration,
    threads: PolicyThreads,
    stats: Arc<PolicyStats>,
    log: Arc<GuestLog>,
    observers: CallObservers,
    /// Notified when the breaker of a generation opens.
    breaker_opened: Arc<Notify>,
}

impl std::fmt::Debug for SharedPolicyState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedPolicyState")
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

impl SharedPolicyState {
    /// Creates the state of `policy`, and starts its recorder if it has one.
    ///
    /// # Errors
    /// The policy's calls cannot be recorded.
    pub(crate) fn new(
        policy: &PolicyConfig,
        limits: &Limits,
        threads: &PolicyThreads,
        breaker_opened: &Arc<Notify>,
    ) -> Result<Arc<Self>, RecordError> {
        let recorder = match &policy.record {
            Some(path) => Some(CallRecorder::start(path, limits)?),
            None => None,
        };
        let observers = CallObservers::new(recorder);
        Ok(Arc::new(Self::with_observers(
            policy,
            limits,
            threads,
            breaker_opened,
            observers,
        )))
    }

    /// Creates the state of a policy that no gateway runs, for a shadow or a replay.
    pub(crate) fn standalone(policy: &PolicyConfig, limits: &Limits) -> Arc<Self> {
        Arc::new(Self::with_observers(
            policy,
            limits,
            &PolicyThreads::new(limits),
            &Arc::default(),
            CallObservers::default(),
        ))
    }

    fn with_observers(
        policy: &PolicyConfig,
        limits: &Limits,
        threads: &PolicyThreads,
        breaker_opened: &Arc<Notify>,
        observers: CallObservers,
    ) -> Self {
        let tag: Arc<str> = policy.tag.as_str().into();
        let stats = Arc::default();
        let log = GuestLog::new(&tag, limits.policy_log_lines, &stats);
        Self {
            tag,
            breaker_rules: BreakerRules::of(limits),
            slow_after: limits.policy_slow_after,
            threads: threads.clone(),
            stats,
            log: Arc::new(log),
            observers,
            breaker_opened: Arc::clone(breaker_opened),
        }
    }

    pub(crate) fn tag(&self) -> &Arc<str> {
        &self.tag
    }

    pub(crate) fn stats(&self) -> &Arc<PolicyStats> {
        &self.stats
    }

    /// Returns the number of calls that could not be recorded because the disk was too slow.
    pub(crate) fn unrecorded(&self) -> u64 {
        self.observers.unrecorded()
    }

    /// Returns the component that shadows the policy.
    pub(crate) fn shadow(&self) -> Option<Arc<PolicyShadow>> {
        self.observers.shadow()
    }

    /// Replaces the component that shadows the policy.
    pub(crate) fn set_shadow(&self, shadow: Option<Arc<PolicyShadow>>) {
        self.observers.set_shadow(shadow);
    }

    pub(crate) fn breaker_rules(&self) -> BreakerRules {
        self.breaker_rules
    }

    pub(super) fn slow_after(&self) -> Duration {
        self.slow_after
    }

    pub(super) fn threads(&self) -> &PolicyThreads {
        &self.threads
    }

    pub(super) fn log(&self) -> &Arc<GuestLog> {
        &self.log
    }

    pub(super) fn notify_breaker_opened(&self) {
        self.breaker_opened.notify_one();
    }

    /// Passes a call to the recorder and the shadow. `call` is evaluated only if there is one.
    pub(super) fn observe(&self, call: impl FnOnce() -> RecordedCall) {
        self.observers.observe(call);
    }
}
