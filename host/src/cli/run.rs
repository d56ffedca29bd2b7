//! `tollgate run`: from a configuration to a gateway, until a signal.

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

use super::{Message, in_file, load, logging, print};
use crate::config::Loaded;
use crate::files::{plain, read_regular};
use crate::server::{Gateway, RefreshIn, run_errand};
use crate::values::limits::CONFIG_FILE_BYTES;
use crate::watch::Watch;

pub(super) fn run(config_path: Option<&Path>, ready_file: Option<&Path>) -> Result<(), Message> {
    // Before it is read: a change from then on is one.
    let known = config_path.and_then(digest);
    let Loaded { config, warnings } = load(config_path)?;
    logging::start(&config.log).map_err(|error| match config_path {
        Some(path) => in_file(path, &error),
        None => error,
    })?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    raise_file_limit();
    let runtime = runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {}", plain(&error)))?;
    runtime.block_on(async {
        // Before anything starts: a signal that comes early must not be lost.
        let failed = |error: io::Error| format!("cannot watch for signals: {}", plain(&error));
        let mut signals = Signals::new().map_err(failed)?;
        let mut hang_ups = signal(SignalKind::hangup()).map_err(failed)?;
        let gateway =
            Gateway::start_with(config, RefreshIn::Child(this_program())).await.map_err(|error| match config_path {
                Some(path) => in_file(path, &error.to_string()),
                None => error.to_string(),
            })?;
        for listening in gateway.listening() {
            tracing::info!(service = listening.service, address = %listening.address, "listening");
        }
        if let Some(address) = gateway.admin() {
            tracing::info!(%address, "listening for operators");
        }
        if let Some(path) = ready_file {
            write_ready_file(path, &gateway)?;
        }
        let name = tokio::select! {
            name = signals.next() => name,
            () = follow(config_path, known, &gateway, &mut hang_ups) => unreachable!("it is followed for ever"),
        };
        tracing::info!(signal = name, "stopping: requests under way may end; once more to cut them");
        let mut was_cut = false;
        let cut = async {
            let name = signals.again().await;
            was_cut = true;
            tracing::warn!(signal = name, "requests under way are cut");
        };
        gateway.stop_or_cut(cut).await;
        tracing::info!("stopped");
        if was_cut { Err("stopped by a second signal before all requests had ended".to_owned()) } else { Ok(()) }
    })
}

/// This program, even where its file was replaced by a newer one since.
fn this_program() -> PathBuf {
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() {
        running
    } else {
        env::current_exe().unwrap_or(running)
    }
}

/// Does the refresh that standard input describes, to its end: signals do not stop it. Its outcome goes to standard
/// output.
pub(super) fn refresh_credential() -> Result<(), Message> {
    let mut text = String::new();
    io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| format!("standard input: {}", plain(&error)))?;
    let errand = serde_json::from_str(&text)
        .map_err(|_| "standard input: expected an errand of the gateway's")?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {}", plain(&error)))?;
    let outcome = runtime.block_on(async {
        // Taken, and not acted upon.
        let _signals = Signals::new();
        run_errand(errand).await
    });
    print(&serde_json::to_string(&outcome).map_err(|error| error.to_string())?)
}

/// As many files and sockets as the system allows: the first limit is often far below.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum || limit.maximum.is_none() {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::debug!(%error, "the limit on open files stays as it is");
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Another signal, after the first.
    async fn again(&mut self) -> &'static str {
        let first = Instant::now();
        loop {
            let name = self.next().await;
            if first.elapsed() >= SAME_SIGNAL {
                return name;
            }
        }
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// A signal that comes so soon after the first is the same one: `timeout` and shells send theirs to a process and to its
/// group.
const SAME_SIGNAL: Duration = Duration::from_millis(50);

/// A file that changed is given so long to be whole, and looked at so often.
const SETTLE: Duration = Duration::from_millis(150);
const SETTLE_LOOKS: u32 = 4;

/// Takes up the configuration in the file at `path` whenever it changes, and when somebody hangs up.
async fn follow(
    path: Option<&Path>,
    mut known: Option<[u8; 32]>,
    gateway: &Gateway,
    hang_ups: &mut Signal,
) {
    let changed = Arc::new(Notify::new());
    let watch = Watch::start();
    if let Some(path) = path {
        watch.file(path, &changed);
    }
    loop {
        let asked = tokio::select! {
            hung_up = hang_ups.recv() => match hung_up {
                Some(()) => true,
                None => std::future::pending().await,
            },
            () = changed.notified() => false,
        };
        let Some(path) = path else {
            tracing::info!("there is no configuration file to take up");
            continue;
        };
        let looked_at = path.to_owned();
        let found = spawn_blocking(move || digest(&looked_at))
            .await
            .ok()
            .flatten();
        if !asked && found == known {
            continue;
        }
        // What is written from here on is looked at again.
        known = found;
        match settled(path).await {
            Ok(Loaded { config, warnings }) => {
                for warning in &warnings {
                    tracing::warn!("{warning}");
                }
                // The gateway tells what came of it.
                let _ = gateway.configure(config).await;
            }
            Err(error) => gateway.refuse_configuration(&error),
        }
    }
}

/// Reads the configuration. What is wrong with it is told only where it stays so: somebody may be writing it.
async fn settled(path: &Path) -> Result<Loaded, Message> {
    let mut looks = 1;
    loop {
        let reading = path.to_owned();
        let read = spawn_blocking(move || load(Some(&reading))).await;
        match read.unwrap_or_else(|error| Err(error.to_string())) {
            Err(_) if looks < SETTLE_LOOKS => {
                looks += 1;
                sleep(SETTLE).await;
            }
            read => return read,
        }
    }
}

fn digest(path: &Path) -> Option<[u8; 32]> {
    read_regular(path, CONFIG_FILE_BYTES)
        .ok()
        .map(|bytes| Sha256::digest(bytes).into())
}

/// Whoever waits for the file finds all of it or none.
fn write_ready_file(path: &Path, gateway: &Gateway) -> Result<(), Message> {
    let services: Vec<_> = gateway
        .listening()
        .iter()
        .map(
            |listening| json!({"tag": listening.service, "address": listening.address.to_string()}),
        )
        .collect();
    let admin = gateway.admin().map(|address| address.to_string());
    let text = json!({"services": services, "admin": admin}).to_string();
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| format!("cannot write {}: {}", path.display(), plain(&error)))
}
