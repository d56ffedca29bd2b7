//! The three forwarders: how each is started and where it listens.
//!
//! Owns the command line and config of each. All have one thread for traffic, the same upstream and
//! the same limit of open files.

use std::{
    env,
    ffi::OsStr,
    fmt, fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    process::{Process, ProcessError},
    ready,
    settings::Settings,
};

mod nginx;
mod tollgate;

pub use tollgate::{OTHER_TOKEN, USER_TOKEN};

/// A program between load and upstream that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Forwarder {
    /// Tollgate's release binary with everything enabled.
    Tollgate,
    /// The bin `bare-proxy` of this crate.
    BareHyper,
    /// The nginx of the distribution.
    Nginx,
}

impl Forwarder {
    /// All forwarders in the order of a round.
    pub const ALL: [Forwarder; 3] = [Forwarder::Tollgate, Forwarder::BareHyper, Forwarder::Nginx];

    /// Returns the short name for reports and files.
    pub fn name(self) -> &'static str {
        match self {
            Forwarder::Tollgate => "tollgate",
            Forwarder::BareHyper => "bare-hyper",
            Forwarder::Nginx => "nginx",
        }
    }
}

impl fmt::Display for Forwarder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// Why a forwarder could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A binary of the workspace is not built.
    #[error("{}: not found; run `cargo build --release -p {package}` first", .path.display())]
    NotBuilt {
        /// Where the program was expected.
        path: PathBuf,
        /// The package that builds the binary.
        package: &'static str,
    },
    /// The forwarder's files could not be prepared.
    #[error("{name}: cannot prepare its files: {cause}")]
    Files {
        /// The name of the forwarder.
        name: &'static str,
        /// The error of the system.
        cause: io::Error,
    },
    /// The process did not become ready.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// A running forwarder, or the running upstream.
#[derive(Debug)]
pub struct Running {
    /// The address that it listens on.
    pub address: SocketAddr,
    /// Its process, which ends when this value is dropped.
    pub process: Process,
    /// The time from its start until it was ready.
    pub ready_after: Duration,
}

/// The files of a run, and what is needed to start a forwarder.
#[derive(Debug)]
pub struct Site {
    folder: PathBuf,
    tollgate: PathBuf,
    tollgate_overrides: serde_json::Value,
    bare_proxy: PathBuf,
    bench_upstream: PathBuf,
    nginx: Option<PathBuf>,
    connections_max: usize,
}

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

    /// Creates a forwarder's folder and removes the ready file of an earlier start.
    fn files_of(&self, name: &'static str) -> Result<PathBuf, StartError> {
        let folder = self.folder.join(name);
        let prepare = || {
            fs::create_dir_all(&folder)?;
            match fs::remove_file(folder.join("ready")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        };
        match prepare() {
            Ok(()) => Ok(folder),
            Err(cause) => Err(StartError::Files { name, cause }),
        }
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

/// Returns a port that is free at the moment, for the server that cannot bind port 0.
fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
