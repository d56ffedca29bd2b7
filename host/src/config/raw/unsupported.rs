//! Fields of sing-box that nothing implements. Those that are not supported are accepted as long as
//! they ask for nothing; those that are ignored are accepted with a warning.

use serde_json::Value;

/// A field that is not supported, whatever its form.
pub(super) type UnsupportedField = Option<Value>;

/// A field that has no effect, whatever its form.
pub(super) type IgnoredField = Option<Value>;

/// Lists fields of `$self` with their names, for [`requested`].
macro_rules! fields {
    ($self:ident: $($field:ident),* $(,)?) => { [$((stringify!($field), &$self.$field)),*] };
}

pub(super) use fields;

/// Returns the names of the fields that ask for something. A field that is empty, zero or `false`
/// asks for nothing.
pub(super) fn requested(fields: &[(&'static str, &UnsupportedField)]) -> Vec<&'static str> {
    fields
        .iter()
        .filter(|(_, value)| value.as_ref().is_some_and(is_enabled))
        .map(|(name, _)| *name)
        .collect()
}

fn is_enabled(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) => true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => {
            fields.get("enabled") != Some(&Value::Bool(false)) && !fields.is_empty()
        }
    }
}
