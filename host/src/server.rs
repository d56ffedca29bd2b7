//! The gateway: everything that a configuration names, put together, started and stopped.
//!
//! Owns the wiring and the order of start and shutdown. Does not know what happens to a request. Invariant: on shutdown,
//! every request in flight ends or is recorded as aborted before the ledger closes.

mod admin;
mod background;
mod build;
mod connection;
mod error;
mod policies;
mod status;
mod supervisor;
mod upkeep;
mod usage_files;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

pub use self::build::check;
pub use self::error::StartError;
pub use self::supervisor::{AppliedConfiguration, CommandError};
pub use self::upkeep::refresh::{
    COMMAND as REFRESH_COMMAND, RefreshPlace, RefreshRequest, run_refresh,
};

pub(crate) use self::admin::SOCKET;

use self::admin::{AdminAccess, AdminApi};
use self::background::BackgroundTasks;
use self::build::{SharedResources, assemble, read_certificates, read_credentials};
use self::connection::{ConnectionContext, accept};
use self::error::reject_problems;
use self::policies::{InitialPolicies, PendingPolicy, PolicyLoader, StartWait, load_initial};
use self::status::GatewayStatus;
use self::supervisor::{
    COMMAND_QUEUE, CommandSender, RunningService, RunningServices, StartupSettings, Supervisor,
    SupervisorCommand, SupervisorParts,
};
use self::upkeep::Upkeep;
use self::usage_files::{UsageFiles, UsageFilesWriter};
use crate::config::{Config, ServiceConfig};
use crate::ledger::{Ledger, ResponseIssuer, StoredSession};
use crate::listener::ClientListener;
use crate::pipeline::{Service, restore_affinity};
use crate::tls::TlsServer;
use crate::upstream::TrustRoots;
use crate::values::clock::Timestamp;
use crate::values::limits::Limits;
use crate::values::phase::Phase;
use crate::watch::FileWatcher;

/// The address of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAddress {
    /// The service's tag.
    pub service: String,
    /// The bound address. The port is the actual one, even if the configuration has port 0.
    pub address: SocketAddr,
}

/// A running gateway.
pub struct Gateway {
    listening: Vec<ServiceAddress>,
    admin: Option<SocketAddr>,
    phase: watch::Sender<Phase>,
    status: Arc<GatewayStatus>,
    commands: CommandSender,
    /// Ends with the last background task.
    background: mpsc::Receiver<()>,
    refresh_place: RefreshPlace,
    /// Ends when nothing holds a service: no connection, and no response whose row is not handed over.
    alive: mpsc::Receiver<()>,
    usage_files: UsageFilesThread,
    ledger: Arc<Ledger>,
    limits: Arc<Limits>,
}

/// How the wait for requests in flight ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DrainResult {
    /// All requests ended, or `limits.drain_timeout` is over.
    Over,
    /// An operator aborted it.
    Aborted,
}

