//! The listeners of services and of the admin API: bound first, accepting once everything else is
//! ready.

mod connection;
mod connector;
mod handover;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

pub(crate) use self::handover::Handover;

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
use crate::listener::{
    ClientListener, HandedOverSocket, HandedOverSockets, ListenError, SocketFileOwnership,
    SocketOwner, SocketPurpose,
};
use crate::pipeline::Service;
use crate::platform::duplicate;
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
    /// Those of each service: several if the service manager has several for it.
    services: Vec<Vec<ClientListener>>,
    admin: Option<AdminListening>,
    admin_socket: Option<HandedOverSocket>,
}

struct AdminListening {
    listener: TcpListener,
    owner: SocketOwner,
}

/// Listeners that accept connections.
pub(super) struct AcceptingListeners {
    pub(super) listening: Vec<ServiceAddress>,
    pub(super) running: Vec<RunningService>,
    /// Their sockets, for a process that succeeds this one.
    pub(super) sockets: Vec<HandedOverSocket>,
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
    /// Binds what `config` names. What is among `sockets` is taken from there.
    pub(super) async fn bind(
        config: &Config,
        mut sockets: HandedOverSockets,
    ) -> Result<Self, StartError> {
        let limits = &config.limits;
        let room = Arc::new(Semaphore::new(connection_permits(limits)));
        let named: Vec<Vec<HandedOverSocket>> = config
            .services
            .iter()
            .map(|service| sockets.take_of_service(&service.tag, &service.listen.address))
            .collect();
        let mut services = Vec::new();
        for (service, mut handed_over) in config.services.iter().zip(named) {
            if handed_over.is_empty() {
                handed_over = sockets.take_at(&service.listen.address);
            }
            services.push(bind_service(service, handed_over, &room, limits)?);
        }
        let admin = match &config.admin {
            Some(admin) => Some(bind_admin(admin.listen, &mut sockets).await?),
            None => None,
        };
        let admin_socket =
            sockets.take_admin_socket(&ListenAddress::Unix(config.data_dir.join(SOCKET)));
        sockets.close_unused();
        Ok(Self {
            services,
            admin,
            admin_socket,
        })
    }

    pub(super) fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref()?.listener.local_addr().ok()
    }

    /// Accepts connections from now on. Operators are first, so that they can see a gateway that
    /// has just started.
    pub(super) fn accept(
        self,
        context: &AcceptContext<'_>,
        services: Vec<(Arc<Service>, Option<TlsServer>)>,
        upkeep: &Upkeep,
        ledger: &Ledger,
    ) -> AcceptingListeners {
        let mut sockets = context.accept_operators(ledger, self.admin, self.admin_socket);
        let mut listening = Vec::new();
        let mut running = Vec::new();
        let parts = self
            .services
            .into_iter()
            .zip(services)
            .zip(&context.config.services);
        for ((listeners, (service, tls)), config) in parts {
            for listener in &listeners {
                listening.push(ServiceAddress {
                    service: config.tag.clone(),
                    address: listener.address().clone(),
                });
                match listener.for_successor(&config.tag) {
                    Ok(socket) => sockets.push(socket),
                    Err(error) => tracing::warn!(%error, "listener cannot be handed over"),
                }
            }
            running.push(context.accept_clients(listeners, config, service, tls, upkeep));
        }
        AcceptingListeners {
            listening,
            running,
            sockets,
        }
    }
}

fn bind_service(
    service: &ServiceConfig,
    handed_over: Vec<HandedOverSocket>,
    room: &Arc<Semaphore>,
    limits: &Limits,
) -> Result<Vec<ClientListener>, StartError> {
    let stall_limit = limits.client_stall_timeout;
    let is_managed = |socket: &HandedOverSocket| socket.owner == SocketOwner::ServiceManager;
    if service.listen.options.are_special() && handed_over.iter().any(is_managed) {
        tracing::warn!(
            service = service.tag,
            "listen options have no effect on a socket of the service manager"
        );
    }
    let bound: Result<Vec<_>, ListenError> = if handed_over.is_empty() {
        ClientListener::bind(&service.listen, Arc::clone(room), stall_limit)
            .map(|listener| vec![listener])
    } else {
        handed_over
            .into_iter()
            .map(|socket| ClientListener::take_over(socket, Arc::clone(room), stall_limit))
            .collect()
    };
    for listener in bound.iter().flatten() {
        warn_if_exposed(service, listener.address());
        if listener
            .options()
            .is_some_and(|options| *options != service.listen.options)
        {
            tracing::warn!(
                service = service.tag,
                "the socket keeps its options: the changed ones need a restart"
            );
        }
    }
    bound.map_err(|error| StartError::Listen {
        service: service.tag.clone(),
        address: service.listen.address.clone(),
        reason: error.to_string(),
    })
}

