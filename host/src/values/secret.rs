//! Secrets: text that can be used, but not displayed or serialized.

use std::fmt;

use http::HeaderValue;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A token or key. It has no `Display` and no `Serialize`, its `Debug` prints nothing of it, and
/// its memory is cleared when it is dropped.
#[derive(Clone)]
pub struct SecretString(Zeroizing<String>);

impl SecretString {
    /// Creates a secret from `text`.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// Returns the secret itself, for code that sends or hashes it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns the value of an `Authorization` field (RFC 6750), marked sensitive, or `None` if the
    /// secret contains bytes that a field cannot.
    pub fn bearer(&self) -> Option<HeaderValue> {
        let text = Zeroizing::new(format!("Bearer {}", self.expose()));
        let mut value = HeaderValue::from_bytes(text.as_bytes()).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// Compares in a time that depends only on the lengths.
impl PartialEq for SecretString {
    fn eq(&self, other: &Self) -> bool {
        self.expose()
            .as_bytes()
            .ct_eq(other.expose().as_bytes())
            .into()
    }
}

impl fmt::Debug for SecretString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_nothing_of_the_secret() {
        let secret = SecretString::new("sk-canary".to_owned());
        assert_eq!(format!("{secret:?}"), "Secret");
        assert_eq!(format!("{:?}", secret.bearer()), "Some(Sensitive)");
    }

    #[test]
    fn a_secret_that_a_header_cannot_contain_is_not_sent() {
        assert!(SecretString::new("a\r\nb: c".to_owned()).bearer().is_none());
    }
}
