//! Errors of loading a policy: the stage that rejected the component, and why.

use std::fmt;

use serde::Serialize;

use crate::config::{ConfigProblem, PolicyConfig};

/// A stage of loading a policy, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoadStage {
    /// Read the component and compute its digest.
    Read,
    /// Check its imports and exports, without compiling it.
    Inspect,
    Compile,
    /// Connect its imports with what the gateway provides.
    Link,
    Instantiate,
    /// Ask for its manifest and check it.
    Describe,
    /// Check the policy's configuration and hand it over.
    Configure,
    /// Hand over what does not change from call to call.
    Prepare,
    /// Call it a few times under its limits.
    SelfTest,
    /// Start what runs beside the policy: a recorder or a shadow.
    Start,
}

impl LoadStage {
    fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Inspect => "inspect",
            Self::Compile => "compile",
            Self::Link => "link",
            Self::Instantiate => "instantiate",
            Self::Describe => "describe",
            Self::Configure => "configure",
            Self::Prepare => "prepare",
            Self::SelfTest => "self-test",
            Self::Start => "start",
        }
    }

    /// Returns the stage as operators see it.
    pub(crate) fn phase(self) -> LoadPhase {
        match self {
            Self::Read | Self::Inspect => LoadPhase::Reading,
            Self::Compile => LoadPhase::Compiling,
            Self::Link
            | Self::Instantiate
            | Self::Describe
            | Self::Configure
            | Self::Prepare
            | Self::Start => LoadPhase::Configuring,
            Self::SelfTest => LoadPhase::Trying,
        }
    }
}

/// The stages of a load as status and logs name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LoadPhase {
    Reading,
    Compiling,
    Configuring,
    /// The self-test calls the new instance.
    Trying,
}

impl LoadPhase {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Reading => "reading",
            Self::Compiling => "compiling",
            Self::Configuring => "configuring",
            Self::Trying => "trying",
        }
    }
}

impl fmt::Display for LoadStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A policy that cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[error("policy {tag:?}: {failure}")]
pub struct PolicyLoadError {
    tag: String,
    failure: LoadFailure,
}

#[derive(Debug)]
enum LoadFailure {
    /// A stage rejected the component.
    Rejected { stage: LoadStage, reason: String },
    /// The component's schema or the component itself rejected the policy's configuration, for
    /// these problems at paths below the policy's `config`.
    Config(Vec<ConfigProblem>),
    /// The policy's memory limit is above that of the engine's guests.
    Memory { most: usize, found: usize },
    /// Loading the policy panicked: a bug of the gateway.
    Panicked,
}

impl PolicyLoadError {
    pub(crate) fn rejected(tag: &str, stage: LoadStage, reason: impl fmt::Display) -> Self {
        let reason = reason.to_string();
        Self::new(tag, LoadFailure::Rejected { stage, reason })
    }

    /// Creates the error of a configuration with `problems`, at paths below the policy's `config`.
    pub(super) fn config(tag: &str, problems: Vec<ConfigProblem>) -> Self {
        Self::new(tag, LoadFailure::Config(problems))
    }

    /// Creates the error of a memory limit of `found` bytes, if the engine allows at most `most`.
    pub(crate) fn memory(tag: &str, most: usize, found: usize) -> Self {
        Self::new(tag, LoadFailure::Memory { most, found })
    }

    pub(crate) fn panicked(tag: &str) -> Self {
        Self::new(tag, LoadFailure::Panicked)
    }

    fn new(tag: &str, failure: LoadFailure) -> Self {
        Self {
            tag: tag.to_owned(),
            failure,
        }
    }

    /// Returns whether the component's file may be incomplete, because a program is still writing
    /// it. A component that could be run is complete.
    pub(crate) fn may_be_half_written(&self) -> bool {
        match &self.failure {
            LoadFailure::Rejected { stage, .. } => match stage {
                LoadStage::Read | LoadStage::Inspect | LoadStage::Compile => true,
                LoadStage::Link
                | LoadStage::Instantiate
                | LoadStage::Describe
                | LoadStage::Configure
                | LoadStage::Prepare
                | LoadStage::SelfTest
                | LoadStage::Start => false,
            },
            LoadFailure::Config(_) | LoadFailure::Memory { .. } | LoadFailure::Panicked => false,
        }
    }

