//! The policies that a gateway starts with.
//!
//! Owns how long a start waits for slow compilations. Invariant: what a start does not wait for is
//! loaded beside requests, which fail or are passed over by the policy's `on_failure` until then.

use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::generations::{PolicyEntry, PolicyTable};
use super::loader::{LoadProgress, PolicyLoader};
use crate::config::{Config, PolicyConfig, PolicySource, ShippedPolicy};
use crate::policy::{
    BalancerGeneration, CompilePriority, ComponentBytes, PolicyGeneration, PolicyLoadError,
    SharedPolicyState,
};
use crate::server::error::{StartError, reject_problems};

/// The balancer that stands in for a failing one.
const STAND_IN: ShippedPolicy = ShippedPolicy::LeastUsed;

/// A component larger than this, in bytes, contains a language's interpreter and takes long to
/// compile.
const LARGE_COMPONENT: usize = 1024 * 1024;

/// The policies of a configuration.
pub(crate) struct InitialPolicies {
    pub(crate) table: PolicyTable,
    pub(crate) pending: Vec<PendingPolicy>,
    pub(crate) stand_in: Arc<BalancerGeneration>,
    pub(crate) loader: PolicyLoader,
}

/// A policy that is still being compiled.
pub(crate) struct PendingPolicy {
    pub(crate) tag: String,
    pub(crate) loaded: oneshot::Receiver<Result<PolicyGeneration, PolicyLoadError>>,
}

/// How long a component may compile before the gateway starts without it.
pub(crate) enum StartWait {
    Unlimited,
    /// `limits.policy_start_wait`, waited for on this runtime.
    OfLimits(Handle),
}

/// Loads all policies of `config`. Blocks.
///
/// # Errors
/// Everything that cannot be used.
pub(crate) fn load_initial(
    config: &Config,
    wait: &StartWait,
) -> Result<InitialPolicies, StartError> {
    let started = Instant::now();
    let loader = PolicyLoader::new(config, &Arc::new(config.limits.clone()))?;
    let loader = match wait {
        // `tollgate check` leaves nothing behind.
        StartWait::Unlimited => loader,
        StartWait::OfLimits(_) => loader.with_cache(&config.data_dir),
    };
    let mut problems = Vec::new();
    let mut table = PolicyTable::default();
    let mut pending = Vec::new();
    for policy in &config.policies {
        match first_generation(&loader, policy, wait) {
            Ok((entry, unfinished)) => {
                table.push(entry);
                pending.extend(unfinished);
            }
            Err(error) => problems.extend(error.problems(policy)),
        }
    }
    reject_problems(problems)?;
    let stand_in = load_stand_in(&loader)?;
    // A check on a running gateway must not look like a start in the log.
    if let StartWait::OfLimits(_) = wait {
        tracing::info!(
            policies = config.policies.len(),
            pending = pending.len(),
            took_us = started.elapsed().as_micros() as u64,
            "policies loaded"
        );
    }
    Ok(InitialPolicies {
        table,
        pending,
        stand_in,
        loader,
    })
}

/// Loads the first generation of `policy`, or returns an entry without one and the load that is
/// still in progress.
fn first_generation(
    loader: &PolicyLoader,
    policy: &PolicyConfig,
    wait: &StartWait,
) -> Result<(PolicyEntry, Option<PendingPolicy>), PolicyLoadError> {
    let source = ComponentBytes::read(policy)?;
    let shared = loader.shared_state(policy)?;
    match (wait, &policy.source) {
        (StartWait::OfLimits(runtime), PolicySource::File(_)) => {
            load_within_limits(loader, policy, source, shared, runtime)
        }
        // Shipped policies load in no time.
        (StartWait::Unlimited, _) | (StartWait::OfLimits(_), PolicySource::Shipped(_)) => {
            let loaded = loader.load(
                policy,
                &source,
                &shared,
                1,
                CompilePriority::Startup,
                &LoadProgress::new(),
            )?;
            Ok((PolicyEntry::new(policy.clone(), shared, loaded), None))
        }
    }
}

fn load_within_limits(
    loader: &PolicyLoader,
    policy: &PolicyConfig,
    source: ComponentBytes,
    shared: Arc<SharedPolicyState>,
    runtime: &Handle,
) -> Result<(PolicyEntry, Option<PendingPolicy>), PolicyLoadError> {
    // A large component is not compiled in time, and must then not slow down requests.
    let priority = if source.length() > LARGE_COMPONENT {
        CompilePriority::Background
    } else {
        CompilePriority::Startup
    };
    let progress = LoadProgress::new();
    let (done, mut loaded) = oneshot::channel();
    runtime.spawn_blocking({
        let (loader, policy, shared) = (loader.clone(), policy.clone(), Arc::clone(&shared));
        let progress = progress.clone();
        move || {
            let loaded = loader.load(&policy, &source, &shared, 1, priority, &progress);
            // The receiver is gone if the start failed meanwhile.
            let _ = done.send(loaded);
        }
    });
    match runtime.block_on(timeout(loader.limits().policy_start_wait, &mut loaded)) {
        Ok(Ok(loaded)) => Ok((PolicyEntry::new(policy.clone(), shared, loaded?), None)),
        Ok(Err(_)) => Err(PolicyLoadError::panicked(&policy.tag)),
        Err(_) => {
            tracing::warn!(
                policy = policy.tag,
                "policy still compiling, starting without it"
            );
            let tag = policy.tag.clone();
            let entry = PolicyEntry::loading(policy.clone(), shared, progress);
            Ok((entry, Some(PendingPolicy { tag, loaded })))
        }
    }
}

fn load_stand_in(loader: &PolicyLoader) -> Result<Arc<BalancerGeneration>, StartError> {
    let policy = PolicyConfig::shipped(STAND_IN, serde_json::json!({}));
    let load = || {
        let (source, shared) = (
            ComponentBytes::read(&policy)?,
            loader.shared_state(&policy)?,
        );
        loader.load(
            &policy,
            &source,
            &shared,
            1,
            CompilePriority::Startup,
            &LoadProgress::new(),
        )
    };
    match load().map_err(|error| StartError::of_problems(error.problems(&policy)))? {
        PolicyGeneration::Balancer(balancer) => Ok(balancer),
        PolicyGeneration::Rewriter(_) | PolicyGeneration::Pricer(_) => {
            unreachable!("it is configured as a balancer")
        }
    }
}
