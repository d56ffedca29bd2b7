//! `tollgate run`: from a configuration to a gateway, until a signal.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Message, in_file, load, logging};
use crate::config::{Loaded, plain};
use crate::server::{Gateway, Listening};

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
        let gateway = Gateway::start(config).await.map_err(|error| match config_path {
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
