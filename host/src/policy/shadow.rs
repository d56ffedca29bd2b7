//! Loads the component that shadows a policy.

use std::sync::Arc;

use super::call::comparison::PolicyShadow;
use super::engine::PolicyEngine;
use super::generation::load_error::{LoadStage, PolicyLoadError};
use super::generation::source::ComponentBytes;
use super::kind::load_standalone_from;
use crate::config::{PolicyConfig, PolicySource};

/// Returns the configuration of the shadow of `policy`: another component, run like the policy.
/// `None` if the policy has no shadow.
pub(crate) fn shadow_config(policy: &PolicyConfig) -> Option<PolicyConfig> {
    let path = policy.shadow.as_ref()?;
    Some(PolicyConfig {
        tag: format!("{} (shadow)", policy.tag),
        source: PolicySource::File(path.clone()),
        shadow: None,
        record: None,
        ..policy.clone()
    })
}

/// Loads a shadow from its own configuration and its component, and starts it.
///
/// # Errors
/// The component or its configuration was rejected.
pub(crate) fn load_shadow(
    engine: &PolicyEngine,
    shadow: &PolicyConfig,
    source: &ComponentBytes,
) -> Result<Arc<PolicyShadow>, PolicyLoadError> {
    let generation = load_standalone_from(engine, shadow, source)?;
    let identity = generation.identity().clone();
    PolicyShadow::start(identity, move |call| generation.repeat(call))
        .map_err(|error| PolicyLoadError::rejected(&shadow.tag, LoadStage::Start, error))
}
