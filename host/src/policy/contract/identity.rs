//! The identity of a component: its name, version and digest.

/// Identifies a component in ledger rows, status and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentIdentity {
    /// The name in the component's manifest.
    pub name: String,
    /// The version in the component's manifest.
    pub version: String,
    /// The SHA-256 of the component, in hexadecimal.
    pub digest: String,
}

impl ComponentIdentity {
    /// Returns the identity of a policy whose component is not loaded: its tag, without version and
    /// digest.
    pub(crate) fn not_loaded(tag: &str) -> Self {
        Self {
            name: tag.to_owned(),
            version: String::new(),
            digest: String::new(),
        }
    }
}
