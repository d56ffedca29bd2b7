//! How an error of the schema is put into words: what was expected, and what was found.

use jsonschema::error::{TypeKind, ValidationErrorKind};
use serde_json::Value;

use crate::config::size;
use crate::values::json::kind::json_kind;

/// The longest text that is quoted.
const QUOTED_BYTES: usize = 40;

pub(super) const A_DURATION: &str = "a duration such as \"60s\" or \"1h30m\"";

pub(super) const A_SIZE: &str = "a size such as 33554432 or \"32MiB\"";

/// Returns whether `pattern` is the one of sizes.
pub(super) fn is_of_sizes(pattern: &str) -> bool {
    pattern == size::PATTERN
}

/// Returns whether `pattern` is the one of durations: it begins with the list of their units.
pub(super) fn is_of_durations(pattern: &str) -> bool {
    pattern.contains("ns|us")
}

pub(super) fn expected(kind: &ValidationErrorKind) -> String {
    match kind {
        ValidationErrorKind::Type { kind } => {
            let names = match kind {
                TypeKind::Single(name) => vec![name.to_string()],
                TypeKind::Multiple(names) => names.iter().map(|name| name.to_string()).collect(),
            };
            let is_single = names.len() == 1;
            let names = names.iter().filter(|name| is_single || *name != "null");
            let names: Vec<String> = names.map(|name| with_article(name)).collect();
            names.join(" or ")
        }
        ValidationErrorKind::Minimum { limit } => format!("{} or more", number(limit)),
        ValidationErrorKind::Maximum { limit } => format!("{} or less", number(limit)),
        ValidationErrorKind::ExclusiveMinimum { limit } => format!("more than {}", number(limit)),
        ValidationErrorKind::ExclusiveMaximum { limit } => format!("less than {}", number(limit)),
        ValidationErrorKind::Pattern { pattern } if is_of_durations(pattern) => {
            A_DURATION.to_owned()
        }
        ValidationErrorKind::Pattern { pattern } if is_of_sizes(pattern) => A_SIZE.to_owned(),
        kind => match options(kind) {
            Some(options) => format!("one of {}", options.join(", ")),
            None => format!("what the schema requires with {:?}", kind.keyword()),
        },
    }
}

/// The values of an enum or constant, as they are written.
pub(super) fn options(kind: &ValidationErrorKind) -> Option<Vec<String>> {
    match kind {
        ValidationErrorKind::Enum { options } => {
            let options = options
                .as_array()
                .into_iter()
                .flatten()
                .filter(|option| !option.is_null());
            Some(options.map(Value::to_string).collect())
        }
        ValidationErrorKind::Constant { expected_value } => Some(vec![expected_value.to_string()]),
        _ => None,
    }
}

pub(super) fn number(limit: &Value) -> String {
    match limit.as_f64() {
        Some(limit) if limit.fract() == 0.0 && limit.abs() < 1e15 => format!("{limit:.0}"),
        _ => limit.to_string(),
    }
}

/// What was found. A text may be a secret, and so may a number that is in the place of a text: both
/// are described by their kind. Texts in the place of one from a closed list, and numbers out of a
/// range, are quoted.
pub(super) fn found(kind: &ValidationErrorKind, value: &Value) -> String {
    match kind {
        ValidationErrorKind::Enum { .. }
        | ValidationErrorKind::Constant { .. }
        | ValidationErrorKind::Pattern { .. } => found_choice(value),
        ValidationErrorKind::Type { kind } if allows_strings(kind) => json_kind(value).to_owned(),
        ValidationErrorKind::Type { .. }
        | ValidationErrorKind::Minimum { .. }
        | ValidationErrorKind::Maximum { .. } => match value {
            Value::Number(number) => number.to_string(),
            other => json_kind(other).to_owned(),
        },
        _ => json_kind(value).to_owned(),
    }
}

fn allows_strings(kind: &TypeKind) -> bool {
    match kind {
        TypeKind::Single(name) => name.to_string() == "string",
        TypeKind::Multiple(names) => names.iter().any(|name| name.to_string() == "string"),
    }
}

/// What was found in the place of a text from a closed list.
pub(super) fn found_choice(value: &Value) -> String {
    match value {
        Value::String(text) if text.len() <= QUOTED_BYTES => format!("{text:?}"),
        other => json_kind(other).to_owned(),
    }
}

fn with_article(name: &str) -> String {
    let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {name}")
}
