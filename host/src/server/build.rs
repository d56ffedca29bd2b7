//! From a configuration to services: policies are loaded, certificates read, credentials tried.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::StartError;
use crate::config::{Config, ConfigError, PolicyConfig, PolicyId, PolicyKind, PolicySource, Problem, ServiceConfig};
use crate::config::{CredentialSource, OnFailure, POLICY_MEMORY, POLICY_TIMEOUT};
use crate::credentials::{Credential, IdentityKind, take_up};
use crate::ledger::Ledger;
use crate::pipeline::{Parts, Service};
use crate::policy::{Balancer, Engine, Pricer, Rewriter};
use crate::tls::Tls;
use crate::upstream::{Trust, Upstream};
use crate::values::clock::Millis;
use crate::values::limits::Limits;
use crate::values::phase::Phase;

/// The balancer that stands in for one that fails.
const STAND_IN: &str = "least-used";

/// Where a service listens.
pub(super) struct Door {
    pub(super) listen: SocketAddr,
    pub(super) tls: Option<Tls>,
}

/// Everything that a configuration names, loaded.
pub(super) struct Prepared {
    policies: Vec<Policy>,
    stand_in: Arc<Balancer>,
    services: Vec<(ServiceConfig, Option<Tls>)>,
    pub(super) trust: Trust,
}

enum Policy {
    Balancer(Arc<Balancer>),
    Rewriter(Arc<Rewriter>),
    Pricer(Arc<Pricer>),
}

/// Loads what `config` names, and starts nothing. Answers what an operator should know besides.
///
/// # Errors
/// Everything that cannot be used.
pub fn check(config: Config) -> Result<Vec<Problem>, StartError> {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    for service in &config.services {
        let credentials = credentials(service);
        key_in_pool(service, &credentials, &mut problems);
        for credential in &credentials {
            if let Some(reason) = credential.unavailable() {
                let place = format!("service {:?}, credential {:?}", service.tag, credential.tag());
                warnings.push(Problem::new(place, reason.to_string()));
            }
        }
    }
    match prepare(config) {
        Err(StartError::Config(error)) => problems.extend(error.problems),
        other => drop(other?),
    }
    refuse_if_any(problems)?;
    Ok(warnings)
}

pub(super) fn prepare(config: Config) -> Result<Prepared, StartError> {
    let mut problems = Vec::new();
    let memory_max = config.policies.iter().map(|policy| policy.memory).max().unwrap_or(POLICY_MEMORY);
    let engine = Engine::of_the_process(memory_max.max(POLICY_MEMORY))?;
    let stand_in = Balancer::load(&engine, &stand_in_config());
    let policies: Vec<Option<Policy>> = config
        .policies
        .iter()
        .map(|policy| load(&engine, policy).map_err(|error| problems.extend(error.problems(policy))).ok())
        .collect();
    let mut services = Vec::new();
    for service in config.services {
        let tls = service.tls.as_ref().map(|tls| Tls::new(tls, config.limits.handshake_timeout));
        match tls.transpose() {
            Ok(tls) => services.push((service, tls)),
            Err(problem) => problems.push(problem),
        }
    }
    refuse_if_any(problems)?;
    let stand_in = stand_in.map_err(|error| {
        StartError::Config(ConfigError {
            problems: error.problems(&stand_in_config()),
            warnings: Vec::new(),
            rest: None,
        })
    })?;
    let trust = Trust::of_the_platform();
    let policies = policies.into_iter().flatten().collect();
    Ok(Prepared { policies, stand_in: Arc::new(stand_in), services, trust })
}

fn stand_in_config() -> PolicyConfig {
    PolicyConfig {
        tag: STAND_IN.to_owned(),
        path_in_config: String::new(),
        kind: PolicyKind::Balancer,
        source: PolicySource::Shipped(STAND_IN),
        config: serde_json::json!({}),
        timeout: POLICY_TIMEOUT,
        memory: POLICY_MEMORY,
        on_failure: OnFailure::Refuse,
    }
}

fn load(engine: &Engine, policy: &PolicyConfig) -> Result<Policy, crate::policy::LoadError> {
    let begun = std::time::Instant::now();
    let (loaded, stamp) = match policy.kind {
        PolicyKind::Balancer => {
            let balancer = Balancer::load(engine, policy)?;
            let stamp = balancer.stamp().clone();
            (Policy::Balancer(Arc::new(balancer)), stamp)
        }
        PolicyKind::Rewriter => {
            let rewriter = Rewriter::load(engine, policy)?;
            let stamp = rewriter.stamp().clone();
            (Policy::Rewriter(Arc::new(rewriter)), stamp)
        }
        PolicyKind::Pricer => {
            let pricer = Pricer::load(engine, policy)?;
            let stamp = pricer.stamp().clone();
            (Policy::Pricer(Arc::new(pricer)), stamp)
        }
    };
    tracing::debug!(
        policy = policy.tag,
        name = stamp.name,
        version = stamp.version,
        digest = stamp.digest,
        took_ms = begun.elapsed().as_millis() as u64,
        "policy loaded"
    );
    Ok(loaded)
}

