//! What a changed configuration changes on the running gateway.
//!
//! Owns loading what is new in it, and naming what needs a restart. Does not apply anything: the
//! supervisor does. Invariant: a [`ConfigurationChange`] is complete; a configuration of which a
//! part cannot be used makes none.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{
    AdminConfig, Config, ConfigPath, ConfigProblem, ListenAddress, ListenConfig, LogConfig,
    PolicyConfig, ServiceConfig, TrustConfig,
};
use crate::credentials::{Credential, LoginDirectory};
use crate::policy::{CompilePriority, ComponentBytes, PolicyLoadError, SharedPolicyState};
use crate::server::build::{read_credentials, reread_certificates};
use crate::server::error::{StartError, reject_problems};
use crate::server::policies::{LoadProgress, PolicyEntry, PolicyLoader, PolicyTable};
use crate::tls::{ReplacedTls, TlsServer};
use crate::values::limits::Limits;

/// Settings that take effect only at the start, as they were then.
pub(crate) struct StartupSettings {
    data_dir: PathBuf,
    log: LogConfig,
    admin: Option<AdminConfig>,
    trust: TrustConfig,
    limits: Arc<Limits>,
}

impl StartupSettings {
    pub(crate) fn new(config: Config, limits: &Arc<Limits>) -> Self {
        Self {
            data_dir: config.data_dir,
            log: config.log,
            admin: config.admin,
            trust: config.trust,
            limits: Arc::clone(limits),
        }
    }
}

/// The parts of a configuration that the running gateway has already.
pub(crate) struct KnownParts {
    /// In the order of the configuration.
    policies: Vec<KnownPolicy>,
    /// By the services' tags.
    credentials: HashMap<String, Vec<Arc<Credential>>>,
    /// By the services' tags.
    certificates: HashMap<String, TlsServer>,
}

enum KnownPolicy {
    Unchanged,
    /// Another generation, which shares counts, record and shadow with the ones before it.
    NewGeneration {
        shared: Arc<SharedPolicyState>,
        number: u64,
    },
    /// A policy that starts with new counts and its own record.
    New {
        number: u64,
    },
}

impl KnownParts {
    pub(crate) fn new(
        config: &Config,
        policies: &PolicyTable,
        credentials: HashMap<String, Vec<Arc<Credential>>>,
        certificates: HashMap<String, TlsServer>,
    ) -> Self {
        Self {
            policies: config
                .policies
                .iter()
                .map(|policy| KnownPolicy::new(policy, policies.find(&policy.tag)))
                .collect(),
            credentials,
            certificates,
        }
    }
}

impl KnownPolicy {
    fn new(policy: &PolicyConfig, known: Option<&PolicyEntry>) -> Self {
        let Some(known) = known else {
            return Self::New { number: 1 };
        };
        let number = known.next_number();
        if known.config().is_equivalent(policy) {
            Self::Unchanged
        } else if can_share_state(known.config(), policy) {
            let shared = Arc::clone(known.shared());
            Self::NewGeneration { shared, number }
        } else {
            Self::New { number }
        }
    }
}

/// Whether generations under both configurations can share their state.
fn can_share_state(old: &PolicyConfig, new: &PolicyConfig) -> bool {
    old.kind == new.kind && old.record == new.record && old.shadow == new.shadow
}

/// A configuration, with everything that is new in it loaded.
pub(crate) struct ConfigurationChange {
    pub(crate) loader: PolicyLoader,
    pub(crate) limits: Arc<Limits>,
    /// All policies; `None` if the generations stay as they are.
    pub(crate) policies: Vec<(PolicyConfig, Option<PolicyEntry>)>,
    pub(crate) services: Vec<LoadedService>,
}

/// A service whose files were read.
pub(crate) struct LoadedService {
    pub(crate) config: ServiceConfig,
    pub(crate) credentials: Vec<Arc<Credential>>,
    pub(crate) tls: Option<ReplacedTls>,
}

/// Loads what is new in `config`. Blocks.
///
/// # Errors
/// Everything that cannot be used.
pub(crate) fn load_change(
    config: Config,
    loader: &PolicyLoader,
    known: KnownParts,
) -> Result<ConfigurationChange, StartError> {
    let limits = Arc::new(config.limits.clone());
    let loader = loader.with_limits(&limits);
    let mut problems = Vec::new();
    let certificates = reread_certificates(&config, &known.certificates);
    let mut policies = Vec::new();
    for (policy, known) in config.policies.into_iter().zip(known.policies) {
        match load_policy(&loader, &policy, known) {
            Ok(loaded) => policies.push((policy, loaded)),
            Err(error) => problems.extend(error.problems(&policy)),
        }
    }
    let certificates = collect(certificates, &mut problems)?.unwrap_or_default();
    let mut services = Vec::new();
    let logins = LoginDirectory::of(known.credentials.values().flatten());
    for (service, tls) in config.services.into_iter().zip(certificates) {
        let known = known
            .credentials
            .get(&service.tag)
            .map_or(&[][..], Vec::as_slice);
        let credentials = read_credentials(&service, known, &logins);
        if let Some(credentials) = collect(credentials, &mut problems)? {
            services.push(LoadedService {
                config: service,
                credentials,
                tls,
            });
        }
    }
    reject_problems(problems)?;
    Ok(ConfigurationChange {
        loader,
        limits,
        policies,
        services,
    })
}

