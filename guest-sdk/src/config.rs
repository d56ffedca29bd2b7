//! A policy's configuration: from the operator's JSON to the author's type, and the JSON Schema of that type.

use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, de::DeserializeOwned};

/// The configuration of a policy that takes none: an empty object.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}

/// The JSON Schema of `C`, as text.
pub(crate) fn schema<C: JsonSchema>() -> String {
    schema_for!(C).as_value().to_string()
}

/// Reads `text` as a `C`.
///
/// The gateway has checked the text against the schema before, and so has reported every problem of shape at its
/// place; an error here is about what a schema cannot say.
pub(crate) fn parse<C: DeserializeOwned>(text: &str) -> Result<C, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}
