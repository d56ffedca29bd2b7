//! `tollgate run`: from a configuration to a running gateway, until a signal.

mod follow;
mod service_manager;
mod signals;
mod upgrade;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::{env, fs};

use serde_json::json;
use tokio::runtime;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use self::follow::{ConfigurationFile, follow};
use self::service_manager::{notify_ready, notify_stopping, notify_successor, ping_watchdog};
use self::signals::StopSignals;
use self::upgrade::{Predecessor, ReadySuccessor, StartCommand};
use crate::cli::configuration::{in_file, load};
use crate::cli::error::CommandFailure;
use crate::cli::logging;
use crate::cli::output::print;
use crate::config::{Config, LoadedConfig};
use crate::files::{io_reason, path_with_suffix};
use crate::platform::{ProcessSignal, all_signals, hang_up, raise_file_limit, upgrade};
use crate::server::{Gateway, GatewayStart, Handover, RefreshProcess, UpkeepStart, run_refresh};

/// What this process was started with, beside its arguments.
struct InheritedState {
    /// The process that this one succeeds, if it was started for an upgrade.
    predecessor: Option<Predecessor>,
    handover: Handover,
}

pub(in crate::cli) fn run(
    path: Option<&Path>,
    ready_file: Option<&Path>,
) -> Result<(), CommandFailure> {
    let command = StartCommand::of_this_process();
    // Before any other file is opened: the service manager's have fixed numbers.
    let inherited = inherit()
        .map_err(|error| format!("sockets that were handed over: {}", io_reason(&error)))?;
    let runtime = runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {}", io_reason(&error)))?;
    // Before the start, which takes a while: a signal that comes early is not lost and does not end
    // the process.
    let signals = runtime
        .block_on(async { RunSignals::new() })
        .map_err(|error| format!("cannot handle signals: {}", io_reason(&error)))?;
    // Before the file is read: a change from here on must be noticed.
    let file = ConfigurationFile::in_effect(path);
    let LoadedConfig { config, warnings } = load(path)?;
    logging::start(&config.log).map_err(|error| about_file(path, error.to_string()))?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    if let Err(error) = raise_file_limit() {
        tracing::debug!(error = io_reason(&error), "limit on open files not raised");
    }
    runtime.block_on(async {
        let gateway = start(config, inherited.handover, &inherited.predecessor)
            .await
            .map_err(|error| about_file(path, error))?;
        let watchdog = tokio::spawn(ping_watchdog());
        let ready = |gateway: &Gateway| ready_file.map(|path| write_ready_file(path, gateway));
        if let Some(predecessor) = inherited.predecessor {
            predecessor.succeed().await;
            gateway.begin_upkeep().await;
            tracing::info!("upgrade: this process has succeeded the old one");
            // No process would be left if this one ended.
            if let Some(Err(error)) = ready(&gateway) {
                tracing::error!(%error, "no ready file");
            }
        } else {
            ready(&gateway).transpose()?;
        }
        notify_ready();
        serve(gateway, file, &command, signals, watchdog).await
    })
}

fn inherit() -> io::Result<InheritedState> {
    match Predecessor::find()? {
        Some((predecessor, handover)) => Ok(InheritedState {
            predecessor: Some(predecessor),
            handover,
        }),
        None => Ok(InheritedState {
            predecessor: None,
            handover: Handover::from_service_manager()?,
        }),
    }
}

/// The signals that a running gateway handles.
struct RunSignals {
    stop: StopSignals,
    hang_up: ProcessSignal,
    upgrade: ProcessSignal,
}

impl RunSignals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            stop: StopSignals::new()?,
            hang_up: hang_up()?,
            upgrade: upgrade()?,
        })
    }
}

/// Starts the gateway, and returns once it accepts connections. With a predecessor, it does not have
/// all duties yet.
async fn start(
    config: Config,
    handover: Handover,
    predecessor: &Option<Predecessor>,
) -> Result<Gateway, String> {
    let start = GatewayStart {
        refresh_process: RefreshProcess::Child(this_program()),
        trust: None,
        handover,
        upkeep: match predecessor {
            Some(_) => UpkeepStart::Later,
            None => UpkeepStart::AtOnce,
        },
    };
    let gateway = Gateway::start_from(config, start)
        .await
        .map_err(|error| error.to_string())?;
    for listening in gateway.listening() {
        tracing::info!(service = listening.service, address = %listening.address, "listening");
    }
    if let Some(address) = gateway.admin() {
        tracing::info!(%address, "admin API listening");
    }
    Ok(gateway)
}