struct UsageFilesThread {
    writer: UsageFilesWriter,
    thread: JoinHandle<()>,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway")
            .field("listening", &self.listening)
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// Starts what `config` describes. All listeners accept connections when this returns. Tokens are refreshed in this
    /// process.
    ///
    /// # Errors
    /// Something that the configuration names cannot be used. Nothing is left running.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, RefreshPlace::ThisProcess).await
    }

    /// Starts what `config` describes, with tokens refreshed in `refresh_place`.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub async fn start_with(
        config: Config,
        refresh_place: RefreshPlace,
    ) -> Result<Self, StartError> {
        let (phase, phases) = watch::channel(Phase::Serving);
        let (alive_sender, alive) = mpsc::channel(1);
        let built = BuiltGateway::build(config, phases.clone(), alive_sender).await?;
        let listeners = BoundListeners::bind(&built.config).await?;
        let (writer, thread) = built.usage_files.start().map_err(StartError::Thread)?;
        let BuiltGateway {
            config,
            shared,
            loader,
            pending,
            status,
            services,
            ..
        } = built;
        let limits = Arc::new(config.limits.clone());
        let (tasks, background) = BackgroundTasks::new();
        let watcher = FileWatcher::start();
        let upkeep = Upkeep::new(
            &limits,
            &shared.trust,
            refresh_place.clone(),
            &watcher,
            &phases,
            &tasks,
        );
        let (commands, received) = mpsc::channel::<SupervisorCommand>(COMMAND_QUEUE);
        let ledger = Arc::clone(&shared.ledger);
        let (admin, listening, services) = {
            let context = AcceptContext {
                config: &config,
                status: &status,
                commands: &commands,
                phases: &phases,
                tasks: &tasks,
            };
            let admin = listeners.admin_address();
            let (listening, services) = listeners.accept(&context, services, &upkeep, &ledger);
            (admin, listening, services)
        };
        let parts = SupervisorParts {
            status: Arc::clone(&status),
            shared,
            services: RunningServices::new(services),
            loader,
            upkeep,
            usage_files: writer.clone(),
            startup: StartupSettings {
                data_dir: config.data_dir,
                log: config.log,
                admin: config.admin,
                limits: Arc::clone(&limits),
            },
            watcher,
        };
        tasks.spawn(Supervisor::new(parts, &commands).run(received, pending));
        Ok(Self {
            listening,
            admin,
            phase,
            status,
            commands,
            background,
            refresh_place,
            alive,
            usage_files: UsageFilesThread { writer, thread },
            ledger,
            limits,
        })
    }

    /// Applies `config` without dropping a connection.
    ///
    /// # Errors
    /// The configuration is rejected. The current one stays in effect.
    pub async fn configure(&self, config: Config) -> Result<AppliedConfiguration, CommandError> {
        let (reply, done) = oneshot::channel();
        let command = SupervisorCommand::Configure {
            config: Box::new(config),
            reply,
        };
        self.commands
            .send(command)
            .await
            .map_err(|_| CommandError::ShuttingDown)?;
        done.await.map_err(|_| CommandError::ShuttingDown)?
    }

    /// Reports a configuration that could not even be read, as one that was rejected.
    pub fn reject_configuration(&self, reason: &str) {
        self.status.configuration_rejected(reason);
    }

    /// Returns the address of the admin listener, if the configuration has one.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Returns the services' addresses in the order of the configuration.
    pub fn listening(&self) -> &[ServiceAddress] {
        &self.listening
    }

    /// Returns the ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Shuts down: accepts no new requests, waits up to `limits.drain_timeout` for those in flight, then writes and closes
    /// usage files and the ledger.
    pub async fn shut_down(self) {
        self.shut_down_or_abort(std::future::pending()).await;
    }

    /// Shuts down, and aborts the requests in flight as soon as `abort` returns. Aborted requests are recorded, too.
    pub async fn shut_down_or_abort(mut self, abort: impl Future<Output = ()>) {
        let mut abort = pin!(abort);
        self.phase.send_replace(Phase::Draining);
        let drain = self.drain(abort.as_mut()).await;
        self.phase.send_replace(Phase::Ending);
        self.await_background(drain, abort).await;
        // Every connection hands its rows to the ledger before it drops its service.
        while self.alive.recv().await.is_some() {}
        let ledger = Arc::clone(&self.ledger);
        let UsageFilesThread { writer, thread } = self.usage_files;
        let closing = spawn_blocking(move || {
            drop(writer);
            if thread.join().is_err() {
                tracing::error!("usage file thread panicked");
            }
            ledger.close();
        });
        if let Err(error) = closing.await {
            tracing::error!(%error, "closing the ledger panicked");
        }
    }

    /// Waits for the requests in flight.
    async fn drain(&mut self, abort: impl Future<Output = ()>) -> DrainResult {
        let ended = async { while self.alive.recv().await.is_some() {} };
        tokio::select! {
            ended = timeout(self.limits.drain_timeout, ended) => {
                if ended.is_err() {
                    tracing::warn!("limits.drain_timeout exceeded, aborting requests in flight");
                }
                DrainResult::Over
            }
            () = abort => DrainResult::Aborted,
        }
    }

    /// Waits for background tasks, above all for a refresh in progress: its refresh token is spent.
    ///
    /// A child process would complete its refresh alone, but not if this process is the first of a container, with which all
    /// others end.
    async fn await_background(&mut self, drain: DrainResult, abort: impl Future<Output = ()>) {
        let background = &mut self.background;
        let ended = async { while background.recv().await.is_some() {} };
        match (&self.refresh_place, drain) {
            (RefreshPlace::ThisProcess, _) => ended.await,
            (RefreshPlace::ChildProcess(_), DrainResult::Aborted) => {}
            (RefreshPlace::ChildProcess(_), DrainResult::Over) => tokio::select! {
                () = ended => {}
                () = abort => {}
            },
        }
    }
}

