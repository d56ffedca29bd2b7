//! A policy's configuration: parses the operator's JSON into the author's type and derives its JSON
//! Schema.

use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, de::DeserializeOwned};

/// The configuration of a policy that takes none. It accepts only an empty object.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}

pub(crate) fn schema<C: JsonSchema>() -> String {
    schema_for!(C).as_value().to_string()
}

/// The gateway validates the text against the schema first and reports every structural problem
/// with its path. An error here is about a constraint that the schema cannot express.
pub(crate) fn parse<C: DeserializeOwned>(text: &str) -> Result<C, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}
