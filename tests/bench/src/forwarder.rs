//! The three forwarders: which they are, how each is started, where it listens.
//!
//! Knows each one's command line and config. All get one thread for traffic, the same upstream and the same
//! limit of open files.

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

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Forwarder {
    /// The release binary, with everything on.
    Tollgate,
    /// The bin `bare-proxy` of this crate.
    BareHyper,
    /// The distribution's nginx.
    Nginx,
}

impl Forwarder {
    /// In the order of a round.
    pub const ALL: [Forwarder; 3] = [Forwarder::Tollgate, Forwarder::BareHyper, Forwarder::Nginx];

    /// The short name, of reports and of files.
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
        /// Where it was looked for.
        path: PathBuf,
        /// The package that makes it.
        package: &'static str,
    },
    /// Its files could not be prepared.
    #[error("{name}: cannot prepare its files: {cause}")]
    Files {
        /// Whose files.
        name: &'static str,
        /// The system's reason.
        cause: io::Error,
    },
    /// Its process did not come up.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// A forwarder (or the upstream) that serves.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its process; ends with this value.
    pub process: Process,
    /// From its start to its first sign that it serves.
    pub ready_after: Duration,
}

/// Where everything of a run lies, and what it takes to start a forwarder.
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
    /// Looks for the binaries. `folder` is for files of this run; `open_files` is the limit children inherit.
    ///
    /// # Errors
    /// [`StartError::NotBuilt`] for any but nginx, which may be missing.
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

    /// Those that can be started here, in the order of a round.
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

    /// Starts `forwarder` before `upstream`. The one started before under that name must have ended.
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

    /// Starts Tollgate with its own number of threads, and with a configuration that `change` makes of the usual one.
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

    /// Tollgate's log.
    pub fn tollgate_log(&self) -> PathBuf {
        tollgate::log(&self.folder)
    }

    /// Where Tollgate is asked of itself.
    pub fn admin_socket(&self) -> PathBuf {
        tollgate::admin_socket(&self.folder)
    }

    /// Starts a bin of this crate, which takes a free port and announces it.
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

    /// A forwarder's own folder, without the ready file of the start before.
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
    // Debian keeps nginx in a folder that only root has on its PATH.
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(OsStr::new(name)))
        .find(|file| file.is_file())
}

/// A port that was free just now, for the one server that cannot take port 0.
fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