    /// Converts the error to problems of the configuration, so that they are reported together with
    /// all others.
    pub(crate) fn problems(self, policy: &PolicyConfig) -> Vec<ConfigProblem> {
        let Some(entry) = &policy.entry_path else {
            return vec![ConfigProblem::without_path(self.to_string())];
        };
        match self.failure {
            LoadFailure::Config(problems) => problems
                .into_iter()
                .map(|problem| {
                    let path = entry.key("config").join(&problem.path);
                    ConfigProblem::new(path, problem.message)
                })
                .collect(),
            LoadFailure::Memory { most, found } => {
                let message = memory_message(most, found);
                vec![ConfigProblem::new(entry.key("memory"), message)]
            }
            LoadFailure::Rejected { .. } | LoadFailure::Panicked => {
                let message = self.failure.to_string();
                vec![ConfigProblem::new(entry.key("path"), message)]
            }
        }
    }
}

impl fmt::Display for LoadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected { stage, reason } => write!(f, "rejected at {stage}: {reason}"),
            Self::Config(problems) => {
                write!(f, "rejected at {}: ", LoadStage::Configure)?;
                for (index, problem) in problems.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "; " };
                    write!(f, "{separator}{}", with_pointer(problem))?;
                }
                Ok(())
            }
            Self::Memory { most, found } => {
                write!(f, "memory: {}", memory_message(*most, *found))
            }
            Self::Panicked => f.write_str("loading it panicked"),
        }
    }
}

fn memory_message(most: usize, found: usize) -> String {
    format!("expected at most {most}, found {found}: restart the gateway to raise it")
}

/// Formats a problem with its place as a JSON pointer into the policy's `config`.
fn with_pointer(problem: &ConfigProblem) -> String {
    if problem.path.is_root() {
        return problem.message.clone();
    }
    format!("{}: {}", problem.path.to_pointer(), problem.message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{ConfigPath, ShippedPolicy};

    fn policy(entry_path: Option<ConfigPath>) -> PolicyConfig {
        PolicyConfig {
            entry_path,
            ..PolicyConfig::shipped(ShippedPolicy::OpenaiPricing, json!({}))
        }
    }

    fn config_error() -> PolicyLoadError {
        let message = r#"expected a number, found "ten""#;
        PolicyLoadError::config(
            "prices",
            vec![ConfigProblem::new(
                ConfigPath::root().pointer("/tiers/0/markup"),
                message,
            )],
        )
    }

    #[test]
    fn message_names_policy_stage_and_json_pointer() {
        assert_eq!(
            config_error().to_string(),
            r#"policy "prices": rejected at configure: /tiers/0/markup: expected a number, found "ten""#
        );
        let error = PolicyLoadError::rejected("prices", LoadStage::SelfTest, "trap in price");
        assert_eq!(
            error.to_string(),
            r#"policy "prices": rejected at self-test: trap in price"#
        );
    }

    #[test]
    fn problems_are_at_their_paths_in_the_configuration() {
        let entry = ConfigPath::root().key("policies").index(0);
        let problems = |error: PolicyLoadError| -> Vec<String> {
            let problems = error.problems(&policy(Some(entry.clone())));
            problems.iter().map(ConfigProblem::to_string).collect()
        };
        assert_eq!(
            problems(config_error()),
            [r#"policies[0].config.tiers[0].markup: expected a number, found "ten""#]
        );
        let error = PolicyLoadError::rejected("prices", LoadStage::Read, "no such file");
        assert_eq!(
            problems(error),
            ["policies[0].path: rejected at read: no such file"]
        );
    }

    #[test]
    fn problem_of_a_policy_outside_the_configuration_names_the_policy() {
        let error = PolicyLoadError::rejected("prices", LoadStage::Read, "no such file");
        let message = error.to_string();
        assert_eq!(
            error.problems(&policy(None)),
            [ConfigProblem::without_path(message)]
        );
    }
}
