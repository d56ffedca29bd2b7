//! The listeners of services and of the admin API: bound first, accepting once everything else is
//! ready.

mod connection;
mod connector;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use self::connection::{ConnectionContext, accept};
use self::connector::keep_connected;
use super::admin::{AdminAccess, AdminApi, SOCKET};
use super::background::BackgroundTasks;
use super::error::StartError;
use super::status::GatewayStatus;
use super::supervisor::{CommandSender, RunningService};
use super::upkeep::Upkeep;
use crate::config::{Config, ListenAddress, ServiceConfig};
use crate::files::io_reason;
use crate::ledger::Ledger;
use crate::listener::{ClientListener, ListenError};
use crate::pipeline::Service;
use crate::tls::TlsServer;
use crate::values::limits::Limits;
use crate::values::phase::GatewayPhase;

/// Where a service accepts connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAddress {
    /// The tag of the service that listens there.
    pub service: String,
    /// The bound address. The port is the actual one, even if the configuration has port 0.
    pub address: ListenAddress,
}

/// Listeners that are bound and do not accept yet.
pub(super) struct BoundListeners {
    services: Vec<ClientListener>,
    admin: Option<TcpListener>,
}

/// What accepting connections needs.
pub(super) struct AcceptContext<'a> {
    pub(super) config: &'a Config,
    pub(super) status: &'a Arc<GatewayStatus>,
    pub(super) commands: &'a CommandSender,
    pub(super) phases: &'a watch::Receiver<GatewayPhase>,
    pub(super) tasks: &'a BackgroundTasks,
}

impl BoundListeners {
    pub(super) async fn bind(config: &Config) -> Result<Self, StartError> {
        let limits = &config.limits;
        let room = Arc::new(Semaphore::new(connection_permits(limits)));
        let mut services = Vec::new();
        for service in &config.services {
            let room = Arc::clone(&room);
            let bound = ClientListener::bind(&service.listen, room, limits.client_stall_timeout);
            let failed = |error: ListenError| StartError::Listen {
                service: service.tag.clone(),
                address: service.listen.address.clone(),
                reason: error.to_string(),
            };
            services.push(bound.map_err(failed)?);
        }
        let admin = match &config.admin {
            Some(admin) => {
                let bound = TcpListener::bind(admin.listen).await;
                let failed = |error: std::io::Error| StartError::Listen {
                    service: "admin".to_owned(),
                    address: ListenAddress::Ip(admin.listen),
                    reason: io_reason(&error),
                };
                Some(bound.map_err(failed)?)
            }
            None => None,
        };
        Ok(Self { services, admin })
    }

    pub(super) fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref()?.local_addr().ok()
    }

    /// Accepts connections from now on. Operators are first, so that they can see a gateway that
    /// has just started.
    pub(super) fn accept(
        self,
        context: &AcceptContext<'_>,
        services: Vec<(Arc<Service>, Option<TlsServer>)>,
        upkeep: &Upkeep,
        ledger: &Ledger,
    ) -> (Vec<ServiceAddress>, Vec<RunningService>) {
        context.accept_operators(ledger, self.admin);
        let mut listening = Vec::new();
        let mut running = Vec::new();
        let parts = self
            .services
            .into_iter()
            .zip(services)
            .zip(&context.config.services);
        for ((listener, (service, tls)), config) in parts {
            listening.push(ServiceAddress {
                service: config.tag.clone(),
                address: listener.address().clone(),
            });
            running.push(context.accept_clients(listener, config, service, tls, upkeep));
        }
        (listening, running)
    }
}

impl AcceptContext<'_> {
    fn accept_operators(&self, ledger: &Ledger, listener: Option<TcpListener>) {
        let socket = ledger.path().with_file_name(SOCKET);
        AdminApi::new(self.status, self.commands, AdminAccess::Owner).listen_unix(
            socket,
            self.phases,
            self.tasks,
        );
        if let Some(listener) = listener {
            let token = self
                .config
                .admin
                .as_ref()
                .and_then(|admin| admin.token.clone());
            AdminApi::new(self.status, self.commands, AdminAccess::over_tcp(token)).listen_tcp(
                listener,
                self.phases,
                self.tasks,
            );
        }
    }

    fn accept_clients(
        &self,
        listener: ClientListener,
        config: &ServiceConfig,
        service: Arc<Service>,
        tls: Option<TlsServer>,
        upkeep: &Upkeep,
    ) -> RunningService {
        let running = RunningService::start(config.clone(), service, tls, upkeep);
        self.status.add_certificate(running.certificate());
        let connections = ConnectionContext {
            live: running.live(),
            proxy_protocol: config.listen.proxy_protocol,
            tls: running.certificate().server(),
            phases: self.phases.clone(),
        };
        tokio::spawn(keep_connected(connections.clone()));
        tokio::spawn(accept(listener, connections));
        running
    }
}

fn connection_permits(limits: &Limits) -> usize {
    usize::try_from(limits.connections)
        .unwrap_or(usize::MAX)
        .min(Semaphore::MAX_PERMITS)
}
