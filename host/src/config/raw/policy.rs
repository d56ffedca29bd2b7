//! The section `policies`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::form::{RawDuration, RawSize, RequiredText};

/// A policy, and the limits that it runs under.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawPolicy {
    /// The policy's name in this file. The names of the shipped policies are reserved.
    #[serde(default)]
    pub(in crate::config) tag: RequiredText,
    /// What it decides. The component must export the same world.
    pub(in crate::config) kind: PolicyKind,
    /// The component's file, or `builtin:NAME` for a shipped policy.
    #[serde(default)]
    pub(in crate::config) path: RequiredText,
    /// The policy's configuration, checked against the policy's own schema.
    pub(in crate::config) config: Option<Value>,
    /// The time that one call may take. Default: `5ms`. It is checked every few milliseconds, so a
    /// call with less than `4ms` may still take that long.
    pub(in crate::config) timeout: Option<RawDuration>,
    /// The memory that an instance may have, in bytes or as a text such as `16MiB`, and the same
    /// again for what it returns from one call. Default: `16MiB`.
    pub(in crate::config) memory: Option<RawSize>,
    /// What happens to a request if the policy fails; only for a rewriter. Default: `refuse`.
    pub(in crate::config) on_failure: Option<OnFailure>,
    /// Another component that is run with the same arguments. Its results have no effect;
    /// differences are counted and kept.
    pub(in crate::config) shadow: Option<String>,
    /// A file in which each call is recorded, as JSON lines, for `tollgate policy replay` and
    /// `tollgate explain`.
    pub(in crate::config) record: Option<String>,
}

/// What a policy decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PolicyKind {
    /// Which credential is used for a request.
    Balancer,
    /// How header fields are rewritten.
    Rewriter,
    /// What a response costs.
    Pricer,
}

impl PolicyKind {
    /// Returns the name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Balancer => "balancer",
            Self::Rewriter => "rewriter",
            Self::Pricer => "pricer",
        }
    }
}

/// What happens to a request if its rewriter fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The request is rejected with 500.
    #[default]
    Refuse,
    /// The request is sent without the rewriter's edits.
    Skip,
}
