//! Loads generations and shadows of policies.
//!
//! Owns what every load needs: the engine, its threads, the limits. Does not know which generation serves.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinError;

use crate::config::{Config, ConfigProblem, PolicyConfig, PolicySource};
use crate::policy::{
    Engine, EngineError, LoadError, Loading, Policy, Shadow, Slot, Source, Threads, Urgency,
};
use crate::values::limits::Limits;

/// The folder of compiled code in `data_dir`.
const CACHE: &str = "compiled";

/// Loads policies.
#[derive(Clone)]
pub(crate) struct PolicyLoader {
    engine: Engine,
    /// The linear memory that the engine's pool reserves for each instance, in bytes.
    memory_max: usize,
    threads: Threads,
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
            engine: Engine::of_the_process(memory_max)?,
            memory_max,
            threads: Threads::new(limits),
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

    /// Returns a slot for `policy`, with its shadow.
    ///
    /// # Errors
    /// The record or the shadow cannot be used.
    pub(crate) fn slot(&self, policy: &PolicyConfig) -> Result<Arc<Slot>, LoadError> {
        let failed = |reason: String| LoadError::Component {
            tag: policy.tag.clone(),
            stage: "use it",
            reason,
        };
        let slot = Slot::new(policy, &self.limits, &self.threads, &self.trouble).map_err(failed)?;
        if let Some(shadow) = shadow_config(policy) {
            slot.set_shadow(Some(self.load_shadow(&shadow)?));
        }
        Ok(slot)
    }

    /// Loads a shadow from its own configuration, that of [`shadow_config`].
    ///
    /// # Errors
    /// The component cannot be used.
    pub(crate) fn load_shadow(&self, shadow: &PolicyConfig) -> Result<Arc<Shadow>, LoadError> {
        let loaded = crate::policy::load_alone(&self.engine, shadow)?;
        let stamp = loaded.stamp().clone();
        Shadow::start(loaded, stamp).map_err(|reason| LoadError::Component {
            tag: shadow.tag.clone(),
            stage: "run it",
            reason,
        })
    }

    /// Loads a generation. Blocks until it is compiled and tried.
    ///
    /// # Errors
    /// The component or its configuration cannot be used.
    pub(crate) fn load(
        &self,
        policy: &PolicyConfig,
        source: &Source,
        slot: &Arc<Slot>,
        generation: u64,
        urgency: Urgency,
        progress: &LoadProgress,
    ) -> Result<Policy, LoadError> {
        if policy.memory > self.memory_max {
            let path = policy.entry_path.clone().unwrap_or_default().key("memory");
            let message = format!(
                "expected at most {}, found {}: restart the gateway to raise it",
                self.memory_max, policy.memory
            );
            return Err(LoadError::Config(vec![ConfigProblem::new(path, message)]));
        }
        let started = Instant::now();
        let loading = Loading {
            slot,
            generation,
            urgency,
            progress: &|stage| progress.enter(stage),
        };
        let loaded = Policy::load(&self.engine, policy, source, &loading)?;
        let stamp = loaded.stamp();
        tracing::debug!(
            policy = policy.tag,
            generation,
            name = stamp.name,
            version = stamp.version,
            digest = stamp.digest,
            took_ms = started.elapsed().as_millis() as u64,
            "policy loaded"
        );
        Ok(loaded)
    }
}

/// Returns the configuration of the shadow beside `policy`, if it has one.
pub(crate) fn shadow_config(policy: &PolicyConfig) -> Option<PolicyConfig> {
    Some(PolicyConfig {
        tag: format!("{} (shadow)", policy.tag),
        source: PolicySource::File(policy.shadow.clone()?),
        shadow: None,
        record: None,
        ..policy.clone()
    })
}

/// The error of a load whose thread panicked.
pub(crate) fn load_panicked(tag: &str, error: &JoinError) -> LoadError {
    LoadError::Component {
        tag: tag.to_owned(),
        stage: "load it",
        reason: error.to_string(),
    }
}

/// How far a load has come. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct LoadProgress(Arc<Mutex<(&'static str, Instant)>>);

impl LoadProgress {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(("reading", Instant::now()))))
    }

    fn enter(&self, stage: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = stage;
    }

    /// Returns the current stage, and the time since the load began.
    pub(crate) fn stage(&self) -> (&'static str, Duration) {
        let (stage, started) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (stage, started.elapsed())
    }
}

/// The memory that any policy of `config` may use, in bytes: the engine's pool reserves it for each instance.
fn memory_max(config: &Config) -> usize {
    let largest = config.policies.iter().map(|policy| policy.memory).max();
    largest
        .unwrap_or_default()
        .max(crate::config::POLICY_MEMORY)
}
