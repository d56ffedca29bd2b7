//! What kind of JSON value something is, in words: for messages that must not quote it.

use serde_json::Value;

/// Returns the kind of `value` with its article: `a string`.
pub(crate) fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
