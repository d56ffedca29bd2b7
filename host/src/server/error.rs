//! Why a gateway does not start, or rejects a changed configuration.

use crate::config::{ConfigError, ConfigProblem, ListenAddress};
use crate::ledger::LedgerError;
use crate::policy::EngineError;

/// The gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration names something that cannot be used.
    #[error("{0}")]
    Config(ConfigError),
    /// The ledger cannot be opened.
    #[error("ledger: {0}")]
    Ledger(#[from] LedgerError),
    /// The policy engine cannot be started.
    #[error("{0}")]
    Engine(#[from] EngineError),
    /// A usage file cannot be read, or the ledger cannot say what it holds.
    #[error("usage file {path}: {reason}")]
    UsageFile {
        /// The path of the usage file.
        path: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// An address cannot be bound.
    #[error("service {service:?}: cannot listen on {address}: {reason}")]
    Listen {
        /// The tag of the service, or `admin`.
        service: String,
        /// The address of the configuration.
        address: ListenAddress,
        /// Why it cannot be bound.
        reason: String,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

impl StartError {
    pub(crate) fn of_problems(problems: Vec<ConfigProblem>) -> Self {
        Self::Config(ConfigError {
            problems,
            warnings: Vec::new(),
            rest: None,
        })
    }
}

/// Fails with all of `problems` if there are any.
pub(crate) fn reject_problems(problems: Vec<ConfigProblem>) -> Result<(), StartError> {
    if problems.is_empty() {
        Ok(())
    } else {
        Err(StartError::of_problems(problems))
    }
}
