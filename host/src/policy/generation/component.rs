//! A generation of a policy whose kind is `W`: a loaded component, or the reason why there is none.
//!
//! Owns everything that is the same for all calls: the circuit breaker, counters, finding out that
//! a component is slow, and the policy threads for slow ones. Does not know what a call decides.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use wasmtime::{Result, Store};

use super::breaker::{BreakerChange, BreakerRules, CallVerdict, CircuitBreaker, EarlierGeneration};
use super::instances::InstancePool;
use super::shared::SharedPolicyState;
use super::threads::QueueFull;
use crate::policy::call::recorded::{CallArguments, CallOutcome, OwnedRequestFacts, RecordedCall};
use crate::policy::contract::bindings::types::Request;
use crate::policy::contract::facts::{CallPurpose, RequestFacts};
use crate::policy::contract::identity::ComponentIdentity;
use crate::policy::contract::manifest::CheckedManifest;
use crate::policy::engine::fault::{CallFailure, FaultKind, GuestFunction, PolicyFault};
use crate::policy::engine::guest::GuestState;
use crate::policy::engine::world::PolicyWorld;

/// A component is slow after this many slow calls in a row.
const SLOW_CALLS: u32 = 16;

/// A generation of a policy.
pub(crate) struct ComponentGeneration<W: PolicyWorld> {
    shared: Arc<SharedPolicyState>,
    state: GenerationState<W>,
}

impl<W: PolicyWorld> fmt::Debug for ComponentGeneration<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ComponentGeneration")
            .field("tag", self.shared.tag())
            .field("generation", &self.status().generation)
            .finish_non_exhaustive()
    }
}

enum GenerationState<W: PolicyWorld> {
    Loaded(Box<ConfiguredComponent<W>>),
    /// The component is not loaded: each call fails with `reason`.
    Unavailable {
        identity: ComponentIdentity,
        reason: String,
    },
}

/// A component that went through all stages of loading.
pub(crate) struct ConfiguredComponent<W: PolicyWorld> {
    number: u64,
    identity: ComponentIdentity,
    manifest: CheckedManifest,
    instances: InstancePool<W>,
    breaker: CircuitBreaker,
    speed: CallSpeed,
}

/// Whether a component is too slow for the threads that serve requests.
#[derive(Default)]
struct CallSpeed {
    is_slow: AtomicBool,
    slow_calls_in_a_row: AtomicU32,
}

/// The state of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GenerationStatus {
    /// The generation's number; 0 if no component is loaded.
    pub(crate) generation: u64,
    /// How long the circuit breaker stays open. `None` if it is closed.
    pub(crate) breaker_open_for: Option<Duration>,
    /// Whether calls run on policy threads.
    pub(crate) is_slow: bool,
    /// Whether the generation is past its first calls, or has no earlier one to fall back to.
    pub(crate) has_passed_probation: bool,
}

/// What the gateway can do with a generation of any kind.
pub(crate) trait GenerationControl {
    fn identity(&self) -> &ComponentIdentity;
    fn status(&self) -> GenerationStatus;
    /// Closes the circuit breaker.
    fn close_breaker(&self);
    /// Closes the circuit breaker, and puts the generation on probation again.
    fn restart_probation(&self);
}

impl<W: PolicyWorld> ConfiguredComponent<W> {
    pub(super) fn new(
        number: u64,
        identity: ComponentIdentity,
        manifest: CheckedManifest,
        instances: InstancePool<W>,
        breaker_rules: BreakerRules,
    ) -> Self {
        let earlier = if number > 1 {
            EarlierGeneration::Exists
        } else {
            EarlierGeneration::None
        };
        Self {
            number,
            identity,
            manifest,
            instances,
            breaker: CircuitBreaker::new(breaker_rules, earlier),
            speed: CallSpeed::default(),
        }
    }
}

