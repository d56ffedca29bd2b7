//! The gateway: everything that a configuration names, put together, started and stopped.
//!
//! Owns the wiring and the order of start and stop; refuses to know what happens to a request. Invariant: on a stop,
//! every request under way ends or is recorded as cut before the ledger closes.

mod admin;
mod build;
mod connection;
mod policies;
mod status;
mod supervisor;
mod upkeep;
mod usage_files;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use crate::config::{Config, ConfigError};
use crate::ledger::{Ledger, LedgerError};
use crate::listener::Listener;
use crate::pipeline::{LiveService, Service, restore_affinity};
use crate::policy::EngineError;
use crate::tls::Tls;
use crate::upstream::Trust;
use crate::values::clock::Timestamp;
use crate::values::limits::Limits;
use crate::values::phase::Phase;
use crate::watch::Watch;

pub use admin::{CredentialStatus, SOCKET, ServiceStatus, Status};
pub use build::check;
pub use policies::{LastReload, PolicyStatus};
pub use upkeep::refresh::{COMMAND as REFRESH_COMMAND, Errand, RefreshIn, run_errand};

use admin::{Admin, Rights};
use build::{Loaded, Patience, World};
use connection::Accepting;
use status::{Board, BoardWorld};
use supervisor::{Command, Fixed, Served, Supervisor};
use upkeep::{Keeping, Tasks};
use usage_files::{ViewOf, Views};

