//! From a configuration to services: policies are loaded, certificates read, credentials tried.

use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::StartError;
use super::policies::{Entry, Policies, Progress, Workshop, memory_max};
use crate::config::{
    Config, ConfigError, CredentialConfig, CredentialSource, PolicyConfig, PolicyKind, PolicySource,
};
use crate::config::{Problem, ServiceConfig};
use crate::credentials::{Credential, IdentityKind, take_up};
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::pipeline::{Service, ServiceParts};
use crate::policy::{Balancer, LoadError, Policy, Source, Urgency};
use crate::tls::Tls;
use crate::upstream::{Trust, Upstream};
use crate::values::clock::Timestamp;
use crate::values::limits::Limits;
use crate::values::phase::Phase;

/// The balancer that stands in for one that fails.
const STAND_IN: &str = "least-used";

/// Components of languages that bring their interpreter along are larger than this, in bytes. They take long to compile.
const LARGE: usize = 1024 * 1024;

/// What all services share, whatever the configuration.
#[derive(Clone)]
pub(super) struct World {
    pub(super) ledger: Arc<Ledger>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) trust: Trust,
    pub(super) stand_in: Arc<Balancer>,
    pub(super) phases: watch::Receiver<Phase>,
    pub(super) alive: mpsc::Sender<()>,
}

/// The policies of a configuration, loaded.
pub(super) struct Loaded {
    pub(super) policies: Policies,
    /// Those that are still being loaded, by their tags.
    pub(super) pending: Vec<Pending>,
    pub(super) stand_in: Arc<Balancer>,
    pub(super) workshop: Workshop,
}

/// A policy that is still being loaded.
pub(super) struct Pending {
    pub(super) tag: String,
    pub(super) loaded: oneshot::Receiver<Result<Policy, LoadError>>,
}

/// Loads what `config` names, and starts nothing. Answers what an operator should know besides.
///
/// # Errors
/// Everything that cannot be used.
pub fn check(mut config: Config) -> Result<Vec<Problem>, StartError> {
    // A check leaves nothing behind.
    config
        .policies
        .iter_mut()
        .for_each(|policy| policy.record = None);
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    for service in &config.services {
        let credentials = credentials(service, &[]);
        key_in_pool(service, &credentials, &mut problems);
        for credential in &credentials {
            if let Some(reason) = credential.unavailable() {
                let place = format!(
                    "service {:?}, credential {:?}",
                    service.tag,
                    credential.tag()
                );
                warnings.push(Problem::new(place, reason.to_string()));
            }
        }
    }
    for found in [
        load_policies(&config, Patience::Endless).map(drop),
        certificates(&config).map(drop),
    ] {
        match found {
            Err(StartError::Config(error)) => problems.extend(error.problems),
            other => other?,
        }
    }
    refuse_if_any(problems)?;
    Ok(warnings)
}

/// For how long a component may be compiled before the gateway starts without it.
pub(super) enum Patience {
    Endless,
    /// As `limits.policy_start_wait` says. Blocks on this runtime.
    OfLimits(Handle),
}

/// Loads all policies of `config`.
///
/// # Errors
/// Everything that cannot be used.
pub(super) fn load_policies(config: &Config, patience: Patience) -> Result<Loaded, StartError> {
    let begun = Instant::now();
    let limits = Arc::new(config.limits.clone());
    let workshop = Workshop::new(memory_max(config), &limits)?;
    // A check leaves nothing behind.
    let workshop = match patience {
        Patience::Endless => workshop,
        Patience::OfLimits(_) => workshop.with_cache(&config.data_dir),
    };
    let mut problems = Vec::new();
    let stand_in = stand_in(&workshop);
    let mut policies = Policies::default();
    let mut pending = Vec::new();
    for policy in &config.policies {
        match first(&workshop, policy, &patience) {
            Ok((entry, later)) => {
                policies.entries.push(entry);
                pending.extend(later);
            }
            Err(error) => problems.extend(error.problems(policy)),
        }
    }
    refuse_if_any(problems)?;
    let stand_in = stand_in.map_err(|error| refused(error.problems(&stand_in_config())))?;
    let took_us = begun.elapsed().as_micros() as u64;
    tracing::info!(
        policies = policies.entries.len(),
        pending = pending.len(),
        took_us,
        "policies loaded"
    );
    Ok(Loaded {
        policies,
        pending,
        stand_in,
        workshop,
    })
}

