//! The configuration on a running gateway: it is read again when its file changes, and on SIGHUP.

use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::service_manager::{notify_ready, notify_reloading};
use crate::cli::configuration::load;
use crate::cli::error::CommandFailure;
use crate::config::LoadedConfig;
use crate::files::{FileSettling, read_regular};
use crate::platform::ProcessSignal;
use crate::server::Gateway;
use crate::values::limits::CONFIG_FILE_BYTES;
use crate::watch::FileWatcher;

type ConfigDigest = [u8; 32];

/// The file of the configuration, if there is one.
pub(super) struct ConfigurationFile<'a> {
    path: Option<&'a Path>,
    /// The digest of the file in effect.
    digest: Option<ConfigDigest>,
}

impl<'a> ConfigurationFile<'a> {
    /// Remembers the file's content as the one in effect. A change from here on is noticed.
    pub(super) fn in_effect(path: Option<&'a Path>) -> Self {
        Self {
            path,
            digest: path.and_then(digest),
        }
    }
}

/// Applies the configuration in `file` whenever it changes, and on SIGHUP.
pub(super) async fn follow(
    file: ConfigurationFile<'_>,
    gateway: &Gateway,
    hang_ups: &mut ProcessSignal,
) {
    let ConfigurationFile {
        path,
        digest: mut digest_in_effect,
    } = file;
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
        notify_reloading();
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
        notify_ready();
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