/// Moves problems of the configuration into `problems`, so that all are reported at once. Other
/// errors pass.
fn collect<T>(
    loaded: Result<T, StartError>,
    problems: &mut Vec<ConfigProblem>,
) -> Result<Option<T>, StartError> {
    match loaded {
        Ok(loaded) => Ok(Some(loaded)),
        Err(StartError::Config(error)) => {
            problems.extend(error.problems);
            Ok(None)
        }
        Err(other) => Err(other),
    }
}

fn load_policy(
    loader: &PolicyLoader,
    policy: &PolicyConfig,
    known: KnownPolicy,
) -> Result<Option<PolicyEntry>, PolicyLoadError> {
    let (shared, number) = match known {
        KnownPolicy::Unchanged => return Ok(None),
        KnownPolicy::NewGeneration { shared, number } => (shared, number),
        KnownPolicy::New { number } => (loader.shared_state(policy)?, number),
    };
    let source = ComponentBytes::read(policy)?;
    let loaded = loader.load(
        policy,
        &source,
        &shared,
        number,
        CompilePriority::Background,
        &LoadProgress::new(),
    )?;
    Ok(Some(PolicyEntry::new(policy.clone(), shared, loaded)))
}

/// Returns the parts of `config` that take effect only after a restart. `running` are the services'
/// tags and addresses.
pub(crate) fn needs_restart(
    config: &Config,
    startup: &StartupSettings,
    running: &[(String, ListenConfig)],
) -> Vec<String> {
    let mut parts: Vec<String> = [
        ("data_dir", config.data_dir != startup.data_dir),
        ("log", config.log != startup.log),
        ("admin", config.admin != startup.admin),
        ("certificate", config.trust != startup.trust),
    ]
    .into_iter()
    .filter(|(_, differs)| *differs)
    .map(|(name, _)| name.to_owned())
    .collect();
    for (place, service) in config.services.iter().enumerate() {
        match running.iter().find(|(tag, _)| *tag == service.tag) {
            None => parts.push(format!("services[{place}] (added)")),
            Some((_, listen)) => parts.extend(
                changed_listen_fields(listen, &service.listen)
                    .into_iter()
                    .map(|field| format!("services[{place}].{field}")),
            ),
        }
    }
    let is_configured = |tag: &str| config.services.iter().any(|service| service.tag == tag);
    let removed = running.iter().filter(|(tag, _)| !is_configured(tag));
    parts.extend(removed.map(|(tag, _)| format!("service {tag:?} (removed)")));
    let limits = startup.limits.changed_at_restart(&config.limits);
    parts.extend(limits.iter().map(|name| format!("limits.{name}")));
    parts
}

/// Returns what would let clients in who are not to be: a listener stays as it is until a restart,
/// so that users and TLS must not be removed together with a change of it.
pub(crate) fn exposures<'a>(
    config: &Config,
    running: impl Iterator<Item = (&'a ServiceConfig, &'a [ListenAddress])>,
) -> Vec<ConfigProblem> {
    let list = ConfigPath::root().key("services");
    let mut problems = Vec::new();
    for (running, addresses) in running {
        let new = config
            .services
            .iter()
            .enumerate()
            .find(|(_, new)| new.tag == running.tag);
        let Some((place, new)) = new else {
            continue;
        };
        let is_elsewhere = |address: &ListenAddress| {
            let (bound, named) = (address.ip(), new.listen.address.ip());
            bound.is_some_and(|bound| {
                !bound.ip().is_loopback() && named.map(|named| named.ip()) != Some(bound.ip())
            })
        };
        if new.listen == running.listen && !addresses.iter().any(is_elsewhere) {
            continue;
        }
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let addresses = addresses.join(" and ");
        let users = !running.users.is_empty() && new.users.is_empty();
        let tls = running.tls.is_some() && new.tls.is_none();
        let clients = client_checks(running) > client_checks(new);
        let parts = [
            ("users", users),
            ("tls", tls),
            ("tls.client_authentication", clients && !tls),
        ];
        for (field, is_removed) in parts {
            if is_removed {
                let message = format!(
                    "cannot be removed or weakened by a reload: the service listens on {addresses} until a restart"
                );
                let keys = field.split('.');
                let path = keys.fold(list.index(place), |path, key| path.key(key));
                problems.push(ConfigProblem::new(path, message));
            }
        }
    }
    problems
}

/// Returns how strictly the certificates of a service's clients are checked: what is asked, and
/// whether it is verified.
fn client_checks(service: &ServiceConfig) -> (bool, bool) {
    let clients = service.tls.as_ref();
    let clients = clients.and_then(|tls| tls.client_authentication.as_ref());
    clients.map_or((false, false), |clients| {
        let is_verified = clients.mode.verifies() || !clients.public_keys.is_empty();
        (clients.mode.is_mandatory(), is_verified)
    })
}

fn changed_listen_fields(old: &ListenConfig, new: &ListenConfig) -> Vec<&'static str> {
    let (options, proxy) = (&old.options, old.proxy_protocol);
    [
        ("listen", old.address != new.address),
        ("bind_interface", options.interface != new.options.interface),
        (
            "routing_mark",
            options.routing_mark != new.options.routing_mark,
        ),
        ("reuse_addr", options.reuse_port != new.options.reuse_port),
        (
            "netns",
            options.network_namespace != new.options.network_namespace,
        ),
        ("tcp_fast_open", options.fast_open != new.options.fast_open),
        (
            "tcp_multi_path",
            options.multi_path != new.options.multi_path,
        ),
        (
            "tcp_keep_alive",
            options.keep_alive != new.options.keep_alive,
        ),
        ("proxy_protocol", proxy != new.proxy_protocol),
    ]
    .into_iter()
    .filter(|(_, differs)| *differs)
    .map(|(field, _)| field)
    .collect()
}
