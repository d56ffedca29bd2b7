//! Forms that values of several sections have.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use crate::config::size;

/// A single item, or a list of items.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum OneOrMany<T> {
    /// A list of any length.
    Many(Vec<T>),
    /// A single item, without the brackets.
    One(T),
}

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl<T> OneOrMany<T> {
    pub(in crate::config) fn as_slice(&self) -> &[T] {
        match self {
            Self::Many(items) => items,
            Self::One(item) => std::slice::from_ref(item),
        }
    }
}

/// A text that an entry must have. It is empty if the field is absent. `Debug` prints nothing of it:
/// it may be a token.
#[derive(Clone, Default, Deserialize)]
#[serde(from = "String")]
pub(in crate::config) struct RequiredText(Option<String>);

impl RequiredText {
    /// Returns what is wrong if there is no text.
    pub(in crate::config) fn problem(&self) -> Option<&'static str> {
        match self.0.as_deref() {
            None => Some("missing"),
            Some("") => Some("must not be empty"),
            Some(_) => None,
        }
    }
}

impl fmt::Debug for RequiredText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.problem().unwrap_or("set"))
    }
}

impl From<String> for RequiredText {
    fn from(text: String) -> Self {
        Self(Some(text))
    }
}

impl Deref for RequiredText {
    type Target = str;

    fn deref(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

impl JsonSchema for RequiredText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "RequiredText".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

/// A duration: numbers with units (`ns`, `us`, `ms`, `s`, `m`, `h`, `d`), such as `60s` or `1h30m`.
/// It may have a sign, as in Go.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub(in crate::config) struct RawDuration(pub(in crate::config) String);

impl JsonSchema for RawDuration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "Numbers with units (ns, us, ms, s, m, h, d), such as 60s or 1h30m",
            "pattern": "^[+-]?(0|(([0-9]+(\\.[0-9]*)?|\\.[0-9]+)(ns|us|\u{b5}s|\u{3bc}s|ms|s|m|h|d))+)$",
        })
    }
}

/// A size: a number of bytes, or a text such as `16MiB`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(in crate::config) enum RawSize {
    /// The number of bytes.
    Bytes(u64),
    /// A whole number with a unit.
    Text(String),
}

impl RawSize {
    /// Returns the number of bytes, or `None` if it is too large.
    pub(in crate::config) fn bytes(&self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(*bytes),
            Self::Text(text) => size::parse(text),
        }
    }
}

impl JsonSchema for RawSize {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["integer", "string"], "minimum": 0, "pattern": size::PATTERN })
    }
}

/// A netfilter mark: a number, or a text with a number in the notation of C.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum RawRoutingMark {
    /// A number of 32 bits.
    Number(u32),
    /// A decimal number, or a number with the prefix `0x`, `0o` or `0b`.
    Text(String),
}
