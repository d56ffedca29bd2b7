//! From a configuration to services: certificates are read, credentials tried, and both put
//! together with policies.
//!
//! Does not know how policies are loaded or when a service changes. Invariant: all problems of a
//! configuration are reported at once.

pub(super) mod connectivity;
mod gateway_id;
mod writable;

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Weak};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;

use self::gateway_id::gateway_id;
use self::writable::{unwritable_data_dir, unwritable_files};
use super::error::{StartError, reject_problems};
use super::policies::{
    InitialPolicies, PendingPolicy, PolicyLoader, PolicyTable, StartWait, load_initial,
};
use super::status::GatewayStatus;
use super::upkeep::UpkeepStart;
use super::usage_files::UsageFiles;
use crate::config::{
    Config, ConfigProblem, CredentialConfig, CredentialSource, ServiceConfig, TlsConfig,
    UpstreamRoute,
};
use crate::credentials::{
    Credential, CredentialKind, CredentialLoadError, LoginDirectory, LoginOrigin, recover_tokens,
};
use crate::ledger::{Ledger, LedgerError, ResponseIssuer, StoredSession};
use crate::metrics::Metrics;
use crate::pipeline::{Service, ServiceParts, restore_affinity};
use crate::policy::BalancerGeneration;
use crate::tls::{ReplacedTls, TlsServer};
use crate::upstream::dial::Dialer;
use crate::upstream::{TrustRoots, UpstreamClient};
use crate::values::clock::Timestamp;
use crate::values::headers::hops::GatewayId;
use crate::values::limits::Limits;
use crate::values::phase::GatewayPhase;

/// What all services share, under every configuration.
#[derive(Clone)]
pub(super) struct SharedResources {
    pub(super) ledger: Arc<Ledger>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) trust: TrustRoots,
    pub(super) stand_in: Arc<BalancerGeneration>,
    pub(super) phases: watch::Receiver<GatewayPhase>,
    pub(super) id: GatewayId,
    /// Held by every service: its receiver ends with the last one.
    pub(super) alive: mpsc::Sender<()>,
}

/// What a gateway is put together from, beside its configuration.
pub(super) struct BuildInputs {
    /// Instead of the platform's certificates.
    pub(super) trust: Option<TrustRoots>,
    /// The lock of a ledger that another process writes, too.
    pub(super) ledger_lock: Option<File>,
    pub(super) upkeep: UpkeepStart,
}

/// A gateway that was put together and not started.
pub(super) struct BuiltGateway {
    pub(super) config: Config,
    pub(super) shared: SharedResources,
    pub(super) loader: PolicyLoader,
    pub(super) pending: Vec<PendingPolicy>,
    pub(super) status: Arc<GatewayStatus>,
    pub(super) services: Vec<(Arc<Service>, Option<TlsServer>)>,
    pub(super) usage_files: UsageFiles,
}

