//! Rewriters: editing the header fields of requests and responses.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::request::Request;

pub use crate::bindings::lifecycle::tollgate::policy::types::{Edit, Header, Refusal};

/// A policy that edits header fields, or refuses a request.
pub trait Rewriter: Sized + 'static {
    /// The policy's configuration. Use [`NoConfig`](crate::NoConfig) for a policy that takes none.
    type Config: DeserializeOwned + JsonSchema;

    /// The strings of a request that the policy needs, by their names in the contract. Each costs a
    /// copy per call.
    const STRINGS: &'static [&'static str] = &[];

    /// The request headers that the policy needs, in lower case; `*` means all. Each costs a copy
    /// per call.
    const REQUEST_HEADERS: &'static [&'static str] = &[];

    /// The response headers that the policy needs. If empty, the gateway does not call
    /// [`Rewriter::response`].
    const RESPONSE_HEADERS: &'static [&'static str] = &[];

    /// Creates the policy from its configuration.
    ///
    /// # Errors
    /// Returns a message for the operator if the configuration is invalid.
    fn new(config: Self::Config) -> Result<Self, String>;

    /// Returns the edits to a request before it is sent upstream.
    ///
    /// # Errors
    /// Returns a refusal, which the client receives instead of upstream's response.
    fn request(&self, request: &Request, headers: &Headers) -> Result<Vec<Edit>, Refusal>;

    /// Returns the edits to a response before it is sent to the client.
    ///
    /// # Errors
    /// Returns the reason if the policy fails. The gateway counts it as a fault of the policy.
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
    /// Creates an edit that replaces all fields of that name with this one.
    pub fn set_to(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self::Set(Header {
            name: name.into(),
            value: value.into(),
        })
    }

    /// Creates an edit that adds a field and keeps existing fields of the same name.
    pub fn add(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self::Append(Header {
            name: name.into(),
            value: value.into(),
        })
    }

    /// Creates an edit that removes all fields of that name.
    pub fn drop(name: impl Into<String>) -> Self {
        Self::Remove(name.into())
    }
}

/// The header fields that the policy requested, in wire order.
#[derive(Debug, Clone, Default)]
pub struct Headers {
    fields: Vec<Header>,
}

impl Headers {
    /// Creates a list of fields. The names must be in lower case.
    pub fn new(fields: Vec<Header>) -> Self {
        Self { fields }
    }

    /// Returns the value of the first field named `name`, which must be in lower case.
    pub fn first(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|field| field.name == name)
            .map(|field| field.value.as_str())
    }

    /// Iterates over all fields in order, as pairs of name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields
            .iter()
            .map(|field| (field.name.as_str(), field.value.as_str()))
    }
}
