//! Loads a component stage by stage: inspect, compile, link, instantiate, describe, configure,
//! prepare, self-test.
//!
//! Does not know which generation a new one replaces: a failure at any stage is an error, and the
//! caller keeps the current version.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::Store;
use wasmtime::component::Component;

use super::component::{ComponentGeneration, ConfiguredComponent};
use super::instances::InstancePool;
use super::load_error::{LoadStage, PolicyLoadError};
use super::shared::SharedPolicyState;
use super::source::ComponentBytes;
use crate::config::{ConfigPath, ConfigProblem, PolicyConfig, SchemaValidator};
use crate::policy::contract::bindings::types::Diagnostic;
use crate::policy::contract::identity::ComponentIdentity;
use crate::policy::contract::imports;
use crate::policy::contract::manifest::CheckedManifest;
use crate::policy::engine::PolicyEngine;
use crate::policy::engine::compile::CompilePriority;
use crate::policy::engine::fault::PolicyFault;
use crate::policy::engine::guest::GuestState;
use crate::policy::engine::world::PolicyWorld;

/// The calls of a self-test. The first one runs in a cold instance.
const SELF_TEST_CALLS: usize = 4;

/// How a component is loaded.
#[derive(Clone, Copy)]
pub(crate) struct LoadOptions<'a> {
    /// The state of the policy that the component is for.
    pub(crate) shared: &'a Arc<SharedPolicyState>,
    /// The generation's number, from 1 on.
    pub(crate) generation: u64,
    pub(crate) priority: CompilePriority,
    /// Called at the beginning of the longer stages.
    pub(crate) progress: &'a (dyn Fn(LoadStage) + Sync),
}

impl<'a> LoadOptions<'a> {
    /// Returns the options for the first generation of a policy while nothing is served.
    pub(crate) fn first(shared: &'a Arc<SharedPolicyState>) -> Self {
        Self {
            shared,
            generation: 1,
            priority: CompilePriority::Startup,
            progress: &|_| (),
        }
    }
}

/// Loads a component of the kind `W`, up to and without its self-test.
pub(crate) fn load<W: PolicyWorld>(
    engine: &PolicyEngine,
    policy: &PolicyConfig,
    source: &ComponentBytes,
    options: &LoadOptions<'_>,
) -> Result<ComponentGeneration<W>, PolicyLoadError> {
    let rejected = |stage, reason: String| PolicyLoadError::rejected(&policy.tag, stage, reason);
    imports::check(source.bytes(), W::KIND)
        .map_err(|error| rejected(LoadStage::Inspect, error.to_string()))?;
    (options.progress)(LoadStage::Compile);
    let component = engine
        .compile(source.digest(), source.bytes(), options.priority)
        .map_err(|error| rejected(LoadStage::Compile, format!("{error:#}")))?;
    (options.progress)(LoadStage::Configure);
    let linked = link::<W>(engine, &component)
        .map_err(|error| rejected(LoadStage::Link, format!("{error:#}")))?;
    let manifest = configure_once::<W>(engine, policy, &linked, options.shared)?;
    let identity = ComponentIdentity {
        name: manifest.name().to_owned(),
        version: manifest.version().to_owned(),
        digest: source.digest_hex(),
    };
    let instances = InstancePool::new(
        engine,
        linked,
        policy.config.to_string(),
        policy.timeout,
        policy.memory,
    );
    (options.progress)(LoadStage::SelfTest);
    Ok(ComponentGeneration::loaded(
        options.shared,
        ConfiguredComponent::new(
            options.generation,
            identity,
            manifest,
            instances,
            options.shared.breaker_rules(),
        ),
    ))
}

fn link<W: PolicyWorld>(
    engine: &PolicyEngine,
    component: &Component,
) -> wasmtime::Result<W::Linked> {
    W::link(engine.linker().instantiate_pre(component)?)
}