/// The gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration names what cannot be used.
    #[error("{0}")]
    Config(ConfigError),
    /// The ledger cannot be used.
    #[error("ledger: {0}")]
    Ledger(#[from] LedgerError),
    /// The policy engine cannot be used.
    #[error("{0}")]
    Engine(#[from] EngineError),
    /// A usage file cannot be used.
    #[error("usage file {path}: {reason}")]
    UsageFile {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// An address cannot be listened on.
    #[error("service {service:?}: cannot listen on {address}: {reason}")]
    Listen {
        /// The service's tag.
        service: String,
        /// The address.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// A listener that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    /// The service's tag.
    pub service: String,
    /// The address, with the port that was taken.
    pub address: SocketAddr,
}

/// A running gateway.
pub struct Gateway {
    listening: Vec<Listening>,
    admin: Option<SocketAddr>,
    phase: watch::Sender<Phase>,
    board: Arc<Board>,
    commands: mpsc::Sender<Command>,
    /// Ends when nothing goes on in the background any more.
    background: mpsc::Receiver<()>,
    refresh_in: RefreshIn,
    /// Ends when nothing holds a service any more: no connection, and no response whose row is not handed over.
    alive: mpsc::Receiver<()>,
    /// Ends with the last sender of what is wanted of usage files.
    views: Option<(std::sync::mpsc::Sender<Vec<ViewOf>>, JoinHandle<()>)>,
    ledger: Arc<Ledger>,
    limits: Arc<Limits>,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway")
            .field("listening", &self.listening)
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// Starts what `config` describes. When this returns, every listener is up. Tokens are refreshed in this process.
    ///
    /// # Errors
    /// Something cannot be used; nothing is left running.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, RefreshIn::ThisProcess).await
    }

    /// The same, with tokens refreshed as `refresh_in` says.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub async fn start_with(config: Config, refresh_in: RefreshIn) -> Result<Self, StartError> {
        let limits = Arc::new(config.limits.clone());
        let (alive_sender, alive) = mpsc::channel(1);
        let (phase, phases) = watch::channel(Phase::Serving);
        // Compiling policies and reading files takes a while: not on a worker.
        let runtime = Handle::current();
        let built = spawn_blocking({
            let phases = phases.clone();
            move || build_all(config, runtime, phases, alive_sender)
        });
        let Built {
            config,
            world,
            loaded,
            services,
            views,
        } = match built.await {
            Ok(built) => built?,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        let mut doors = Doors::default();
        let room = Arc::new(Semaphore::new(connections(&limits)));
        for service in &config.services {
            let bound = Listener::bind(
                service.listen,
                Arc::clone(&room),
                limits.client_stall_timeout,
            )
            .await;
            let listener =
                bound.map_err(|error| cannot_listen(&service.tag, service.listen, &error))?;
            doors.listeners.push(listener);
        }
        if let Some(admin) = &config.admin {
            let bound = tokio::net::TcpListener::bind(admin.listen).await;
            doors.admin =
                Some(bound.map_err(|error| cannot_listen("admin", admin.listen, &error))?);
        }
        let (views, views_thread) = views.start().map_err(StartError::Thread)?;
        let (tasks, background) = Tasks::new();
        let keeping = Keeping {
            limits: Arc::clone(&limits),
            trust: world.trust.clone(),
            refresh_in: refresh_in.clone(),
            watch: Watch::start(),
            phases: phases.clone(),
            turn: Arc::new(Semaphore::new(1)),
            looks: Arc::new(Semaphore::new(upkeep::LOOKS)),
            tasks: tasks.clone(),
        };
        let board = Arc::new(Board {
            services: RwLock::new(
                services
                    .iter()
                    .map(|(service, _)| Arc::downgrade(service))
                    .collect(),
            ),
            policies: Mutex::new(loaded.policies),
            world: BoardWorld {
                ledger: Arc::downgrade(&world.ledger),
                metrics: Arc::clone(&world.metrics),
                phases: phases.clone(),
            },
            configured: Mutex::default(),
        });
        let (commands, taken) = supervisor::commands();
        let ledger = Arc::clone(&world.ledger);
        let admin = doors.open_admin(&config, &board, &commands, &ledger, &phases, &tasks);
        let (served, listening) = doors.open(&config, services, &keeping, &phases);
        let supervisor = Supervisor {
            board: Arc::clone(&board),
            world,
            workshop: loaded.workshop,
            served,
            watch: keeping.watch.clone(),
            keeping,
            views: views.clone(),
            fixed: Fixed {
                data_dir: config.data_dir,
                log: config.log,
                admin: config.admin,
                limits: Arc::clone(&limits),
            },
            limits: Arc::clone(&limits),
            commands: commands.clone(),
            watched: HashMap::new(),
            works: JoinSet::new(),
            again: Vec::new(),
            is_staging: false,
            waiting: VecDeque::new(),
        };
        tasks.spawn(supervisor.run(taken, loaded.pending));
        let views = Some((views, views_thread));
        Ok(Self {
            listening,
            admin,
            phase,
            board,
            commands,
            background,
            refresh_in,
            alive,
            views,
            ledger,
            limits,
        })
    }

    /// Takes up `config`, without dropping a connection. Answers in words what was left as it was.
    ///
    /// # Errors
    /// Why it is not taken up, in words; what serves goes on.
    pub async fn configure(&self, config: Config) -> Result<String, String> {
        let (reply, done) = oneshot::channel();
        let command = Command::Configure {
            config: Box::new(config),
            reply,
        };
        let stopping = || "the gateway stops".to_owned();
        self.commands.send(command).await.map_err(|_| stopping())?;
        done.await.map_err(|_| stopping())?
    }

    /// A configuration cannot even be read, and why: operators are told of it as of one that is not taken up.
    pub fn refuse_configuration(&self, reason: &str) {
        self.board.refuse_configuration(reason);
    }

    /// Where operators are listened to, with the port that was taken.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// The listeners, in the order of the configuration.
    pub fn listening(&self) -> &[Listening] {
        &self.listening
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Stops: no new requests, up to `limits.drain_timeout` for those under way, then usage files and ledger are
    /// written and closed.
    pub async fn stop(self) {
        self.stop_or_cut(std::future::pending()).await;
    }

    /// Stops, and cuts the requests under way as soon as `cut` ends. What is cut is recorded, too.
    pub async fn stop_or_cut(mut self, cut: impl Future<Output = ()>) {
        self.phase.send_replace(Phase::Draining);
        let ended = async { while self.alive.recv().await.is_some() {} };
        let mut cut = pin!(cut);
        let was_cut = tokio::select! {
            drained = timeout(self.limits.drain_timeout, ended) => {
                if drained.is_err() {
                    tracing::warn!("limits.drain_timeout is over: requests under way are cut");
                }
                false
            }
            () = cut.as_mut() => true,
        };
        self.phase.send_replace(Phase::Ending);
        // A refresh that has begun goes to its end: its token is spent. It has its own bounds. One in a process of its own
        // would end by itself, but not where this process is a container's first: then all end with it.
        let background = &mut self.background;
        let ended = async { while background.recv().await.is_some() {} };
        match self.refresh_in {
            RefreshIn::Child(_) if was_cut => drop(ended),
            RefreshIn::Child(_) => tokio::select! {
                () = ended => {}
                () = cut => {}
            },
            RefreshIn::ThisProcess => ended.await,
        }
        // Every connection hands its rows to the ledger before it lets go of this.
        while self.alive.recv().await.is_some() {}
        let views = self.views.take();
        let ledger = Arc::clone(&self.ledger);
        let closing = spawn_blocking(move || {
            if let Some((stop, thread)) = views {
                drop(stop);
                if thread.join().is_err() {
                    tracing::error!("the writer of usage files panicked");
                }
            }
            ledger.close();
        });
        if let Err(error) = closing.await {
            tracing::error!(%error, "the ledger was not closed in order");
        }
    }
}

/// Everything that a configuration names, put together.
struct Built {
    config: Config,
    world: World,
    loaded: Loaded,
    services: Vec<(Arc<Service>, Option<Tls>)>,
    views: Views,
}

fn build_all(
    config: Config,
    runtime: Handle,
    phases: watch::Receiver<Phase>,
    alive: mpsc::Sender<()>,
) -> Result<Built, StartError> {
    let limits = Arc::new(config.limits.clone());
    let loaded = build::load_policies(&config, Patience::OfLimits(runtime))?;
    let certificates = build::certificates(&config)?;
    let ledger = Arc::new(Ledger::open(&config.data_dir, &limits)?);
    let trust = Trust::of_the_platform();
    if trust.is_empty() {
        tracing::warn!(
            "no certificates to trust were found: an https upstream cannot be reached (SSL_CERT_FILE)"
        );
    }
    let stand_in = Arc::clone(&loaded.stand_in);
    let world = World {
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
        match build::read_credentials(service, &[]) {
            Ok(credentials) => {
                let service = build::assemble(
                    &world,
                    service,
                    &loaded.policies,
                    &limits,
                    credentials,
                    None,
                );
                services.push((Arc::new(service), tls));
            }
            Err(StartError::Config(error)) => problems.extend(error.problems),
            Err(error) => return Err(error),
        }
    }
    build::refuse_if_any(problems)?;
    restore(
        &world.ledger,
        services.iter().map(|(service, _)| &**service),
        &limits,
    );
    let views = Views::open(&world.ledger, usage_files::wanted(&config.services))?;
    Ok(Built {
        config,
        world,
        loaded,
        services,
        views,
    })
}

/// What is listened on, and nobody is let in yet.
#[derive(Default)]
struct Doors {
    listeners: Vec<Listener>,
    admin: Option<tokio::net::TcpListener>,
}

impl Doors {
    /// Lets clients in, on each listener in a task of its own.
    fn open(
        self,
        config: &Config,
        services: Vec<(Arc<Service>, Option<Tls>)>,
        keeping: &Keeping,
        phases: &watch::Receiver<Phase>,
    ) -> (Vec<Served>, Vec<Listening>) {
        let (mut served, mut listening) = (Vec::new(), Vec::new());
        let doors = self
            .listeners
            .into_iter()
            .zip(services)
            .zip(&config.services);
        for ((listener, (service, tls)), config) in doors {
            listening.push(Listening {
                service: service.tag().to_owned(),
                address: listener.address(),
            });
            let kept = keeping.keep(&service, Vec::new(), true);
            let (live, tls) = (watch::Sender::new(service), watch::Sender::new(tls));
            let accepting = Accepting {
                live: LiveService::subscribe(&live),
                tls: tls.subscribe(),
                phases: phases.clone(),
            };
            tokio::spawn(connection::accept(listener, accepting));
            served.push(Served {
                config: config.clone(),
                live,
                tls,
                kept,
                gone: false,
            });
        }
        (served, listening)
    }

    /// Lets operators in. Answers where, over TCP.
    fn open_admin(
        &mut self,
        config: &Config,
        board: &Arc<Board>,
        commands: &mpsc::Sender<Command>,
        ledger: &Ledger,
        phases: &watch::Receiver<Phase>,
        tasks: &Tasks,
    ) -> Option<SocketAddr> {
        let admin = |rights| Admin::new(board, commands, rights);
        admin(Rights::All).listen(ledger.path().with_file_name(SOCKET), phases, tasks);
        let listener = self.admin.take()?;
        let address = listener.local_addr().ok();
        let token = config.admin.as_ref().and_then(|admin| admin.token.clone());
        admin(Rights::of(token)).listen_tcp(listener, phases, tasks);
        address
    }
}

fn cannot_listen(service: &str, address: SocketAddr, error: &std::io::Error) -> StartError {
    StartError::Listen {
        service: service.to_owned(),
        address,
        reason: crate::files::plain(error),
    }
}

/// Sessions live where they lived before the restart.
fn restore<'a>(ledger: &Ledger, services: impl Iterator<Item = &'a Service>, limits: &Limits) {
    let read = || -> Result<_, String> {
        let reader = ledger.reader().map_err(|error| error.to_string())?;
        let begin = Timestamp::now().before(limits.session_lifetime);
        let sessions = reader
            .sessions(limits.sessions)
            .map_err(|error| error.to_string())?;
        let makers = reader
            .makers(begin, limits.sessions)
            .map_err(|error| error.to_string())?;
        Ok((sessions, makers))
    };
    match read() {
        Ok((sessions, makers)) => {
            services.for_each(|service| restore_affinity(service, &sessions, &makers))
        }
        Err(error) => tracing::warn!(error, "sessions of before are not known: they begin anew"),
    }
}

fn connections(limits: &Limits) -> usize {
    usize::try_from(limits.connections)
        .unwrap_or(usize::MAX)
        .min(Semaphore::MAX_PERMITS)
}
