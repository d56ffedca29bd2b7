//! A component's manifest, checked: what the component is called and what it wants to see.
//!
//! Invariant: a checked manifest is at most [`MANIFEST_BYTES`] long, has a name, and names only
//! strings that the gateway knows.

use super::bindings::types::Manifest;
use super::facts::RequestField;

/// The most bytes that all texts of a manifest may have together.
const MANIFEST_BYTES: usize = 256 * 1024;

/// A manifest that was checked.
pub(crate) struct CheckedManifest {
    name: String,
    version: String,
    config_schema: String,
    strings: Vec<RequestField>,
    request_headers: Vec<String>,
    response_headers: Vec<String>,
}

/// A manifest that breaks the contract.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("manifest: expected at most {MANIFEST_BYTES} bytes, found {0}")]
    TooLarge(usize),
    #[error("manifest: name: missing")]
    NoName,
    #[error("manifest: strings: unknown string {0:?}")]
    UnknownString(String),
}

impl CheckedManifest {
    pub(crate) fn check(manifest: Manifest) -> Result<Self, ManifestError> {
        let bytes = bytes_of(&manifest);
        if bytes > MANIFEST_BYTES {
            return Err(ManifestError::TooLarge(bytes));
        }
        if manifest.name.is_empty() {
            return Err(ManifestError::NoName);
        }
        let mut strings = Vec::with_capacity(manifest.strings.len());
        for name in manifest.strings {
            let Some(field) = RequestField::from_name(&name) else {
                return Err(ManifestError::UnknownString(name));
            };
            strings.push(field);
        }
        Ok(Self {
            name: manifest.name,
            version: manifest.version,
            config_schema: manifest.config_schema,
            strings,
            request_headers: manifest.request_headers,
            response_headers: manifest.response_headers,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Returns the JSON Schema of the policy's configuration; empty if the component has none.
    pub(crate) fn config_schema(&self) -> &str {
        &self.config_schema
    }

    /// Returns the strings of a request that the component wants to see, in its order.
    pub(crate) fn strings(&self) -> &[RequestField] {
        &self.strings
    }

    /// Returns the header fields of requests that the component wants to see; `*` stands for all.
    pub(crate) fn request_headers(&self) -> &[String] {
        &self.request_headers
    }

    /// Returns the header fields of responses that the component wants to see; `*` stands for all.
    pub(crate) fn response_headers(&self) -> &[String] {
        &self.response_headers
    }
}

fn bytes_of(manifest: &Manifest) -> usize {
    let texts = [&manifest.name, &manifest.version, &manifest.config_schema];
    let lists = [
        &manifest.strings,
        &manifest.request_headers,
        &manifest.response_headers,
    ];
    texts
        .into_iter()
        .chain(lists.into_iter().flatten())
        .map(String::len)
        .sum()
}
