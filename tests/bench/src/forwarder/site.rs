//! What the forwarders have in common: their names, the files of a run, and what a run needs of
//! a running forwarder.
//!
//! Knows nothing of their command lines and configurations.

use std::{
    fmt, fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    time::Duration,
};

use crate::process::{Process, ProcessError};

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
    pub(super) folder: PathBuf,
    pub(super) tollgate: PathBuf,
    pub(super) tollgate_overrides: serde_json::Value,
    pub(super) bare_proxy: PathBuf,
    pub(super) bench_upstream: PathBuf,
    pub(super) nginx: Option<PathBuf>,
    pub(super) connections_max: usize,
}

impl Site {
    /// Creates a forwarder's folder and removes the ready file of an earlier start.
    pub(super) fn files_of(&self, name: &'static str) -> Result<PathBuf, StartError> {
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

/// Returns a port that is free at the moment, for the server that cannot bind port 0.
pub(super) fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