impl Prepared {
    /// The services, each with its door.
    ///
    /// # Errors
    /// A pool has a member that is an API key.
    pub(super) fn services(
        self,
        ledger: &Arc<Ledger>,
        limits: &Arc<Limits>,
        phases: &watch::Receiver<Phase>,
        alive: &mpsc::Sender<()>,
    ) -> Result<Vec<(Service, Door)>, StartError> {
        if self.trust.is_empty() {
            tracing::warn!("no certificates to trust were found: an https upstream cannot be reached (SSL_CERT_FILE)");
        }
        let mut problems = Vec::new();
        let mut services = Vec::new();
        for (config, tls) in self.services {
            take_up_refreshes(&config);
            let credentials = credentials(&config);
            key_in_pool(&config, &credentials, &mut problems);
            let policy = |id: PolicyId| &self.policies[id.0];
            let balancers = config.pools.iter().map(|pool| as_balancer(policy(pool.balancer)));
            let parts = Parts {
                upstreams: credentials.iter().map(|_| Upstream::new(&self.trust, limits)).collect(),
                balancers: balancers.collect(),
                fallback: Arc::clone(&self.stand_in),
                rewriters: config.rewriters.iter().map(|id| as_rewriter(policy(*id))).collect(),
                pricer: as_pricer(policy(config.pricer)),
                ledger: Arc::clone(ledger),
                limits: Arc::clone(limits),
                phases: phases.clone(),
                alive: alive.clone(),
                credentials,
            };
            let door = Door { listen: config.listen, tls };
            services.push((Service::new(config, parts), door));
        }
        refuse_if_any(problems)?;
        Ok(services)
    }
}

/// Takes up what a refresh left that was cut off.
fn take_up_refreshes(config: &ServiceConfig) {
    for credential in &config.credentials {
        if let CredentialSource::File(path) = &credential.source
            && let Err(reason) = take_up(path)
        {
            tracing::error!(credential = credential.tag, reason, "a refresh that was cut off was not taken up");
        }
    }
}

/// Reads every credential once. One that is unavailable is waited for.
fn credentials(config: &ServiceConfig) -> Vec<Arc<Credential>> {
    let now = Millis::now();
    let read = |config: &crate::config::CredentialConfig| {
        let credential = Credential::new(config.clone());
        match credential.read(now) {
            Ok(()) => tracing::debug!(credential = config.tag, "credential available"),
            Err(reason) => tracing::warn!(credential = config.tag, %reason, "credential unavailable"),
        }
        Arc::new(credential)
    };
    config.credentials.iter().map(read).collect()
}

fn key_in_pool(config: &ServiceConfig, credentials: &[Arc<Credential>], problems: &mut Vec<Problem>) {
    for pool in config.pools.iter().filter(|pool| !pool.single) {
        for (place, member) in pool.members.iter().enumerate() {
            let credential = &credentials[*member];
            if credential.identity().is_some_and(|identity| identity.kind == IdentityKind::ApiKey) {
                problems.push(Problem::new(
                    format!("{}[{place}]", pool.members_from),
                    format!("expected an OAuth credential, found {:?}, an API key", credential.tag()),
                ));
            }
        }
    }
}

fn refuse_if_any(problems: Vec<Problem>) -> Result<(), StartError> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(StartError::Config(ConfigError { problems, warnings: Vec::new(), rest: None }))
}

// The resolved configuration refers to policies only by ids of the right kind.

fn as_balancer(policy: &Policy) -> Arc<Balancer> {
    let Policy::Balancer(balancer) = policy else { unreachable!("resolved as a balancer") };
    Arc::clone(balancer)
}

fn as_rewriter(policy: &Policy) -> Arc<Rewriter> {
    let Policy::Rewriter(rewriter) = policy else { unreachable!("resolved as a rewriter") };
    Arc::clone(rewriter)
}

fn as_pricer(policy: &Policy) -> Arc<Pricer> {
    let Policy::Pricer(pricer) = policy else { unreachable!("resolved as a pricer") };
    Arc::clone(pricer)
}