impl BuiltGateway {
    /// Compiles policies and reads files, on a blocking thread.
    pub(super) async fn build(
        config: Config,
        inputs: BuildInputs,
        phases: watch::Receiver<GatewayPhase>,
        alive: mpsc::Sender<()>,
    ) -> Result<Self, StartError> {
        let runtime = Handle::current();
        let build = move || Self::build_blocking(config, inputs, runtime, phases, alive);
        match spawn_blocking(build).await {
            Ok(built) => built,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }

    fn build_blocking(
        config: Config,
        inputs: BuildInputs,
        runtime: Handle,
        phases: watch::Receiver<GatewayPhase>,
        alive: mpsc::Sender<()>,
    ) -> Result<Self, StartError> {
        let limits = Arc::new(config.limits.clone());
        let InitialPolicies {
            table,
            pending,
            stand_in,
            loader,
        } = load_initial(&config, &StartWait::OfLimits(runtime))?;
        let certificates = read_certificates(&config)?;
        let ledger = Ledger::open_beside(&config.data_dir, &limits, inputs.ledger_lock)?;
        let ledger = Arc::new(ledger);
        let trust = read_trust(&config, inputs.trust)?;
        if trust.is_empty() {
            tracing::warn!(
                "no trusted certificates found: set SSL_CERT_FILE to reach https upstreams"
            );
        }
        let shared = SharedResources {
            ledger,
            metrics: Arc::default(),
            trust,
            stand_in,
            phases,
            id: gateway_id(&config.data_dir),
            alive,
        };
        let mut problems = Vec::new();
        let mut services = Vec::new();
        let logins = LoginDirectory::default();
        for (service, tls) in config.services.iter().zip(certificates) {
            match read_credentials(service, &[], &logins) {
                Ok(credentials) => {
                    let service = assemble(&shared, service, &table, &limits, credentials, None);
                    services.push((Arc::new(service), tls));
                }
                Err(StartError::Config(error)) => problems.extend(error.problems),
                Err(error) => return Err(error),
            }
        }
        reject_problems(problems)?;
        let restored = services.iter().map(|(service, _)| service);
        restore_sessions(&shared.ledger, restored, &limits);
        let usage_files = match inputs.upkeep {
            UpkeepStart::AtOnce => UsageFiles::open(&shared.ledger, &config.services)?,
            UpkeepStart::Later => UsageFiles::open(&shared.ledger, &[])?,
        };
        let weak: Vec<Weak<Service>> = services
            .iter()
            .map(|(service, _)| Arc::downgrade(service))
            .collect();
        let status =
            GatewayStatus::new(weak, table, &shared.ledger, &shared.metrics, &shared.phases);
        Ok(Self {
            config,
            shared,
            loader,
            pending,
            status: Arc::new(status),
            services,
            usage_files,
        })
    }
}

/// Restores sessions and the issuers of responses from the ledger. Without them, sessions start
/// without a home.
pub(super) fn restore_sessions<'a>(
    ledger: &Ledger,
    services: impl IntoIterator<Item = &'a Arc<Service>>,
    limits: &Limits,
) {
    match read_sessions(ledger, limits) {
        Ok((sessions, issuers)) => {
            for service in services {
                restore_affinity(service, &sessions, &issuers);
            }
        }
        Err(error) => tracing::warn!(%error, "sessions not restored"),
    }
}

fn read_sessions(
    ledger: &Ledger,
    limits: &Limits,
) -> Result<(Vec<StoredSession>, Vec<ResponseIssuer>), LedgerError> {
    let reader = ledger.reader()?;
    let since = Timestamp::now().before(limits.session_lifetime);
    let sessions = reader.sessions(limits.sessions)?;
    let issuers = reader.issuers(since, limits.sessions)?;
    Ok((sessions, issuers))
}

/// Loads what `config` names without starting anything, and returns warnings.
///
/// # Errors
/// Everything that cannot be used.
pub fn check(mut config: Config) -> Result<Vec<ConfigProblem>, StartError> {
    // A check leaves no files behind.
    for policy in &mut config.policies {
        policy.record = None;
    }
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let logins = LoginDirectory::default();
    let mut all_credentials = Vec::new();
    for service in &config.services {
        let credentials = open_credentials(service, &[], &logins);
        problems.extend(api_keys_in_pools(service, &credentials));
        for credential in &credentials {
            // A gateway that is to connect cannot be connected yet.
            let error = credential
                .load_error()
                .filter(|error| *error != CredentialLoadError::NotConnected);
            if let Some(reason) = error {
                let place = format!(
                    "service {:?}, credential {:?}",
                    service.tag,
                    credential.tag()
                );
                warnings.push(ConfigProblem::without_path(format!("{place}: {reason}")));
            }
        }
        warnings.extend(unwritable_files(service, &credentials));
        // Kept until the end, so that a shared file is read once.
        all_credentials.extend(credentials);
    }
    warnings.extend(unwritable_data_dir(&config.data_dir));
    let certificates = read_certificates(&config).map(|certificates| {
        let presented = certificates.iter().flatten();
        warnings.extend(presented.flat_map(TlsServer::warnings).cloned());
    });
    for checked in [
        load_initial(&config, &StartWait::Unlimited).map(drop),
        certificates,
        read_trust(&config, Some(TrustRoots::from_pem(b""))).map(drop),
    ] {
        match checked {
            Err(StartError::Config(error)) => problems.extend(error.problems),
            other => other?,
        }
    }
    reject_problems(problems)?;
    Ok(warnings)
}

