//! The services that clients reach.
//!
//! Owns which [`Service`] requests find, and the upkeep of its credentials. Does not load anything.
//! Invariant: requests find a complete service at any time; a change swaps it as a whole.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Weak};

use tokio::sync::watch;

use super::configure::LoadedService;
use crate::config::{ListenAddress, ListenConfig, ServiceConfig};
use crate::credentials::Credential;
use crate::pipeline::{LiveService, Service};
use crate::server::build::{SharedResources, assemble};
use crate::server::policies::PolicyTable;
use crate::server::upkeep::certificates::{CertificateFiles, CertificateState};
use crate::server::upkeep::{CertificateIssuing, CredentialUpkeep, RunningTasks, Upkeep};
use crate::tls::{ReplacedTls, TlsServer};
use crate::values::limits::Limits;

/// A service with a listener.
pub(crate) struct RunningService {
    config: ServiceConfig,
    /// Where it listens, whatever the configuration says.
    addresses: Vec<ListenAddress>,
    live: watch::Sender<Arc<Service>>,
    certificate: Arc<CertificateState>,
    /// Ends the task that follows the certificate's files when it is dropped.
    following: Option<watch::Sender<()>>,
    issuing: Option<CertificateIssuing>,
    upkeep: Vec<CredentialUpkeep>,
    /// Whether the configuration still has it. If not, it stays as it is until a restart.
    is_configured: bool,
}

/// What services are put together from, beside their credentials.
#[derive(Clone, Copy)]
pub(crate) struct ServiceInputs<'a> {
    pub(crate) shared: &'a SharedResources,
    pub(crate) policies: &'a PolicyTable,
    pub(crate) limits: &'a Arc<Limits>,
}

impl RunningService {
    /// Starts the upkeep of the credentials of `service`.
    pub(crate) fn start(
        config: ServiceConfig,
        addresses: Vec<ListenAddress>,
        service: Arc<Service>,
        tls: Option<TlsServer>,
        upkeep: &Upkeep,
    ) -> Self {
        let certificate = CertificateState::new(&config.tag);
        let mut running = Self {
            upkeep: upkeep.start(&service, Vec::new(), RunningTasks::Restart),
            live: watch::Sender::new(service),
            following: None,
            issuing: None,
            is_configured: true,
            certificate,
            config,
            addresses,
        };
        let tls = tls.map(|server| ReplacedTls { server, kept: None });
        running.present(tls, upkeep);
        running
    }

    /// Uses the TLS settings of the current configuration, and follows their files.
    fn present(&mut self, tls: Option<ReplacedTls>, upkeep: &Upkeep) {
        // Before the new settings: the old task reads other files.
        self.following = None;
        let number = self.certificate.configure(tls);
        let tls = self.config.tls.as_ref();
        let running = self.issuing.take();
        self.issuing = tls.and_then(|tls| tls.acme.as_ref()).map(|acme| {
            let listen = self.config.listen.address.ip().map(|address| address.ip());
            let listen = listen.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            upkeep.issue_certificate(&self.certificate, acme, listen, running)
        });
        if self.issuing.is_none() {
            self.certificate.end_issuing();
        }
        self.following = tls.map(|config| {
            let handshake_timeout = upkeep.limits().handshake_timeout;
            let files = CertificateFiles::new(config, handshake_timeout, number);
            upkeep.follow_certificate(&self.certificate, files)
        });
    }

    /// The service as requests find it.
    pub(crate) fn live(&self) -> LiveService {
        LiveService::subscribe(&self.live)
    }

    /// The TLS settings of the service.
    pub(crate) fn certificate(&self) -> &Arc<CertificateState> {
        &self.certificate
    }

    fn current(&self) -> Arc<Service> {
        Arc::clone(&self.live.borrow())
    }

    /// Puts the service together again, from the current generations of its policies.
    fn rebuild(&self, inputs: ServiceInputs<'_>) -> Weak<Service> {
        let current = self.current();
        if !self.is_configured {
            return Arc::downgrade(&current);
        }
        self.replace(inputs, current.credentials().to_vec(), &current)
    }