/// Warns of a socket of the service manager that lets everyone in. For other addresses, the
/// configuration's own check does.
fn warn_if_exposed(service: &ServiceConfig, address: &ListenAddress) {
    let is_public = address
        .ip()
        .is_some_and(|address| !address.ip().is_loopback());
    if is_public && service.users.is_empty() && address.ip() != service.listen.address.ip() {
        tracing::warn!(
            service = service.tag,
            %address,
            "the address is not loopback and there are no users: everyone who can connect uses your credentials"
        );
    }
}

async fn bind_admin(
    address: SocketAddr,
    sockets: &mut HandedOverSockets,
) -> Result<AdminListening, StartError> {
    let address = ListenAddress::Ip(address);
    let bound = match (sockets.take_admin(&address), &address) {
        (Some(handed_over), _) => {
            let owner = handed_over.owner;
            let listener = handed_over
                .into_listening()
                .and_then(|(socket, _)| TcpListener::from_std(socket.into()));
            listener.map(|listener| AdminListening { listener, owner })
        }
        (None, ListenAddress::Ip(address)) => {
            let owner = SocketOwner::Gateway;
            let listener = TcpListener::bind(address).await;
            listener.map(|listener| AdminListening { listener, owner })
        }
        (None, ListenAddress::Unix(_)) => unreachable!("it is an IP address"),
    };
    bound.map_err(|error| StartError::Listen {
        service: "admin".to_owned(),
        address,
        reason: io_reason(&error),
    })
}

impl AcceptContext<'_> {
    /// Returns the sockets for a process that succeeds this one.
    fn accept_operators(
        &self,
        ledger: &Ledger,
        admin: Option<AdminListening>,
        admin_socket: Option<HandedOverSocket>,
    ) -> Vec<HandedOverSocket> {
        let mut sockets = Vec::new();
        let path = ledger.path().with_file_name(SOCKET);
        let api = AdminApi::new(self.status, self.commands, AdminAccess::Owner);
        if let Some(socket) = api.listen_unix(path, admin_socket, self.phases, self.tasks) {
            sockets.push(HandedOverSocket {
                purpose: SocketPurpose::AdminSocket,
                owner: SocketOwner::Gateway,
                file_ownership: SocketFileOwnership::own(),
                options: None,
                socket,
            });
        }
        let Some(AdminListening { listener, owner }) = admin else {
            return sockets;
        };
        if let Ok(socket) = duplicate(&listener) {
            sockets.push(HandedOverSocket {
                purpose: SocketPurpose::Admin,
                owner,
                file_ownership: SocketFileOwnership::own(),
                options: None,
                socket,
            });
        }
        let config = self.config.admin.as_ref();
        let token = config.and_then(|admin| admin.token.clone());
        AdminApi::new(self.status, self.commands, AdminAccess::over_tcp(token)).listen_tcp(
            listener,
            self.phases,
            self.tasks,
        );
        sockets
    }

    fn accept_clients(
        &self,
        listeners: Vec<ClientListener>,
        config: &ServiceConfig,
        service: Arc<Service>,
        tls: Option<TlsServer>,
        upkeep: &Upkeep,
    ) -> RunningService {
        let addresses = listeners.iter().map(|listener| listener.address().clone());
        let mut effective = config.clone();
        if let Some(options) = listeners.first().and_then(ClientListener::options) {
            // Of a socket that was handed over: a reload names those that need a restart.
            effective.listen.options = options.clone();
        }
        let running = RunningService::start(effective, addresses.collect(), service, tls, upkeep);
        self.status.add_certificate(running.certificate());
        let connections = ConnectionContext {
            live: running.live(),
            proxy_protocol: config.listen.proxy_protocol,
            untrusted_logged: Arc::default(),
            tls: running.certificate().server(),
            phases: self.phases.clone(),
        };
        // A connection of the process before this one would be replaced by another.
        let (started, connecting) = (upkeep.started(), keep_connected(connections.clone()));
        tokio::spawn(async move {
            if started.await.is_some() {
                connecting.await;
            }
        });
        for listener in listeners {
            tokio::spawn(accept(listener, connections.clone()));
        }
        running
    }
}

fn connection_permits(limits: &Limits) -> usize {
    usize::try_from(limits.connections)
        .unwrap_or(usize::MAX)
        .min(Semaphore::MAX_PERMITS)
}
