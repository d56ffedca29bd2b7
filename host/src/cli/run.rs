//! `tollgate run`: from a configuration to a gateway, until a signal.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs};

use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Message, in_file, load, logging, print};
use crate::config::Loaded;
use crate::files::plain;
use crate::server::{Gateway, Listening, RefreshIn, run_errand};

pub(super) fn run(config_path: Option<&Path>, ready_file: Option<&Path>) -> Result<(), Message> {
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
        let mut signals = Signals::new().map_err(|error| format!("cannot watch for signals: {}", plain(&error)))?;
        let gateway =
            Gateway::start_with(config, RefreshIn::Child(this_program())).await.map_err(|error| match config_path {
                Some(path) => in_file(path, &error.to_string()),
                None => error.to_string(),
            })?;
        for listening in gateway.listening() {
            tracing::info!(service = listening.service, address = %listening.address, "listening");
        }
        if let Some(path) = ready_file {
            write_ready_file(path, gateway.listening())?;
        }
        let name = signals.next().await;
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
    if running.exists() { running } else { env::current_exe().unwrap_or(running) }
}

/// Does the refresh that standard input describes, to its end: signals do not stop it. Its outcome goes to standard
/// output.
pub(super) fn refresh_credential() -> Result<(), Message> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).map_err(|error| format!("standard input: {}", plain(&error)))?;
    let errand = serde_json::from_str(&text).map_err(|_| "standard input: expected an errand of the gateway's")?;
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
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
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

/// Whoever waits for the file finds all of it or none.
fn write_ready_file(path: &Path, listening: &[Listening]) -> Result<(), Message> {
    let services: Vec<_> = listening
        .iter()
        .map(|listening| json!({"tag": listening.service, "address": listening.address.to_string()}))
        .collect();
    let text = json!({"services": services, "admin": null}).to_string();
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| format!("cannot write {}: {}", path.display(), plain(&error)))
}
