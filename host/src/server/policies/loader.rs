//! Loads generations and shadows of policies.
//!
//! Owns what every load needs: the engine, its threads, the limits. Does not know which generation
//! serves.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::config::{Config, PolicyConfig};
use crate::policy::{
    CompilePriority, ComponentBytes, EngineError, LoadOptions, LoadPhase, LoadStage, PolicyEngine,
    PolicyGeneration, PolicyLoadError, PolicyShadow, PolicyThreads, SharedPolicyState, load_shadow,
    shadow_config,
};
use crate::values::limits::Limits;

/// The folder of compiled code in `data_dir`.
const CACHE: &str = "compiled";

/// What every load needs. Clones share the engine and its threads.
#[derive(Clone)]
pub(crate) struct PolicyLoader {
    engine: PolicyEngine,
    /// The linear memory that the engine's pool reserves for each instance, in bytes.
    memory_max: usize,
    threads: PolicyThreads,
    trouble: Arc<Notify>,
    limits: Arc<Limits>,
}

impl PolicyLoader {
    /// Returns a loader for the policies of `config`.
    ///
    /// # Errors
    /// This machine cannot run the engine.
    pub(crate) fn new(config: &Config, limits: &Arc<Limits>) -> Result<Self, EngineError> {
        let memory_max = memory_max(config);
        Ok(Self {
            engine: PolicyEngine::of_the_process(memory_max)?,
            memory_max,
            threads: PolicyThreads::new(limits),
            trouble: Arc::default(),
            limits: Arc::clone(limits),
        })
    }

    /// The same loader, which keeps compiled code in `data_dir`.
    pub(crate) fn with_cache(mut self, data_dir: &Path) -> Self {
        self.engine = self
            .engine
            .with_cache(&data_dir.join(CACHE), self.limits.policy_cache_bytes);
        self
    }

    /// The same loader with other limits.
    pub(crate) fn with_limits(&self, limits: &Arc<Limits>) -> Self {
        Self {
            limits: Arc::clone(limits),
            ..self.clone()
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Notified when a generation's circuit breaker opens.
    pub(crate) fn trouble(&self) -> &Arc<Notify> {
        &self.trouble
    }

    /// Returns the state that the generations of `policy` share, with its shadow.
    ///
    /// # Errors
    /// The record or the shadow cannot be used.
    pub(crate) fn shared_state(
        &self,
        policy: &PolicyConfig,
    ) -> Result<Arc<SharedPolicyState>, PolicyLoadError> {
        let shared = SharedPolicyState::new(policy, &self.limits, &self.threads, &self.trouble)
            .map_err(|error| PolicyLoadError::rejected(&policy.tag, LoadStage::Start, error))?;
        if let Some(shadow) = shadow_config(policy) {
            let source = ComponentBytes::read(&shadow)?;
            shared.set_shadow(Some(self.load_shadow(&shadow, &source)?));
        }
        Ok(shared)
    }

    /// Loads a shadow from its own configuration, that of `shadow_config`, and its component.
    ///
    /// # Errors
    /// The component cannot be used.
    pub(crate) fn load_shadow(
        &self,
        shadow: &PolicyConfig,
        source: &ComponentBytes,
    ) -> Result<Arc<PolicyShadow>, PolicyLoadError> {
        load_shadow(&self.engine, shadow, source)
    }

    /// Loads a generation. Blocks until it is compiled and tried.
    ///
    /// # Errors
    /// The component or its configuration cannot be used.
    pub(crate) fn load(
        &self,
        policy: &PolicyConfig,
        source: &ComponentBytes,
        shared: &Arc<SharedPolicyState>,
        generation: u64,
        priority: CompilePriority,
        progress: &LoadProgress,
    ) -> Result<PolicyGeneration, PolicyLoadError> {
        if policy.memory > self.memory_max {
            return Err(PolicyLoadError::memory(
                &policy.tag,
                self.memory_max,
                policy.memory,
            ));
        }
        let started = Instant::now();
        let loading = LoadOptions {
            shared,
            generation,
            priority,
            progress: &|stage| progress.enter(stage),
        };
        let loaded = PolicyGeneration::load(&self.engine, policy, source, &loading)?;
        let component = loaded.identity();
        tracing::debug!(
            policy = policy.tag,
            generation,
            name = component.name,
            version = component.version,
            digest = component.digest,
            took_ms = started.elapsed().as_millis() as u64,
            "policy loaded"
        );
        Ok(loaded)
    }
}

/// How far a load has come. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct LoadProgress(Arc<Mutex<(LoadStage, Instant)>>);

impl LoadProgress {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new((LoadStage::Read, Instant::now()))))
    }

    fn enter(&self, stage: LoadStage) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = stage;
    }

    /// Returns the current phase, and the time since the load began.
    pub(crate) fn phase(&self) -> (LoadPhase, Duration) {
        let (stage, started) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (stage.phase(), started.elapsed())
    }
}

/// The memory that any policy of `config` may use, in bytes: the engine's pool reserves it for each
/// instance.
fn memory_max(config: &Config) -> usize {
    let largest = config.policies.iter().map(|policy| policy.memory).max();
    largest
        .unwrap_or_default()
        .max(crate::config::POLICY_MEMORY)
}