/// The first generation of a policy; or none yet, and word of it later.
fn first(
    workshop: &Workshop,
    policy: &PolicyConfig,
    patience: &Patience,
) -> Result<(Entry, Option<Pending>), LoadError> {
    let source = Source::read(policy)?;
    let source_bytes = source.length();
    let slot = workshop.slot(policy)?;
    let progress = Progress::new();
    let load = {
        let (workshop, policy, slot, progress) = (
            workshop.clone(),
            policy.clone(),
            Arc::clone(&slot),
            progress.clone(),
        );
        move |urgency| workshop.load(&policy, &source, &slot, 1, urgency, &progress)
    };
    let runtime = match (patience, &policy.source) {
        (Patience::OfLimits(runtime), PolicySource::File(_)) => runtime,
        // The shipped ones are there at once, or so soon that nobody should go without them.
        _ => {
            return Ok((
                Entry::new(policy.clone(), slot, load(Urgency::AtOnce)?),
                None,
            ));
        }
    };
    // What is that large will not be there in time, and then there is service that it must not slow down.
    let urgency = if source_bytes > LARGE {
        Urgency::BesideService
    } else {
        Urgency::AtOnce
    };
    let (done, mut loaded) = oneshot::channel();
    // Nobody may be there any more to hear of it.
    runtime.spawn_blocking(move || drop(done.send(load(urgency))));
    match runtime.block_on(timeout(workshop.limits.policy_start_wait, &mut loaded)) {
        Ok(Ok(loaded)) => Ok((Entry::new(policy.clone(), slot, loaded?), None)),
        Ok(Err(_)) => {
            let reason = "loading it panicked".to_owned();
            Err(LoadError::Component {
                tag: policy.tag.clone(),
                stage: "load it",
                reason,
            })
        }
        Err(_) => {
            tracing::warn!(
                policy = policy.tag,
                "its component takes long to compile: the gateway starts without it"
            );
            let absent = Policy::absent(
                policy,
                &slot,
                "its component is still being compiled".to_owned(),
            );
            let entry = Entry {
                progress: Some(progress),
                ..Entry::new(policy.clone(), slot, absent)
            };
            Ok((
                entry,
                Some(Pending {
                    tag: policy.tag.clone(),
                    loaded,
                }),
            ))
        }
    }
}

fn stand_in_config() -> PolicyConfig {
    PolicyConfig::shipped(STAND_IN, PolicyKind::Balancer, serde_json::json!({}))
}

fn stand_in(workshop: &Workshop) -> Result<Arc<Balancer>, LoadError> {
    let policy = stand_in_config();
    let (source, slot) = (Source::read(&policy)?, workshop.slot(&policy)?);
    match workshop.load(
        &policy,
        &source,
        &slot,
        1,
        Urgency::AtOnce,
        &Progress::new(),
    )? {
        Policy::Balancer(balancer) => Ok(balancer),
        Policy::Rewriter(_) | Policy::Pricer(_) => unreachable!("it is configured as a balancer"),
    }
}

/// TLS of each service that has some.
///
/// # Errors
/// What cannot be used.
pub(super) fn certificates(config: &Config) -> Result<Vec<Option<Tls>>, StartError> {
    let mut problems = Vec::new();
    let mut found = Vec::new();
    for service in &config.services {
        let tls = service
            .tls
            .as_ref()
            .map(|tls| Tls::new(tls, config.limits.handshake_timeout));
        match tls.transpose() {
            Ok(tls) => found.push(tls),
            Err(problem) => problems.push(problem),
        }
    }
    refuse_if_any(problems)?;
    Ok(found)
}

/// Reads the credentials of `config`. Those of `known` that are among them go on, on the terms of `config`.
///
/// # Errors
/// A pool has a member that is an API key.
pub(super) fn read_credentials(
    config: &ServiceConfig,
    known: &[Arc<Credential>],
) -> Result<Vec<Arc<Credential>>, StartError> {
    take_up_refreshes(config, known);
    let credentials = credentials(config, known);
    let mut problems = Vec::new();
    key_in_pool(config, &credentials, &mut problems);
    refuse_if_any(problems)?;
    Ok(credentials)
}

