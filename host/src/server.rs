//! The gateway: everything that a configuration names, put together, started and stopped.
//!
//! Owns the wiring and the order of start and shutdown. Does not know what happens to a request.
//! Invariant: on shutdown, every request in flight ends or is recorded as aborted before the ledger
//! closes.

mod admin;
mod background;
mod build;
mod error;
mod listeners;
mod policies;
mod status;
mod supervisor;
mod upkeep;
mod usage_files;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

pub use self::build::check;
pub use self::build::connectivity::{TriedConnection, try_connections};
pub use self::error::StartError;
pub(crate) use self::listeners::Handover;
pub use self::listeners::ServiceAddress;
pub use self::supervisor::{AppliedConfiguration, CommandError};
pub use self::upkeep::UpkeepStart;
pub use self::upkeep::refresh::{
    COMMAND as REFRESH_COMMAND, RefreshProcess, RefreshRequest, run_refresh,
};

pub(crate) use self::admin::SOCKET;

use self::background::BackgroundTasks;
use self::build::{BuildInputs, BuiltGateway, restore_sessions};
use self::listeners::{AcceptContext, BoundListeners};
use self::status::GatewayStatus;
use self::supervisor::{
    COMMAND_QUEUE, CommandSender, RunningServices, StartupSettings, Supervisor, SupervisorCommand,
    SupervisorParts,
};
use self::upkeep::Upkeep;
use self::usage_files::UsageFilesWriter;
use crate::config::{Config, ServiceConfig};
use crate::ledger::Ledger;
use crate::listener::{HandedOverSocket, HandedOverSockets, SocketFileOwnership};
use crate::platform::duplicate;
use crate::upstream::TrustRoots;
use crate::values::limits::Limits;
use crate::values::phase::GatewayPhase;
use crate::watch::FileWatcher;

/// A gateway that accepts connections until it is shut down.
pub struct Gateway {
    listening: Vec<ServiceAddress>,
    admin: Option<SocketAddr>,
    phase: watch::Sender<GatewayPhase>,
    status: Arc<GatewayStatus>,
    commands: CommandSender,
    /// Ends with the last background task.
    background: mpsc::Receiver<()>,
    refresh_process: RefreshProcess,
    /// Ends when nothing holds a service: no connection, and no response whose row is not handed
    /// over.
    alive: mpsc::Receiver<()>,
    usage_files: UsageFilesThread,
    ledger: Arc<Ledger>,
    limits: Arc<Limits>,
    upkeep_start: watch::Sender<UpkeepStart>,
    /// Of the start: what upkeep that begins later needs.
    services: Vec<ServiceConfig>,
    /// The listening sockets, for a process that succeeds this one.
    sockets: Vec<HandedOverSocket>,
    socket_files: SocketFileOwnership,
}