impl<W: PolicyWorld> ComponentGeneration<W> {
    pub(super) fn loaded(
        shared: &Arc<SharedPolicyState>,
        component: ConfiguredComponent<W>,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            state: GenerationState::Loaded(Box::new(component)),
        }
    }

    /// Creates a generation without a component: each call fails with `reason`.
    pub(crate) fn unavailable(shared: &Arc<SharedPolicyState>, reason: String) -> Self {
        Self {
            shared: Arc::clone(shared),
            state: GenerationState::Unavailable {
                identity: ComponentIdentity::not_loaded(shared.tag()),
                reason,
            },
        }
    }

    pub(crate) fn shared(&self) -> &Arc<SharedPolicyState> {
        &self.shared
    }

    /// Returns the component's manifest. `None` if no component is loaded.
    pub(crate) fn manifest(&self) -> Option<&CheckedManifest> {
        self.component().map(|component| &component.manifest)
    }

    /// Returns whether calls run on policy threads.
    pub(crate) fn is_slow(&self) -> bool {
        self.component()
            .is_some_and(|component| component.speed.is_slow.load(Ordering::Relaxed))
    }

    pub(super) fn mark_slow(&self) {
        if let Some(component) = self.component() {
            component.speed.is_slow.store(true, Ordering::Relaxed);
        }
    }

    fn component(&self) -> Option<&ConfiguredComponent<W>> {
        match &self.state {
            GenerationState::Loaded(component) => Some(component),
            GenerationState::Unavailable { .. } => None,
        }
    }

    /// Returns the request as this component's manifest asks to see it.
    pub(crate) fn request(&self, facts: &RequestFacts<'_>) -> Request {
        let fields = self.manifest().map_or(&[][..], CheckedManifest::strings);
        Request {
            strings: fields
                .iter()
                .map(|field| facts.string(*field).to_owned())
                .collect(),
            transport: facts.transport.number(),
            attempt: facts.attempt,
            now_ms: facts.now.0 as f64,
            seed: facts.visible_seed() as f64,
            sequence: facts.sequence as f64,
        }
    }

    /// Runs `call` in an instance on this thread, and checks its result.
    ///
    /// The call is counted, and too many faults open the circuit breaker, except in a self-test.
    pub(crate) fn call<A, R>(
        &self,
        function: GuestFunction,
        facts: &RequestFacts<'_>,
        call: impl FnOnce(&mut Store<GuestState>, &W) -> Result<A>,
        check: impl FnOnce(A) -> std::result::Result<R, CallFailure>,
    ) -> std::result::Result<R, PolicyFault> {
        let started = Instant::now();
        let run = |component: &ConfiguredComponent<W>| {
            component
                .instances
                .run(&self.shared, facts, started, call)
                .and_then(check)
        };
        let component = match &self.state {
            GenerationState::Loaded(component) => component,
            GenerationState::Unavailable { reason, .. } => {
                let failure = CallFailure::new(FaultKind::Unavailable, reason.as_str());
                return Err(self.count_fault(failure, function));
            }
        };
        if facts.purpose == CallPurpose::SelfTest {
            return run(component)
                .map_err(|failure| failure.into_fault(self.shared.tag(), function));
        }
        if let Err(left) = component.breaker.admit(started) {
            let detail = format!(
                "circuit breaker open after too many faults; half-open in {}",
                in_seconds(left)
            );
            let failure = CallFailure::new(FaultKind::BreakerOpen, detail);
            return Err(self.count_fault(failure, function));
        }
        let result = run(component);
        self.call_ended(component, started, result.as_ref().err());
        result.map_err(|failure| self.count_fault(failure, function))
    }

    /// Counts a call that ended with `failure` or well.
    fn call_ended(
        &self,
        component: &ConfiguredComponent<W>,
        started: Instant,
        failure: Option<&CallFailure>,
    ) {
        let ended = Instant::now();
        let took = ended - started;
        self.shared.stats().count_call(took);
        if component.speed.note(took, self.shared.slow_after()) {
            tracing::warn!(
                policy = &**self.shared.tag(),
                generation = component.number,
                "slow policy moved to policy threads"
            );
        }
        let verdict = match failure {
            Some(failure) if failure.kind.is_component_fault() => CallVerdict::AtFault,
            Some(_) | None => CallVerdict::NotAtFault,
        };
        match component.breaker.call_ended(verdict, ended) {
            BreakerChange::Unchanged => {}
            BreakerChange::Opened => {
                tracing::error!(
                    policy = &**self.shared.tag(),
                    generation = component.number,
                    digest = component.identity.digest,
                    "circuit breaker opened after too many faults"
                );
                self.shared.notify_breaker_opened();
            }
        }
    }

    fn count_fault(&self, failure: CallFailure, function: GuestFunction) -> PolicyFault {
        self.shared.stats().count_fault(failure.kind);
        failure.into_fault(self.shared.tag(), function)
    }

    /// Runs `job`, which calls `function`, on a policy thread, and waits for its result.
    pub(crate) async fn on_policy_thread<R: Send + 'static>(
        &self,
        function: GuestFunction,
        job: impl FnOnce() -> std::result::Result<R, PolicyFault> + Send + 'static,
    ) -> std::result::Result<R, PolicyFault> {
        match self.shared.threads().run(job).await {
            Ok(result) => result,
            Err(QueueFull) => Err(self.queue_full(function)),
        }
    }

    /// Queues `job`, which calls `function`, for a policy thread.
    ///
    /// # Errors
    /// The queue is full; the job does not run.
    pub(crate) fn queue_on_policy_thread(
        &self,
        function: GuestFunction,
        job: impl FnOnce() + Send + 'static,
    ) -> std::result::Result<(), PolicyFault> {
        self.shared
            .threads()
            .spawn(job)
            .map_err(|QueueFull| self.queue_full(function))
    }

    fn queue_full(&self, function: GuestFunction) -> PolicyFault {
        let detail = "the queue of the policy threads is full (limits.policy_queue)";
        self.count_fault(CallFailure::new(FaultKind::Unavailable, detail), function)
    }

    /// Passes a call that ended to the policy's recorder and shadow. `call` returns its arguments
    /// and outcome; it runs only if there is an observer.
    pub(crate) fn observe(
        &self,
        facts: &RequestFacts<'_>,
        started: Instant,
        call: impl FnOnce() -> (CallArguments, CallOutcome),
    ) {
        self.shared.observe(|| {
            let (arguments, outcome) = call();
            RecordedCall {
                policy: self.shared.tag().to_string(),
                generation: self.status().generation,
                digest: self.identity().digest.clone(),
                took_ns: u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX),
                request: OwnedRequestFacts::of(facts),
                arguments,
                outcome,
            }
        });
    }
}