/// Puts a service together.
pub(super) fn assemble(
    world: &World,
    config: &ServiceConfig,
    policies: &Policies,
    limits: &Arc<Limits>,
    credentials: Vec<Arc<Credential>>,
    before: Option<&Service>,
) -> Service {
    let upstream = |credential: &Arc<Credential>| {
        let known = before.filter(|before| same_connections(before.limits(), limits));
        let place = known.and_then(|known| {
            known
                .credentials()
                .iter()
                .position(|known| Arc::ptr_eq(known, credential))
        });
        match (known, place) {
            (Some(known), Some(place)) => known.upstreams()[place].clone(),
            _ => Upstream::new(&world.trust, limits),
        }
    };
    let parts = ServiceParts {
        upstreams: credentials.iter().map(upstream).collect(),
        balancers: config
            .pools
            .iter()
            .map(|pool| policies.balancer(pool.balancer))
            .collect(),
        stand_in: Arc::clone(&world.stand_in),
        rewriters: config
            .rewriters
            .iter()
            .map(|id| policies.rewriter(*id))
            .collect(),
        pricer: policies.pricer(config.pricer),
        ledger: Arc::clone(&world.ledger),
        metrics: Arc::clone(&world.metrics),
        limits: Arc::clone(limits),
        phases: world.phases.clone(),
        alive: world.alive.clone(),
        credentials,
    };
    Service::new(config, parts, before)
}

/// Whether connections to upstream are made and kept within the same bounds.
fn same_connections(one: &Limits, other: &Limits) -> bool {
    one.connect_timeout == other.connect_timeout
        && one.upstream_keep_alive == other.upstream_keep_alive
}

/// Takes up what a refresh left that was cut off. One that is under way on a credential that goes on holds its lock.
fn take_up_refreshes(config: &ServiceConfig, known: &[Arc<Credential>]) {
    for credential in &config.credentials {
        if let CredentialSource::File(path) = &credential.source
            && !known.iter().any(|known| known.is_of(credential))
            && let Err(reason) = take_up(path)
        {
            tracing::error!(
                credential = credential.tag,
                reason,
                "a refresh that was cut off was not taken up"
            );
        }
    }
}

/// Reads every credential that is not known once. One that is unavailable is waited for.
fn credentials(config: &ServiceConfig, known: &[Arc<Credential>]) -> Vec<Arc<Credential>> {
    let now = Timestamp::now();
    let read = |config: &CredentialConfig| {
        if let Some(known) = known.iter().find(|known| known.is_of(config)) {
            return Arc::clone(known);
        }
        let credential = Credential::new(config.clone());
        match credential.read(now) {
            Ok(()) => tracing::debug!(credential = config.tag, "credential available"),
            Err(reason) => {
                tracing::warn!(credential = config.tag, %reason, "credential unavailable")
            }
        }
        Arc::new(credential)
    };
    config.credentials.iter().map(read).collect()
}

fn key_in_pool(
    config: &ServiceConfig,
    credentials: &[Arc<Credential>],
    problems: &mut Vec<Problem>,
) {
    for pool in config.pools.iter().filter(|pool| !pool.single) {
        for (place, member) in pool.members.iter().enumerate() {
            let credential = &credentials[*member];
            if credential
                .identity()
                .is_some_and(|identity| identity.kind == IdentityKind::ApiKey)
            {
                problems.push(Problem::new(
                    format!("{}[{place}]", pool.members_from),
                    format!(
                        "expected an OAuth credential, found {:?}, an API key",
                        credential.tag()
                    ),
                ));
            }
        }
    }
}

fn refused(problems: Vec<Problem>) -> StartError {
    StartError::Config(ConfigError {
        problems,
        warnings: Vec::new(),
        rest: None,
    })
}

pub(super) fn refuse_if_any(problems: Vec<Problem>) -> Result<(), StartError> {
    if problems.is_empty() {
        Ok(())
    } else {
        Err(refused(problems))
    }
}