/// Reads the certificates that verify upstream's. `system` replaces the platform's.
///
/// # Errors
/// Everything that cannot be used.
fn read_trust(config: &Config, system: Option<TrustRoots>) -> Result<TrustRoots, StartError> {
    TrustRoots::load(&config.trust, system).map_err(StartError::of_problems)
}

/// Reads the certificate of each service, `None` for a service without TLS.
///
/// # Errors
/// Every certificate that cannot be used, those of outbounds included.
fn read_certificates(config: &Config) -> Result<Vec<Option<TlsServer>>, StartError> {
    certificates_by(config, |_, tls| {
        TlsServer::load(tls, config.limits.handshake_timeout)
    })
}

/// As [`read_certificates`], for services that may be running. `current` are the settings that they
/// have, by their tags.
///
/// # Errors
/// Every certificate that cannot be used and does not take the place of a running one.
pub(super) fn reread_certificates(
    config: &Config,
    current: &HashMap<String, TlsServer>,
) -> Result<Vec<Option<ReplacedTls>>, StartError> {
    let handshake_timeout = config.limits.handshake_timeout;
    certificates_by(config, |tag, tls| match current.get(tag) {
        Some(current) => current.reload(tls, handshake_timeout),
        None => {
            TlsServer::load(tls, handshake_timeout).map(|server| ReplacedTls { server, kept: None })
        }
    })
}

fn certificates_by<T>(
    config: &Config,
    read: impl Fn(&str, &TlsConfig) -> Result<T, Vec<ConfigProblem>>,
) -> Result<Vec<Option<T>>, StartError> {
    let mut problems = Vec::new();
    let mut certificates = Vec::new();
    for service in &config.services {
        let tls = service.tls.as_ref().map(|tls| read(&service.tag, tls));
        match tls.transpose() {
            Ok(tls) => certificates.push(tls),
            Err(found) => problems.extend(found),
        }
    }
    problems.extend(outbound_problems(config));
    reject_problems(problems)?;
    Ok(certificates)
}