/// A gateway that was put together and not started.
struct BuiltGateway {
    config: Config,
    shared: SharedResources,
    loader: PolicyLoader,
    pending: Vec<PendingPolicy>,
    status: Arc<GatewayStatus>,
    services: Vec<(Arc<Service>, Option<TlsServer>)>,
    usage_files: UsageFiles,
}

impl BuiltGateway {
    /// Compiles policies and reads files, on a blocking thread.
    async fn build(
        config: Config,
        phases: watch::Receiver<Phase>,
        alive: mpsc::Sender<()>,
    ) -> Result<Self, StartError> {
        let runtime = Handle::current();
        let build = move || Self::build_blocking(config, runtime, phases, alive);
        match spawn_blocking(build).await {
            Ok(built) => built,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }

    fn build_blocking(
        config: Config,
        runtime: Handle,
        phases: watch::Receiver<Phase>,
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
        let ledger = Arc::new(Ledger::open(&config.data_dir, &limits)?);
        let trust = TrustRoots::from_platform();
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
            alive,
        };
        let mut problems = Vec::new();
        let mut services = Vec::new();
        for (service, tls) in config.services.iter().zip(certificates) {
            match read_credentials(service, &[]) {
                Ok(credentials) => {
                    let service = assemble(&shared, service, &table, &limits, credentials, None);
                    services.push((Arc::new(service), tls));
                }
                Err(StartError::Config(error)) => problems.extend(error.problems),
                Err(error) => return Err(error),
            }
        }
        reject_problems(problems)?;
        restore_sessions(&shared.ledger, &services, &limits);
        let usage_files = UsageFiles::open(&shared.ledger, &config.services)?;
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

/// Listeners that are bound and do not accept yet.
struct BoundListeners {
    services: Vec<ClientListener>,
    admin: Option<TcpListener>,
}

/// What accepting connections needs.
struct AcceptContext<'a> {
    config: &'a Config,
    status: &'a Arc<GatewayStatus>,
    commands: &'a CommandSender,
    phases: &'a watch::Receiver<Phase>,
    tasks: &'a BackgroundTasks,
}

impl BoundListeners {
    async fn bind(config: &Config) -> Result<Self, StartError> {
        let limits = &config.limits;
        let room = Arc::new(Semaphore::new(connection_permits(limits)));
        let mut services = Vec::new();
        for service in &config.services {
            let room = Arc::clone(&room);
            let bound =
                ClientListener::bind(service.listen, room, limits.client_stall_timeout).await;
            services.push(bound.map_err(|error| bind_error(&service.tag, service.listen, &error))?);
        }
        let admin = match &config.admin {
            Some(admin) => {
                let bound = TcpListener::bind(admin.listen).await;
                Some(bound.map_err(|error| bind_error("admin", admin.listen, &error))?)
            }
            None => None,
        };
        Ok(Self { services, admin })
    }

    fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref()?.local_addr().ok()
    }

    /// Accepts connections from now on. Operators are first, so that they can see a gateway that has just started.
    fn accept(
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
                address: listener.address(),
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
        let connections = ConnectionContext {
            live: running.live(),
            tls: running.tls(),
            phases: self.phases.clone(),
        };
        tokio::spawn(accept(listener, connections));
        running
    }
}

fn bind_error(service: &str, address: SocketAddr, error: &std::io::Error) -> StartError {
    StartError::Listen {
        service: service.to_owned(),
        address,
        reason: crate::files::io_reason(error),
    }
}

/// Restores sessions and the issuers of responses from the ledger. Without them, sessions start without a home.
fn restore_sessions(
    ledger: &Ledger,
    services: &[(Arc<Service>, Option<TlsServer>)],
    limits: &Limits,
) {
    match read_sessions(ledger, limits) {
        Ok((sessions, issuers)) => {
            for (service, _) in services {
                restore_affinity(service, &sessions, &issuers);
            }
        }
        Err(error) => tracing::warn!(%error, "sessions not restored"),
    }
}

fn read_sessions(
    ledger: &Ledger,
    limits: &Limits,
) -> Result<(Vec<StoredSession>, Vec<ResponseIssuer>), Box<dyn std::error::Error>> {
    let reader = ledger.reader()?;
    let since = Timestamp::now().before(limits.session_lifetime);
    let sessions = reader.sessions(limits.sessions)?;
    let issuers = reader.issuers(since, limits.sessions)?;
    Ok((sessions, issuers))
}

fn connection_permits(limits: &Limits) -> usize {
    usize::try_from(limits.connections)
        .unwrap_or(usize::MAX)
        .min(Semaphore::MAX_PERMITS)
}