/// How a gateway starts, beside its configuration.
#[derive(Debug)]
pub(crate) struct GatewayStart {
    /// Where tokens are refreshed.
    pub(crate) refresh_process: RefreshProcess,
    /// What upstream's certificates are checked against, instead of the platform's.
    pub(crate) trust: Option<TrustRoots>,
    /// What another process hands over to this one.
    pub(crate) handover: Handover,
    pub(crate) upkeep: UpkeepStart,
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
    /// Starts what `config` describes. All listeners accept connections when this returns. Tokens
    /// are refreshed in this process.
    ///
    /// # Errors
    /// Something that the configuration names cannot be used. Nothing is left running.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, RefreshProcess::Current).await
    }

    /// Starts what `config` describes, with tokens refreshed in `refresh_process`.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub async fn start_with(
        config: Config,
        refresh_process: RefreshProcess,
    ) -> Result<Self, StartError> {
        Self::start_trusting(config, refresh_process, None).await
    }

    /// Starts what `config` describes, and checks upstream's certificates against `trust` instead
    /// of the platform's.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub async fn start_trusting(
        config: Config,
        refresh_process: RefreshProcess,
        trust: Option<TrustRoots>,
    ) -> Result<Self, StartError> {
        let start = GatewayStart {
            refresh_process,
            trust,
            handover: Handover::default(),
            upkeep: UpkeepStart::AtOnce,
        };
        Self::start_from(config, start).await
    }

    /// Starts what `config` describes, as `start` says.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub(crate) async fn start_from(
        config: Config,
        start: GatewayStart,
    ) -> Result<Self, StartError> {
        let (phase, phases) = watch::channel(GatewayPhase::Running);
        let (alive_sender, alive) = mpsc::channel(1);
        let (upkeep_start, upkeep_started) = watch::channel(start.upkeep);
        let inputs = BuildInputs {
            trust: start.trust,
            ledger_lock: start.handover.ledger_lock.map(File::from),
            upkeep: start.upkeep,
        };
        let built = BuiltGateway::build(config, inputs, phases.clone(), alive_sender).await?;
        let listeners = BoundListeners::bind(&built.config, start.handover.sockets).await?;
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
            start.refresh_process.clone(),
            &watcher,
            &phases,
            &upkeep_started,
            &tasks,
        );
        let (commands, received) = mpsc::channel::<SupervisorCommand>(COMMAND_QUEUE);
        let ledger = Arc::clone(&shared.ledger);
        let admin = listeners.admin_address();
        let context = AcceptContext {
            config: &config,
            status: &status,
            commands: &commands,
            phases: &phases,
            tasks: &tasks,
        };
        let accepting = listeners.accept(&context, services, &upkeep, &ledger);
        let services = config.services.clone();
        let parts = SupervisorParts {
            status: Arc::clone(&status),
            shared,
            services: RunningServices::new(accepting.running),
            loader,
            upkeep,
            usage_files: writer.clone(),
            startup: StartupSettings::new(config, &limits),
            limits: Arc::clone(&limits),
            watcher,
        };
        tasks.spawn(Supervisor::new(parts, &commands).run(received, pending));
        Ok(Self {
            listening: accepting.listening,
            admin,
            phase,
            status,
            commands,
            background,
            refresh_process: start.refresh_process,
            alive,
            usage_files: UsageFilesThread { writer, thread },
            ledger,
            limits,
            upkeep_start,
            services,
            sockets: accepting.sockets,
            socket_files: start.handover.file_ownership,
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

    /// Reports a configuration that could not be read, in the same way as a rejected one.
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

    /// Returns the ledger that rows are committed to.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Returns the limits of the start.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns what a process that succeeds this one needs.
    ///
    /// # Errors
    /// This process has too many open files.
    pub(crate) fn handover(&self) -> io::Result<Handover> {
        let clones = self.sockets.iter().map(HandedOverSocket::try_clone);
        Ok(Handover {
            sockets: HandedOverSockets(clones.collect::<io::Result<_>>()?),
            ledger_lock: Some(duplicate(&self.ledger.lock()?)?),
            ..Handover::default()
        })
    }

    /// Begins what belongs to one process only, and was another's until now: refreshes, polls and
    /// usage files. Reads the sessions again that the other has recorded meanwhile.
    pub(crate) async fn begin_upkeep(&self) {
        self.socket_files.take();
        let (ledger, limits) = (Arc::clone(&self.ledger), Arc::clone(&self.limits));
        let services = self.status.services();
        let restored = spawn_blocking(move || restore_sessions(&ledger, &services, &limits)).await;
        if let Err(error) = restored {
            tracing::error!(%error, "restoring sessions panicked");
        }
        self.usage_files.writer.follow(&self.services).done().await;
        self.upkeep_start.send_replace(UpkeepStart::AtOnce);
    }

    /// Leaves everything but the requests on accepted connections to a process that succeeds this
    /// one: accepts no connections, ends refreshes and polls, and writes usage files for the last
    /// time.
    pub(crate) async fn retire(&mut self) {
        self.sockets.clear();
        self.phase.send_replace(GatewayPhase::Retiring);
        self.usage_files.writer.close().await;
        self.ledger.stop_cleaning();
    }

    /// Waits until the requests of a gateway that has retired have ended, at most for
    /// `limits.upgrade_drain_timeout`.
    pub(crate) async fn finish_requests(&mut self) {
        let ended = async { while self.alive.recv().await.is_some() {} };
        if timeout(self.limits.upgrade_drain_timeout, ended)
            .await
            .is_err()
        {
            tracing::warn!("limits.upgrade_drain_timeout exceeded");
        }
    }

    /// Shuts down: accepts no new requests, waits up to `limits.drain_timeout` for those in flight,
    /// then writes and closes usage files and the ledger.
    pub async fn shut_down(self) {
        self.shut_down_or_abort(std::future::pending()).await;
    }

    /// Shuts down, and aborts the requests in flight as soon as `abort` returns. Aborted requests
    /// are recorded, too.
    pub async fn shut_down_or_abort(mut self, abort: impl Future<Output = ()>) {
        let mut abort = pin!(abort);
        // The kernel refuses connections once the last descriptor of a listener is closed.
        self.sockets.clear();
        self.phase.send_replace(GatewayPhase::Draining);
        let drain = self.drain(abort.as_mut()).await;
        self.phase.send_replace(GatewayPhase::Stopping);
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
    /// A child process would complete its refresh alone, but not if this process is the first of a
    /// container, with which all others end.
    async fn await_background(&mut self, drain: DrainResult, abort: impl Future<Output = ()>) {
        let background = &mut self.background;
        let ended = async { while background.recv().await.is_some() {} };
        match (&self.refresh_process, drain) {
            (RefreshProcess::Current, _) => ended.await,
            (RefreshProcess::Child(_), DrainResult::Aborted) => {}
            (RefreshProcess::Child(_), DrainResult::Over) => tokio::select! {
                () = ended => {}
                () = abort => {}
            },
        }
    }
}