/// Returns what is wrong with the TLS settings of the outbounds that credentials use.
fn outbound_problems(config: &Config) -> Vec<ConfigProblem> {
    let no_trust = TrustRoots::from_pem(b"");
    let mut problems: Vec<ConfigProblem> = Vec::new();
    let services = config.services.iter();
    for credential in services.flat_map(|service| &service.credentials) {
        if let Err((tag, error)) = Dialer::new(&credential.route, &no_trust).check() {
            let problem = ConfigProblem::without_path(format!("outbound {tag:?}: {error}"));
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
    }
    problems
}

/// Reads the credentials of `config`. Those that are in `known` are reused as they are, and the
/// others use the login of their file if it is in `logins`.
///
/// # Errors
/// A pool has an API key as a member.
pub(super) fn read_credentials(
    config: &ServiceConfig,
    known: &[Arc<Credential>],
    logins: &LoginDirectory,
) -> Result<Vec<Arc<Credential>>, StartError> {
    recover_refreshes(config, logins);
    let credentials = open_credentials(config, known, logins);
    reject_problems(api_keys_in_pools(config, &credentials))?;
    Ok(credentials)
}

/// Puts a service together. What lasts of `previous` is kept in it.
pub(super) fn assemble(
    shared: &SharedResources,
    config: &ServiceConfig,
    policies: &PolicyTable,
    limits: &Arc<Limits>,
    credentials: Vec<Arc<Credential>>,
    previous: Option<&Service>,
) -> Service {
    let reusable = previous.filter(|previous| has_same_connections(previous.limits(), limits));
    let upstreams = credentials
        .iter()
        .zip(&config.credentials)
        .map(|(credential, config)| {
            known_upstream(reusable, credential, &config.route)
                .unwrap_or_else(|| new_upstream(shared, credential, &config.route, limits))
        })
        .collect();
    let parts = ServiceParts {
        upstreams,
        balancers: config
            .pools
            .iter()
            .map(|pool| policies.balancer(pool.balancer))
            .collect(),
        stand_in: Arc::clone(&shared.stand_in),
        rewriters: config
            .rewriters
            .iter()
            .map(|id| policies.rewriter(*id))
            .collect(),
        pricer: policies.pricer(config.pricer),
        ledger: Arc::clone(&shared.ledger),
        metrics: Arc::clone(&shared.metrics),
        limits: Arc::clone(limits),
        hop: shared.id.hop(&config.tag),
        phases: shared.phases.clone(),
        _alive: shared.alive.clone(),
        credentials,
    };
    Service::new(config, parts, previous)
}

fn new_upstream(
    shared: &SharedResources,
    credential: &Credential,
    route: &UpstreamRoute,
    limits: &Limits,
) -> UpstreamClient {
    UpstreamClient::to_gateway(
        &shared.trust,
        limits,
        route,
        &credential.dial_target(),
        credential.reverse_slot(),
    )
}

/// The connections that `previous` has for `credential`, if they are made over `route`.
fn known_upstream(
    previous: Option<&Service>,
    credential: &Arc<Credential>,
    route: &UpstreamRoute,
) -> Option<UpstreamClient> {
    let previous = previous?;
    let place = previous
        .credentials()
        .iter()
        .position(|known| Arc::ptr_eq(known, credential))?;
    let known = &previous.upstreams()[place];
    (known.dialer().route() == route).then(|| known.clone())
}

/// Whether both limits make and keep connections to upstream alike.
fn has_same_connections(one: &Limits, other: &Limits) -> bool {
    one.connect_timeout == other.connect_timeout
        && one.upstream_keep_alive == other.upstream_keep_alive
}

/// Completes refreshes that a killed gateway left behind. A login that is in use may be refreshing
/// right now: its lock is held.
fn recover_refreshes(config: &ServiceConfig, logins: &LoginDirectory) {
    for credential in &config.credentials {
        if let CredentialSource::File(path) = &credential.source
            && !logins.is_in_use(credential)
            && let Err(error) = recover_tokens(path)
        {
            tracing::error!(
                credential = credential.tag,
                %error,
                "interrupted refresh not recovered"
            );
        }
    }
}

/// Opens each credential, and reads each file that is not in use once. An unavailable one may become
/// available later.
fn open_credentials(
    config: &ServiceConfig,
    known: &[Arc<Credential>],
    logins: &LoginDirectory,
) -> Vec<Arc<Credential>> {
    config
        .credentials
        .iter()
        .map(|credential| open_credential(credential, known, logins))
        .collect()
}

pub(super) fn open_credential(
    config: &CredentialConfig,
    known: &[Arc<Credential>],
    logins: &LoginDirectory,
) -> Arc<Credential> {
    if let Some(known) = known.iter().find(|known| known.matches_config(config)) {
        return Arc::clone(known);
    }
    let (credential, origin) = Credential::in_directory(config.clone(), logins);
    if origin == LoginOrigin::New {
        match credential.load(Timestamp::now()) {
            Ok(()) => tracing::debug!(credential = config.tag, "credential available"),
            Err(reason) => {
                tracing::warn!(credential = config.tag, %reason, "credential unavailable");
            }
        }
    }
    Arc::new(credential)
}

fn api_keys_in_pools(
    config: &ServiceConfig,
    credentials: &[Arc<Credential>],
) -> Vec<ConfigProblem> {
    let mut problems = Vec::new();
    for pool in config.pools.iter().filter(|pool| !pool.single) {
        for (place, member) in pool.members.iter().enumerate() {
            let credential = &credentials[*member];
            if credential
                .identity()
                .is_some_and(|identity| identity.kind() == CredentialKind::ApiKey)
            {
                let tag = credential.tag();
                problems.push(ConfigProblem::new(
                    pool.members_path.index(place),
                    format!("expected an OAuth credential, found {tag:?}, an API key"),
                ));
            }
        }
    }
    problems
}