impl<W: PolicyWorld> GenerationControl for ComponentGeneration<W> {
    fn identity(&self) -> &ComponentIdentity {
        match &self.state {
            GenerationState::Loaded(component) => &component.identity,
            GenerationState::Unavailable { identity, .. } => identity,
        }
    }

    fn status(&self) -> GenerationStatus {
        match &self.state {
            GenerationState::Loaded(component) => GenerationStatus {
                generation: component.number,
                breaker_open_for: component.breaker.open_for(Instant::now()),
                is_slow: component.speed.is_slow.load(Ordering::Relaxed),
                has_passed_probation: component.breaker.has_passed_probation(),
            },
            GenerationState::Unavailable { .. } => GenerationStatus {
                generation: 0,
                breaker_open_for: None,
                is_slow: false,
                has_passed_probation: false,
            },
        }
    }

    fn close_breaker(&self) {
        if let Some(component) = self.component() {
            component.breaker.close();
        }
    }

    fn restart_probation(&self) {
        if let Some(component) = self.component() {
            component.breaker.restart_probation();
        }
    }
}

/// Formats a duration as `10s` or `9m 58s`, rounded up to whole seconds.
fn in_seconds(duration: Duration) -> String {
    let seconds = duration.as_millis().div_ceil(1000);
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m {seconds}s"),
    }
}

impl CallSpeed {
    /// Notes the duration of a call, and returns whether the component turned out to be slow by it.
    /// A component may be slow for requests though it was fast in its self-test; a single slow call
    /// means little, since its thread may have waited for a processor.
    fn note(&self, took: Duration, slow_after: Duration) -> bool {
        if took <= slow_after {
            if self.slow_calls_in_a_row.load(Ordering::Relaxed) > 0 {
                self.slow_calls_in_a_row.store(0, Ordering::Relaxed);
            }
            return false;
        }
        let is_slow = self.slow_calls_in_a_row.fetch_add(1, Ordering::Relaxed) + 1 == SLOW_CALLS;
        if is_slow {
            self.is_slow.store(true, Ordering::Relaxed);
        }
        is_slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_rounded_up_to_seconds() {
        for (milliseconds, expected) in [
            (0, "0s"),
            (1, "1s"),
            (59_000, "59s"),
            (59_001, "1m 0s"),
            (598_400, "9m 59s"),
        ] {
            assert_eq!(in_seconds(Duration::from_millis(milliseconds)), expected);
        }
    }
}
