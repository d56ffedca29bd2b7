//! The three forwarders: how each is started and where it listens.
//!
//! Owns the command line and config of each. All have one thread for traffic, the same upstream and
//! the same limit of open files.

use std::{
    env,
    ffi::OsStr,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use crate::{process::Process, ready, settings::Settings};

mod nginx;
mod site;
mod tollgate;

pub use site::{Forwarder, Running, Site, StartError};
pub use tollgate::{OTHER_TOKEN, USER_TOKEN};

impl Site {
    /// Finds the binaries. `folder` is for the files of this run; children inherit `open_files` as
    /// their limit.
    ///
    /// # Errors
    /// Returns [`StartError::NotBuilt`] if a binary other than nginx is missing.
    pub fn survey(settings: &Settings, folder: &Path, open_files: u64) -> Result<Self, StartError> {
        let beside_us = env::current_exe()
            .map_err(|cause| StartError::Files {
                name: "tollgate-bench",
                cause,
            })?
            .parent()
            .map(Path::to_owned)
            .unwrap_or_default();
        Ok(Self {
            folder: folder.to_owned(),
            tollgate: built(settings.tollgate.clone(), "tollgate")?,
            tollgate_overrides: settings.tollgate_overrides.clone(),
            bare_proxy: built(beside_us.join("bare-proxy"), "tollgate-bench")?,
            bench_upstream: built(beside_us.join("bench-upstream"), "tollgate-bench")?,
            nginx: on_path("nginx"),
            connections_max: usize::try_from(open_files)
                .unwrap_or(usize::MAX)
                .min(nginx::CONNECTIONS_MAX),
        })
    }

    /// Returns the forwarders that can be started here, in the order of a round.
    pub fn forwarders(&self) -> Vec<Forwarder> {
        let can_start =
            |forwarder: &Forwarder| *forwarder != Forwarder::Nginx || self.nginx.is_some();
        Forwarder::ALL.into_iter().filter(can_start).collect()
    }

    /// Starts the upstream.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_upstream(&self, settings: &Settings) -> Result<Running, StartError> {
        let mut command = Command::new(&self.bench_upstream);
        command
            .arg("--deltas")
            .arg(settings.streams.deltas.to_string());
        command
            .arg("--burst")
            .arg(settings.streams.burst.to_string());
        command
            .arg("--pace-us")
            .arg(settings.pace.as_micros().to_string());
        self.start_announced("upstream", command).await
    }

    /// Starts `forwarder` in front of `upstream`. An earlier process of the same forwarder must
    /// have ended.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(
        &self,
        forwarder: Forwarder,
        upstream: SocketAddr,
    ) -> Result<Running, StartError> {
        match forwarder {
            Forwarder::Tollgate => tollgate::start(self, upstream).await,
            Forwarder::BareHyper => {
                let mut command = Command::new(&self.bare_proxy);
                command.arg("--upstream").arg(upstream.to_string());
                self.start_announced(forwarder.name(), command).await
            }
            Forwarder::Nginx => nginx::start(self, upstream).await,
        }
    }

    /// Starts Tollgate with its default number of threads and with `change` merged into the usual
    /// configuration.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_alone(
        &self,
        upstream: SocketAddr,
        change: &dyn Fn(&mut serde_json::Value),
    ) -> Result<Running, StartError> {
        tollgate::start_changed(self, upstream, None, change).await
    }

    /// Returns the path of Tollgate's log.
    pub fn tollgate_log(&self) -> PathBuf {
        tollgate::log(&self.folder)
    }

    /// Returns the path of Tollgate's admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        tollgate::admin_socket(&self.folder)
    }

    /// Starts a binary of this crate, which binds a free port and announces it.
    async fn start_announced(
        &self,
        name: &'static str,
        mut command: Command,
    ) -> Result<Running, StartError> {
        let files = self.files_of(name)?;
        let ready_file = files.join("ready");
        command.arg("--ready-file").arg(&ready_file);
        let begun = Instant::now();
        let mut process = Process::start(name, command, &files)?;
        let address = process.ready(|| ready::announced(&ready_file)).await?;
        Ok(Running {
            address,
            process,
            ready_after: begun.elapsed(),
        })
    }
}

fn built(path: PathBuf, package: &'static str) -> Result<PathBuf, StartError> {
    match path.is_file() {
        true => Ok(path),
        false => Err(StartError::NotBuilt { path, package }),
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    // On Debian, nginx is in a folder that only root has on its PATH.
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(OsStr::new(name)))
        .find(|file| file.is_file())
}
