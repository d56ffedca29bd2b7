//! What is declared of a limit beside its field: for the schema, the documentation and the
//! validation.

use super::value::{LedgerFull, LimitValue};

/// The numbers that a limit may be set to, both ends included. A time has no range: it must be more
/// than zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitRange {
    /// The smallest number that is accepted.
    pub min: u64,
    /// The largest number; `u64::MAX` if there is no upper bound.
    pub max: u64,
}

pub(super) const ANY: LimitRange = between(0, u64::MAX);

pub(super) const fn between(min: u64, max: u64) -> LimitRange {
    LimitRange { min, max }
}

pub(super) const fn at_least(min: u64) -> LimitRange {
    between(min, u64::MAX)
}

pub(super) const fn at_most(max: u64) -> LimitRange {
    between(0, max)
}

/// What a changed limit applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitChange {
    /// To what begins once the changed configuration is applied.
    Live,
    /// To policies that are added, and to the others at a restart.
    NewPolicies,
    /// To nothing before a restart: the value is built into something at the start.
    AtRestart,
}

impl LimitChange {
    /// The name in the documentation.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::NewPolicies => "for new policies",
            Self::AtRestart => "at a restart",
        }
    }
}

/// What an operator can know about a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitDeclaration {
    /// The name below `limits`; a switch of `failover` is named `failover.rate_limited`.
    pub name: &'static str,
    /// What it limits, and what happens beyond it.
    pub description: String,
    /// The value if the configuration does not set it.
    pub default: LimitValue,
    /// The range of a number.
    pub range: LimitRange,
    /// What a change applies to.
    pub change: LimitChange,
}

impl LimitDeclaration {
    /// Returns whether it is a number of bytes, which may be written as `16MiB`.
    pub fn is_size(&self) -> bool {
        self.name.ends_with("_bytes")
    }

    /// The name of the object that contains the limit, if it is not `limits` itself, and its name
    /// there.
    pub fn group_and_name(&self) -> (Option<&'static str>, &'static str) {
        match self.name.split_once('.') {
            Some((group, name)) => (Some(group), name),
            None => (None, self.name),
        }
    }

    /// The limit as a row of the Markdown table in `docs/limits.md`: name, default, range,
    /// when a change applies, description.
    pub fn table_row(&self) -> String {
        let (name, default) = (self.name, self.default);
        let range = match (self.default, self.range) {
            (LimitValue::Number(_), ANY) => "any".to_owned(),
            (LimitValue::Number(_), LimitRange { min, max: u64::MAX }) => format!("{min} or more"),
            (LimitValue::Number(_), LimitRange { min, max }) => format!("{min} to {max}"),
            (LimitValue::Duration(_), _) => "more than 0".to_owned(),
            (LimitValue::Switch(_), _) => "`true`, `false`".to_owned(),
            (LimitValue::LedgerFull(_), _) => LedgerFull::ALL
                .map(|choice| format!("`{}`", choice.as_str()))
                .join(", "),
        };
        format!(
            "| `{name}` | `{default}` | {range} | {} | {} |",
            self.change.as_str(),
            self.description
        )
    }
}
