//! Secrets: text that can be used, and never shown.

use std::fmt;

use http::HeaderValue;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A token or key. It has no `Display` and no `Serialize`, its `Debug` shows nothing, and its memory is cleared when
/// it goes.
#[derive(Clone)]
pub struct SecretString(Zeroizing<String>);

impl SecretString {
    /// Takes `text` as a secret.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret itself, for the one place that sends or hashes it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The value of an `Authorization` field (RFC 6750), marked sensitive; none where the secret has bytes that no
    /// field may hold.
    pub fn bearer(&self) -> Option<HeaderValue> {
        let text = Zeroizing::new(format!("Bearer {}", self.expose()));
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// In a time that depends on their lengths alone.
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
    fn debug_shows_nothing() {
        let secret = SecretString::new("sk-canary".to_owned());
        assert_eq!(format!("{secret:?}"), "Secret");
        assert_eq!(format!("{:?}", secret.bearer()), "Some(Sensitive)");
    }

    #[test]
    fn a_secret_that_no_header_may_hold_is_not_sent() {
        assert!(SecretString::new("a\r\nb: c".to_owned()).bearer().is_none());
    }
}