/// Takes a first instance through the remaining stages, and returns the component's manifest.
fn configure_once<W: PolicyWorld>(
    engine: &PolicyEngine,
    policy: &PolicyConfig,
    linked: &W::Linked,
    shared: &SharedPolicyState,
) -> Result<CheckedManifest, PolicyLoadError> {
    let trapped = |stage, error: &wasmtime::Error, store: &Store<GuestState>| {
        PolicyLoadError::rejected(&policy.tag, stage, store.data().describe_error(error))
    };
    let mut store = GuestState::new_store(
        engine.wasmtime(),
        shared.stats(),
        shared.log(),
        policy.memory,
    );
    let _running = engine.start_call(&mut store);
    let world = W::instantiate(linked, &mut store)
        .map_err(|error| trapped(LoadStage::Instantiate, &error, &store))?;
    let manifest = world
        .describe(&mut store)
        .map_err(|error| trapped(LoadStage::Describe, &error, &store))?;
    let manifest = CheckedManifest::check(manifest)
        .map_err(|error| PolicyLoadError::rejected(&policy.tag, LoadStage::Describe, error))?;
    check_schema(&manifest, policy)?;
    world
        .configure(&mut store, &policy.config.to_string())
        .map_err(|error| trapped(LoadStage::Configure, &error, &store))?
        .map_err(|diagnostics| PolicyLoadError::config(&policy.tag, problems(diagnostics)))?;
    world
        .prepare(&mut store)
        .map_err(|error| trapped(LoadStage::Prepare, &error, &store))?;
    Ok(manifest)
}

/// Calls a loaded component a few times. If even its quickest call is slow, its calls run on policy
/// threads.
///
/// # Errors
/// A call failed, and the component is at fault.
pub(crate) fn self_test<W: PolicyWorld>(
    generation: &ComponentGeneration<W>,
    policy: &PolicyConfig,
    mut call: impl FnMut(&ComponentGeneration<W>) -> Result<(), PolicyFault>,
) -> Result<(), PolicyLoadError> {
    let mut quickest = Duration::MAX;
    for _ in 0..SELF_TEST_CALLS {
        let started = Instant::now();
        match call(generation) {
            Err(fault) if fault.kind().is_component_fault() => {
                let reason = format!("{} in {}", fault.detail(), fault.function());
                return Err(PolicyLoadError::rejected(
                    &policy.tag,
                    LoadStage::SelfTest,
                    reason,
                ));
            }
            _ => quickest = quickest.min(started.elapsed()),
        }
    }
    if quickest > generation.shared().slow_after() {
        generation.mark_slow();
    }
    Ok(())
}

/// Checks a policy's configuration against the schema of its component.
fn check_schema(manifest: &CheckedManifest, policy: &PolicyConfig) -> Result<(), PolicyLoadError> {
    if manifest.config_schema().is_empty() {
        return Ok(());
    }
    let rejected = |reason| PolicyLoadError::rejected(&policy.tag, LoadStage::Describe, reason);
    let schema = serde_json::from_str(manifest.config_schema())
        .map_err(|error| rejected(format!("manifest: config_schema: invalid JSON: {error}")))?;
    let validator = SchemaValidator::new(schema).map_err(|error| {
        rejected(format!(
            "manifest: config_schema: expected a JSON Schema: {error}"
        ))
    })?;
    let problems = validator.problems(&ConfigPath::root(), &policy.config);
    if problems.is_empty() {
        Ok(())
    } else {
        Err(PolicyLoadError::config(&policy.tag, problems))
    }
}

/// Converts a component's diagnostics to problems at paths below the policy's `config`.
fn problems(diagnostics: Vec<Diagnostic>) -> Vec<ConfigProblem> {
    let config = ConfigPath::root();
    if diagnostics.is_empty() {
        let message = "rejected by the policy without a reason";
        return vec![ConfigProblem::new(config, message)];
    }
    diagnostics
        .into_iter()
        .map(|diagnostic| {
            ConfigProblem::new(config.pointer(&diagnostic.pointer), diagnostic.message)
        })
        .collect()
}
