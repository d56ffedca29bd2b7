//! What operators and watched files ask of the supervisor, and its answers.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::config::Config;
use crate::policy::PolicyLoadError;
use crate::server::error::StartError;

/// Commands that may wait.
pub(crate) const COMMAND_QUEUE: usize = 64;

pub(crate) type CommandSender = mpsc::Sender<SupervisorCommand>;
pub(crate) type PolicyReply = oneshot::Sender<Result<PolicyCommandDone, CommandError>>;
pub(crate) type ConfigureReply = oneshot::Sender<Result<AppliedConfiguration, CommandError>>;

/// A change of the running gateway.
pub(crate) enum SupervisorCommand {
    /// Load a policy's component again, changed or not.
    ReloadPolicy { tag: String, reply: PolicyReply },
    /// Return to a policy's generation before the current one.
    RollBackPolicy { tag: String, reply: PolicyReply },
    /// A policy's file may have changed.
    PolicyFileChanged { tag: String },
    /// The file of a policy's shadow may have changed.
    ShadowFileChanged { tag: String },
    Configure {
        config: Box<Config>,
        reply: ConfigureReply,
    },
}

/// What a policy command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PolicyCommandDone {
    Reloaded {
        generation: u64,
        name: String,
        version: String,
        took_ms: u64,
    },
    /// The file holds the component that serves already.
    Unchanged,
    RolledBack {
        generation: u64,
    },
}

impl fmt::Display for PolicyCommandDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reloaded {
                generation,
                name,
                version,
                took_ms,
            } => write!(
                f,
                "reloaded: generation {generation} ({name} {version}) after {took_ms} ms"
            ),
            Self::Unchanged => f.write_str("unchanged: this component is already in use"),
            Self::RolledBack { generation } => write!(f, "rolled back to generation {generation}"),
        }
    }
}

/// A configuration that the running gateway has applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppliedConfiguration {
    /// The parts of it that take effect only after a restart.
    pub needs_restart: Vec<String>,
}

impl fmt::Display for AppliedConfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("configuration applied")?;
        if !self.needs_restart.is_empty() {
            write!(f, "; restart to change {}", self.needs_restart.join(", "))?;
        }
        Ok(())
    }
}

/// A command that was not carried out. Everything is as it was before.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommandError {
    /// No policy has the tag that the command names.
    #[error("policy {0:?}: expected the tag of a policy; `tollgate policy list` shows them")]
    UnknownPolicy(String),
    /// The policy has had one generation.
    #[error("there is no earlier generation to roll back to")]
    NoPreviousGeneration,
    /// The component or its configuration cannot be used.
    #[error(transparent)]
    NotLoaded(Arc<PolicyLoadError>),
    /// A newer configuration replaced the policy's while its component was loading.
    #[error("the policy's configuration changed while its component was loading")]
    ConfigurationChanged,
    /// The configuration cannot be used.
    #[error(transparent)]
    ConfigurationRejected(Arc<StartError>),
    /// Too many configurations wait to be applied.
    #[error("too many configuration changes are waiting: try again later")]
    TooManyConfigurations,
    /// The gateway is shutting down.
    #[error("the gateway is shutting down")]
    ShuttingDown,
}

/// Sends `result` to all of `replies`.
pub(crate) fn answer(replies: Vec<PolicyReply>, result: &Result<PolicyCommandDone, CommandError>) {
    for reply in replies {
        // The operator may have gone.
        let _ = reply.send(result.clone());
    }
}
