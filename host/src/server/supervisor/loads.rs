//! Loads that run beside the supervisor, and their results.

use std::sync::Arc;
use std::time::Instant;

use super::commands::{ConfigureReply, PolicyReply};
use super::configure::ConfigurationChange;
use super::settled::LoadedComponent;
use crate::config::PolicyConfig;
use crate::policy::{PolicyGeneration, PolicyLoadError, PolicyShadow};
use crate::server::error::StartError;

/// A shadow's load in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShadowLoad {
    Running,
    /// The file changed again meanwhile.
    Outdated,
}

/// A load that ran beside the supervisor, of a policy, a shadow or what a configuration names.
pub(crate) enum FinishedTask {
    Policy {
        /// As it was when the load began.
        policy: PolicyConfig,
        started: Instant,
        loaded: Result<LoadedComponent<PolicyGeneration>, PolicyLoadError>,
        replies: Vec<PolicyReply>,
    },
    Shadow {
        policy: PolicyConfig,
        loaded: Result<LoadedComponent<Arc<PolicyShadow>>, PolicyLoadError>,
    },
    Configuration {
        change: Result<ConfigurationChange, StartError>,
        needs_restart: Vec<String>,
        started: Instant,
        reply: ConfigureReply,
    },
}
