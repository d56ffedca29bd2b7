//! `tollgate run`: from a configuration to a running gateway, until a signal.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs};

use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::cli::configuration::{in_file, load};
use crate::cli::error::CommandFailure;
use crate::cli::logging;
use crate::cli::output::print;
use crate::config::{Config, LoadedConfig};
use crate::files::{FileSettling, io_reason, path_with_suffix, read_regular};
use crate::server::{Gateway, RefreshProcess, run_refresh};
use crate::values::limits::CONFIG_FILE_BYTES;
use crate::watch::FileWatcher;

type ConfigDigest = [u8; 32];

pub(in crate::cli) fn run(
    path: Option<&Path>,
    ready_file: Option<&Path>,
) -> Result<(), CommandFailure> {
    // Before the file is read: a change from here on must be noticed.
    let digest = path.and_then(digest);
    let LoadedConfig { config, warnings } = load(path)?;
    logging::start(&config.log).map_err(|error| about_file(path, error.to_string()))?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    raise_file_limit();
    let runtime = runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {}", io_reason(&error)))?;
    runtime.block_on(run_gateway(config, path, digest, ready_file))
}

async fn run_gateway(
    config: Config,
    path: Option<&Path>,
    digest: Option<ConfigDigest>,
    ready_file: Option<&Path>,
) -> Result<(), CommandFailure> {
    // Before anything starts: a signal that comes early must not be lost.
    let failed = |error: io::Error| format!("cannot handle signals: {}", io_reason(&error));
    let mut signals = StopSignals::new().map_err(failed)?;
    let mut hang_ups = signal(SignalKind::hangup()).map_err(failed)?;
    let refresh_process = RefreshProcess::Child(this_program());
    let gateway = Gateway::start_with(config, refresh_process)
        .await
        .map_err(|error| about_file(path, error.to_string()))?;
    for listening in gateway.listening() {
        tracing::info!(service = listening.service, address = %listening.address, "listening");
    }
    if let Some(address) = gateway.admin() {
        tracing::info!(%address, "admin API listening");
    }
    if let Some(path) = ready_file {
        write_ready_file(path, &gateway)?;
    }
    let name = tokio::select! {
        name = signals.next() => name,
        () = follow(path, digest, &gateway, &mut hang_ups) => unreachable!("it never returns"),
    };
    tracing::info!(
        signal = name,
        "shutting down: waiting for in-flight requests (send the signal again to abort them)"
    );
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
    let mut text = String::new();
    io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| format!("standard input: {}", io_reason(&error)))?;
    let request = serde_json::from_str(&text)
        .map_err(|_| "standard input: expected a refresh request of the gateway")?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {}", io_reason(&error)))?;
    let outcome = runtime.block_on(async {
        // Received and ignored.
        let _signals = StopSignals::new();
        run_refresh(request).await
    });
    print(&serde_json::to_string(&outcome).map_err(|error| error.to_string())?)
}

/// Raises the limit on open files to what the system allows. The default is often far below.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum || limit.maximum.is_none() {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::debug!(%error, "limit on open files not raised");
        }
    }
}

struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

/// Signals this soon after the first count as the same one: `timeout` and shells signal a process
/// and its group.
const REPEATED_SIGNAL: Duration = Duration::from_millis(50);

impl StopSignals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Waits for a signal that does not repeat the last one.
    async fn next_after_repeats(&mut self) -> &'static str {
        let last = Instant::now();
        loop {
            let name = self.next().await;
            if last.elapsed() >= REPEATED_SIGNAL {
                return name;
            }
        }
    }
}

/// Applies the configuration in the file at `path` whenever it changes, and on SIGHUP. `digest` is
/// that of the file in effect.
async fn follow(
    path: Option<&Path>,
    mut digest_in_effect: Option<ConfigDigest>,
    gateway: &Gateway,
    hang_ups: &mut Signal,
) {
    let changed = Arc::new(Notify::new());
    let watcher = FileWatcher::start();
    if let Some(path) = path {
        watcher.watch(path, &changed);
    }
    loop {
        let is_forced = tokio::select! {
            hang_up = hang_ups.recv() => match hang_up {
                Some(()) => true,
                None => std::future::pending().await,
            },
            () = changed.notified() => false,
        };
        let Some(path) = path else {
            tracing::info!("SIGHUP ignored: the gateway runs without a configuration file");
            continue;
        };
        let found = digest_off_thread(path).await;
        if !is_forced && found == digest_in_effect {
            continue;
        }
        // Before it is read: a change from here on is noticed.
        digest_in_effect = found;
        match load_settled(path).await {
            Ok(LoadedConfig { config, warnings }) => {
                for warning in &warnings {
                    tracing::warn!("{warning}");
                }
                // The supervisor logs the outcome.
                let _ = gateway.configure(config).await;
            }
            Err(error) => gateway.reject_configuration(&error.to_string()),
        }
    }
}

/// Reads the configuration, again and again while it has problems and may be half written.
async fn load_settled(path: &Path) -> Result<LoadedConfig, CommandFailure> {
    let mut settling = FileSettling::new();
    loop {
        let digest = digest_off_thread(path).await;
        let reading = path.to_owned();
        let loaded = spawn_blocking(move || load(Some(&reading))).await;
        let error = match loaded.unwrap_or_else(|error| Err(error.to_string().into())) {
            Ok(loaded) => return Ok(loaded),
            Err(error) => error,
        };
        match settling.pause_after(digest) {
            Some(pause) => sleep(pause).await,
            None => return Err(error),
        }
    }
}

async fn digest_off_thread(path: &Path) -> Option<ConfigDigest> {
    let path = path.to_owned();
    spawn_blocking(move || digest(&path)).await.ok().flatten()
}

fn digest(path: &Path) -> Option<ConfigDigest> {
    let bytes = read_regular(path, CONFIG_FILE_BYTES).ok()?;
    Some(Sha256::digest(bytes).into())
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
    let text = json!({"services": services, "admin": admin}).to_string();
    let temporary = path_with_suffix(path, ".tmp");
    let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    written
        .map_err(|error| format!("cannot write {}: {}", path.display(), io_reason(&error)).into())
}
