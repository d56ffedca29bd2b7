//! The section `limits`. Its schema follows from the declarations in [`Limits`].

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::form::RawDuration;
use crate::config::size;
use crate::values::limits::{
    FailoverSwitches, LedgerFull, LimitDeclaration, LimitRange, LimitValue, Limits,
};

/// The limits that are set, by name. Those of a group such as `failover` are in an object.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(in crate::config) struct RawLimits(pub(in crate::config) Map<String, Value>);

impl JsonSchema for RawLimits {
    fn schema_name() -> Cow<'static, str> {
        "RawLimits".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut properties = Map::new();
        for limit in Limits::declarations() {
            let (group, name) = limit.group_and_name();
            let (name, schema) = match group {
                None => (name, limit_schema(&limit, generator)),
                Some(group) => (group, failover_schema(generator)),
            };
            properties.insert(name.to_owned(), schema);
        }
        object(
            "The limits of the gateway. Sizes are in bytes, or texts such as `16MiB`.",
            properties,
        )
    }
}

/// The schema of the only group.
fn failover_schema(generator: &mut SchemaGenerator) -> Value {
    let mut schema = generator.subschema_for::<RawFailover>().to_value();
    schema["description"] = "When a request is retried with the next credential.".into();
    schema
}

/// The form of `limits.failover`.
struct RawFailover;

impl JsonSchema for RawFailover {
    fn schema_name() -> Cow<'static, str> {
        "RawFailover".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut properties = Map::new();
        for limit in FailoverSwitches::declarations() {
            let (_, name) = limit.group_and_name();
            properties.insert(name.to_owned(), limit_schema(&limit, generator));
        }
        let description = "When a request is retried with the next credential of its pool, before any output was sent \
            to the client.";
        object(description, properties)
    }
}

fn object(description: &str, properties: Map<String, Value>) -> Schema {
    json_schema!({
        "type": "object",
        "description": description,
        "additionalProperties": false,
        "properties": properties,
    })
}

fn limit_schema(limit: &LimitDeclaration, generator: &mut SchemaGenerator) -> Value {
    let description = format!("{} Default: `{}`.", limit.description, limit.default);
    let mut schema = match limit.default {
        LimitValue::Number(_) => number_schema(limit),
        LimitValue::Duration(_) => generator.subschema_for::<Option<RawDuration>>().to_value(),
        LimitValue::Switch(_) => json!({ "type": ["boolean", "null"] }),
        LimitValue::LedgerFull(_) => {
            let [refuse, serve] = LedgerFull::ALL.map(|choice| {
                let (name, description) = (choice.as_str(), choice.description());
                json!({ "type": "string", "const": name, "description": description })
            });
            json!({ "oneOf": [refuse, serve, { "type": "null" }] })
        }
    };
    schema["description"] = description.into();
    schema
}

fn number_schema(limit: &LimitDeclaration) -> Value {
    let LimitRange { min, max } = limit.range;
    let mut schema = if limit.is_size() {
        json!({ "type": ["integer", "string", "null"], "minimum": min, "pattern": size::PATTERN })
    } else {
        json!({ "type": ["integer", "null"], "minimum": min })
    };
    if max < u64::MAX {
        schema["maximum"] = max.into();
    }
    schema
}
