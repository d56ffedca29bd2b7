//! The tokens that the token endpoint issued for a refresh token.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::credentials::identity::SecretFingerprint;

/// Tokens that the token endpoint issued. Serialized into the journal, and nowhere else.
#[derive(Serialize, Deserialize)]
pub(super) struct NewTokens {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id_token: Option<Zeroizing<String>>,
    access_token: Zeroizing<String>,
    /// `None` if the presented one stays valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_token: Option<Zeroizing<String>>,
}

impl NewTokens {
    /// Reads a token response (RFC 6749, section 5.1). Returns `None` if it has no access token.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let tokens: Self = serde_json::from_slice(body).ok()?;
        (!tokens.access_token.is_empty()).then_some(tokens)
    }

    /// Returns the fingerprint that the access token has once it is read from auth.json.
    pub(super) fn access_fingerprint(&self) -> SecretFingerprint {
        SecretFingerprint::of_access_token(&self.access_token)
    }

    /// Returns the members of auth.json's `tokens` that change.
    pub(super) fn members(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("id_token", self.id_token.as_ref()),
            ("access_token", Some(&self.access_token)),
            ("refresh_token", self.refresh_token.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, token)| Some((name, token?.as_str())))
        .filter(|(_, token)| !token.is_empty())
    }

    #[cfg(test)]
    pub(super) fn new(id: Option<&str>, access: &str, refresh: Option<&str>) -> Self {
        let secret = |text: &str| Zeroizing::new(text.to_owned());
        Self {
            id_token: id.map(secret),
            access_token: secret(access),
            refresh_token: refresh.map(secret),
        }
    }
}