    fn reconfigure(
        &mut self,
        loaded: LoadedService,
        inputs: ServiceInputs<'_>,
        upkeep: &Upkeep,
        tasks: RunningTasks,
    ) -> Weak<Service> {
        self.is_configured = true;
        let has_same_routes = has_same_routes(&self.config, &loaded.config);
        // The listener stays where it is, with the proxies that it trusts.
        let trusted_proxies = if self.config.listen == loaded.config.listen {
            loaded.config.trusted_proxies
        } else {
            self.config.trusted_proxies.clone()
        };
        self.config = ServiceConfig {
            listen: self.config.listen.clone(),
            trusted_proxies,
            ..loaded.config
        };
        self.present(loaded.tls, upkeep);
        for (credential, config) in loaded.credentials.iter().zip(&self.config.credentials) {
            credential.reconfigure(config);
        }
        let previous = self.current();
        let service = self.replace(inputs, loaded.credentials, &previous);
        let current = self.current();
        // Running tasks hold the old endpoints and connections.
        let tasks = if previous.endpoints() == current.endpoints() && has_same_routes {
            tasks
        } else {
            RunningTasks::Restart
        };
        self.upkeep = upkeep.start(&current, std::mem::take(&mut self.upkeep), tasks);
        service
    }

    fn replace(
        &self,
        inputs: ServiceInputs<'_>,
        credentials: Vec<Arc<Credential>>,
        previous: &Service,
    ) -> Weak<Service> {
        let service = Arc::new(assemble(
            inputs.shared,
            &self.config,
            inputs.policies,
            inputs.limits,
            credentials,
            Some(previous),
        ));
        let weak = Arc::downgrade(&service);
        self.live.send_replace(service);
        weak
    }
}

/// Whether the credentials that both configurations have connect over the same routes.
fn has_same_routes(old: &ServiceConfig, new: &ServiceConfig) -> bool {
    new.credentials.iter().all(|credential| {
        let mut old = old.credentials.iter();
        old.find(|old| old.tag == credential.tag)
            .is_none_or(|old| old.route == credential.route)
    })
}

/// All services of the gateway: those that it started with.
pub(crate) struct RunningServices(Vec<RunningService>);

impl RunningServices {
    pub(crate) fn new(services: Vec<RunningService>) -> Self {
        Self(services)
    }

    pub(crate) fn configs(&self) -> impl Iterator<Item = &ServiceConfig> {
        self.0.iter().map(|service| &service.config)
    }

    /// The services' configurations, and where they listen.
    pub(crate) fn bound(&self) -> impl Iterator<Item = (&ServiceConfig, &[ListenAddress])> {
        let services = self.0.iter();
        services.map(|service| (&service.config, service.addresses.as_slice()))
    }

    pub(crate) fn listeners(&self) -> Vec<(String, ListenConfig)> {
        self.configs()
            .map(|config| (config.tag.clone(), config.listen.clone()))
            .collect()
    }

    /// The credentials of each service, by its tag.
    pub(crate) fn credentials(&self) -> HashMap<String, Vec<Arc<Credential>>> {
        self.0
            .iter()
            .map(|service| {
                let credentials = service.current().credentials().to_vec();
                (service.config.tag.clone(), credentials)
            })
            .collect()
    }

    /// The TLS settings that each service with TLS presents, by its tag.
    pub(crate) fn certificates(&self) -> HashMap<String, TlsServer> {
        self.0
            .iter()
            .filter_map(|service| {
                Some((service.config.tag.clone(), service.certificate.current()?))
            })
            .collect()
    }

    /// Puts all services together again.
    pub(crate) fn rebuild(&self, inputs: ServiceInputs<'_>) -> Vec<Weak<Service>> {
        self.0
            .iter()
            .map(|service| service.rebuild(inputs))
            .collect()
    }

    /// Applies a changed configuration, of which `loaded` has all services. Services that are not
    /// among them stay as they are.
    pub(crate) fn reconfigure(
        &mut self,
        loaded: Vec<LoadedService>,
        inputs: ServiceInputs<'_>,
        upkeep: &Upkeep,
        tasks: RunningTasks,
    ) -> Vec<Weak<Service>> {
        let mut loaded: HashMap<String, LoadedService> = loaded
            .into_iter()
            .map(|service| (service.config.tag.clone(), service))
            .collect();
        let mut services = Vec::new();
        for running in &mut self.0 {
            services.push(match loaded.remove(&running.config.tag) {
                Some(loaded) => running.reconfigure(loaded, inputs, upkeep, tasks),
                None => {
                    running.is_configured = false;
                    Arc::downgrade(&running.current())
                }
            });
        }
        services
    }
}
