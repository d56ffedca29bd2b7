//! The gateway: everything that a configuration names, put together, started and stopped.
//!
//! Owns the wiring and the order of start and stop; refuses to know what happens to a request. Invariant: on a stop,
//! every request under way ends or is recorded as cut before the ledger closes.

mod admin;
mod build;
mod connection;
mod keep;
mod poll;
mod refresh;
mod views;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use crate::config::{Config, ConfigError};
use crate::ledger::{Ledger, LedgerError};
use crate::listener::Listener;
use crate::pipeline::Service;
use crate::policy::EngineError;
use crate::tls::Tls;
use crate::values::clock::Millis;
use crate::values::limits::Limits;
use crate::values::phase::Phase;
use crate::watch::Watch;

pub use admin::{CredentialStatus, SOCKET, ServiceStatus, Status};
pub use build::check;
pub use refresh::{COMMAND as REFRESH_COMMAND, Errand, RefreshIn, run_errand};

use admin::Admin;
use build::Door;
use connection::Accepting;
use keep::Keeping;
use views::Views;

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
    phase: watch::Sender<Phase>,
    /// What goes on in the background.
    tasks: JoinSet<()>,
    refresh_in: RefreshIn,
    /// Ends when nothing holds a service any more: no connection, and no response whose row is not handed over.
    alive: mpsc::Receiver<()>,
    views: Option<(std::sync::mpsc::Sender<()>, JoinHandle<()>)>,
    ledger: Arc<Ledger>,
    limits: Arc<Limits>,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("listening", &self.listening).finish_non_exhaustive()
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
        let data_dir = config.data_dir.clone();
        let (alive_sender, alive) = mpsc::channel(1);
        let (phase, phases) = watch::channel(Phase::Serving);
        // Compiling policies and reading files takes a while: not on a worker.
        let built = spawn_blocking({
            let (limits, phases) = (Arc::clone(&limits), phases.clone());
            move || -> Result<_, StartError> {
                let prepared = build::prepare(config)?;
                let ledger = Arc::new(Ledger::open(&data_dir, &limits)?);
                let trust = prepared.trust.clone();
                let services = prepared.services(&ledger, &limits, &phases, &alive_sender)?;
                restore(&ledger, &services, &limits);
                let views = Views::open(&ledger, services.iter().map(|(service, _)| service))?;
                Ok((services, ledger, views, trust))
            }
        });
        let (services, ledger, views, trust) = match built.await {
            Ok(built) => built?,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        let room = Arc::new(Semaphore::new(connections(&limits)));
        let mut listeners = Vec::new();
        for (service, door) in services {
            let listener =
                Listener::bind(door.listen, Arc::clone(&room), limits.client_stall_timeout).await.map_err(|error| {
                    StartError::Listen {
                        service: service.tag().to_owned(),
                        address: door.listen,
                        reason: crate::files::plain(&error),
                    }
                })?;
            listeners.push((listener, Arc::new(service), door.tls));
        }
        let views = views.start().map_err(StartError::Thread)?;
        let mut tasks = JoinSet::new();
        let keeping = Keeping {
            limits: Arc::clone(&limits),
            trust,
            refresh_in: refresh_in.clone(),
            watch: Watch::start(),
            phases: phases.clone(),
            turn: Arc::new(Semaphore::new(1)),
            looks: Arc::new(Semaphore::new(keep::LOOKS)),
        };
        listeners.iter().for_each(|(_, service, _)| keeping.keep(service, &mut tasks));
        let admin = Admin::new(listeners.iter().map(|(_, service, _)| service));
        admin.listen(ledger.path().with_file_name(SOCKET), &phases, &mut tasks);
        let listening = serve(listeners, &phases, &limits);
        Ok(Self { listening, phase, tasks, refresh_in, alive, views, ledger, limits })
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
        let tasks = &mut self.tasks;
        let ended = async { while tasks.join_next().await.is_some() {} };
        match self.refresh_in {
            RefreshIn::Child(_) if was_cut => drop(ended),
            RefreshIn::Child(_) => tokio::select! {
                () = ended => {}
                () = cut => {}
            },
            RefreshIn::ThisProcess => ended.await,
        }
        self.tasks.shutdown().await;
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

/// Accepts on every listener, each in a task of its own.
fn serve(
    listeners: Vec<(Listener, Arc<Service>, Option<Tls>)>,
    phases: &watch::Receiver<Phase>,
    limits: &Arc<Limits>,
) -> Vec<Listening> {
    let mut listening = Vec::new();
    for (listener, service, tls) in listeners {
        listening.push(Listening { service: service.tag().to_owned(), address: listener.address() });
        let accepting = Accepting { service, tls, limits: Arc::clone(limits), phases: phases.clone() };
        tokio::spawn(connection::accept(listener, accepting));
    }
    listening
}

/// Sessions live where they lived before the restart.
fn restore(ledger: &Ledger, services: &[(Service, Door)], limits: &Limits) {
    let read = || -> Result<_, String> {
        let reader = ledger.reader().map_err(|error| error.to_string())?;
        let begin = Millis::now().before(limits.session_lifetime);
        let sessions = reader.sessions(limits.sessions).map_err(|error| error.to_string())?;
        let makers = reader.makers(begin, limits.sessions).map_err(|error| error.to_string())?;
        Ok((sessions, makers))
    };
    match read() {
        Ok((sessions, makers)) => services.iter().for_each(|(service, _)| service.restore(&sessions, &makers)),
        Err(error) => tracing::warn!(error, "sessions of before are not known: they begin anew"),
    }
}

fn connections(limits: &Limits) -> usize {
    usize::try_from(limits.connections).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)
}
