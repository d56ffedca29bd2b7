//! Rewriters: how the header fields of requests and responses change.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::request::Request;

pub use crate::bindings::lifecycle::tollgate::policy::types::{Edit, Header, Refusal};

/// Edits header fields.
pub trait Rewriter: Sized + 'static {
    /// What the operator may configure; [`NoConfig`](crate::NoConfig) for nothing.
    type Config: DeserializeOwned + JsonSchema;

    /// Which strings of a request the policy wants to see, by their names in the contract. Each costs a copy.
    const STRINGS: &'static [&'static str] = &[];

    /// Which request headers it wants to see, in lower case; `*` for all. Each costs a copy.
    const REQUEST_HEADERS: &'static [&'static str] = &[];

    /// Which response headers it wants to see. Where it names none, [`Rewriter::response`] is not called.
    const RESPONSE_HEADERS: &'static [&'static str] = &[];

    /// Takes the configuration.
    ///
    /// # Errors
    /// A text that tells the operator what is wrong.
    fn new(config: Self::Config) -> Result<Self, String>;

    /// Edits a request on its way to upstream.
    ///
    /// # Errors
    /// The answer that the client gets in place of upstream's.
    fn request(&self, request: &Request, headers: &Headers) -> Result<Vec<Edit>, Refusal>;

    /// Edits a response on its way to the client.
    ///
    /// # Errors
    /// Why it cannot: a fault of the policy.
    fn response(
        &self,
        _request: &Request,
        _status: u16,
        _headers: &Headers,
    ) -> Result<Vec<Edit>, String> {
        Ok(Vec::new())
    }
}

impl Edit {
    /// Replaces all fields of that name by this one.
    pub fn set_to(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self::Set(Header {
            name: name.into(),
            value: value.into(),
        })
    }

    /// Adds a field, keeping those of the same name.
    pub fn add(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self::Append(Header {
            name: name.into(),
            value: value.into(),
        })
    }

    /// Removes all fields of that name.
    pub fn drop(name: impl Into<String>) -> Self {
        Self::Remove(name.into())
    }
}

/// The header fields that the policy asked for, in their order on the wire.
#[derive(Debug, Clone, Default)]
pub struct Headers {
    fields: Vec<Header>,
}

impl Headers {
    /// The fields `fields`, whose names are in lower case.
    pub fn new(fields: Vec<Header>) -> Self {
        Self { fields }
    }

    /// The first field of that name (in lower case).
    pub fn first(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|field| field.name == name)
            .map(|field| field.value.as_str())
    }

    /// All fields, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields
            .iter()
            .map(|field| (field.name.as_str(), field.value.as_str()))
    }
}