/// Serves until a signal stops the gateway or another process has succeeded it.
async fn serve(
    gateway: Gateway,
    file: ConfigurationFile<'_>,
    command: &StartCommand,
    mut signals: RunSignals,
    watchdog: JoinHandle<()>,
) -> Result<(), CommandFailure> {
    let successor = tokio::select! {
        name = signals.stop.next() => {
            log_stop(name);
            notify_stopping();
            None
        }
        () = follow(file, &gateway, &mut signals.hang_up) => unreachable!("it never returns"),
        successor = wait_for_successor(&gateway, command, &mut signals.upgrade) => Some(successor),
    };
    match successor {
        None => shut_down(gateway, signals.stop).await,
        Some(successor) => {
            // The service manager expects the pings of the successor from here on.
            watchdog.abort();
            retire(gateway, successor, signals).await
        }
    }
}

/// Starts a successor on each SIGUSR2 until one is ready.
async fn wait_for_successor(
    gateway: &Gateway,
    command: &StartCommand,
    signals: &mut ProcessSignal,
) -> ReadySuccessor {
    loop {
        if signals.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        let limit = gateway.limits().upgrade_ready_timeout;
        let started = match gateway.handover() {
            Ok(handover) => command.start_successor(handover, limit).await,
            Err(error) => Err(error.into()),
        };
        match started {
            Ok(successor) => return successor,
            Err(error) => tracing::error!(%error, "upgrade failed, this process continues"),
        }
    }
}

/// Leaves everything but the requests in flight to `successor`, and waits for those.
async fn retire(
    mut gateway: Gateway,
    successor: ReadySuccessor,
    mut signals: RunSignals,
) -> Result<(), CommandFailure> {
    let pid = successor.id();
    notify_successor(pid);
    gateway.retire().await;
    successor.release().await;
    tracing::info!(
        pid,
        "upgrade: the new process serves, waiting for in-flight requests of this one"
    );
    let ignored = async {
        while signals.upgrade.recv().await.is_some() {
            tracing::warn!(successor = pid, "SIGUSR2 ignored: send it to the successor");
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = gateway.finish_requests() => {}
        name = signals.stop.next() => log_stop(name),
        () = ignored => unreachable!("it never ends"),
    }
    shut_down(gateway, signals.stop).await
}

fn log_stop(signal: &str) {
    tracing::info!(
        signal,
        "shutting down: waiting for in-flight requests (send the signal again to abort them)"
    );
}

async fn shut_down(gateway: Gateway, mut signals: StopSignals) -> Result<(), CommandFailure> {
    let mut is_aborted = false;
    let abort = async {
        let name = signals.next_after_repeats().await;
        is_aborted = true;
        tracing::warn!(signal = name, "aborting in-flight requests");
    };
    gateway.shut_down_or_abort(abort).await;
    tracing::info!("shut down");
    if is_aborted {
        return Err("in-flight requests were aborted by a second signal".into());
    }
    Ok(())
}

fn about_file(path: Option<&Path>, message: String) -> CommandFailure {
    match path {
        Some(path) => in_file(path, &message),
        None => message.into(),
    }
}

/// Returns the path of this program, which works even after the file was replaced by a newer
/// version.
fn this_program() -> PathBuf {
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() {
        running
    } else {
        env::current_exe().unwrap_or(running)
    }
}

/// Does the refresh that standard input describes, and prints its outcome. Signals do not interrupt
/// it.
pub(in crate::cli) fn refresh_credential() -> Result<(), CommandFailure> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {}", io_reason(&error)))?;
    // Received and ignored, from before the request is read.
    let _signals = runtime.block_on(async { all_signals() });
    // An outbound's login may be in it.
    let mut text = Zeroizing::new(String::new());
    io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| format!("standard input: {}", io_reason(&error)))?;
    let request = serde_json::from_str(&text)
        .map_err(|_| "standard input: expected a refresh request of the gateway")?;
    let outcome = runtime.block_on(run_refresh(request));
    print(&serde_json::to_string(&outcome).map_err(|error| error.to_string())?)
}

/// Writes the ready file by rename, so that a reader finds all of it or none.
fn write_ready_file(path: &Path, gateway: &Gateway) -> Result<(), CommandFailure> {
    let services: Vec<_> = gateway
        .listening()
        .iter()
        .map(
            |listening| json!({"tag": listening.service, "address": listening.address.to_string()}),
        )
        .collect();
    let admin = gateway.admin().map(|address| address.to_string());
    let text = json!({"services": services, "admin": admin, "pid": std::process::id()});
    let text = text.to_string();
    let temporary = path_with_suffix(path, ".tmp");
    let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    written
        .map_err(|error| format!("cannot write {}: {}", path.display(), io_reason(&error)).into())
}
