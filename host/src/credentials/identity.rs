//! What a credential presents to upstream.
//!
//! Owns the sensitive header values. Does not know where they were read from. Invariant: neither
//! `Debug` nor any text that this module returns contains a token or key.

use http::HeaderValue;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::values::clock::Timestamp;
use crate::values::hex::hex;
use crate::values::secret::SecretString;

/// What a credential presents to upstream, and what its tokens say about the account.
#[derive(Debug)]
pub struct UpstreamIdentity {
    /// Marked sensitive, so that its `Debug` shows nothing.
    authorization: HeaderValue,
    kind: CredentialKind,
    account_id: Option<HeaderValue>,
    plan: Option<String>,
    expires_at: Option<Timestamp>,
    refreshed_at: Option<Timestamp>,
    has_refresh_token: bool,
}

/// The facts of an OAuth identity beside its access token.
#[derive(Debug, Default)]
pub(super) struct OAuthFacts {
    /// The value of the header field `ChatGPT-Account-Id`, if the file names an account.
    pub(super) account_id: Option<HeaderValue>,
    /// The account's plan, if a token names it.
    pub(super) plan: Option<String>,
    /// When the access token expires, if it is a JWT that says so.
    pub(super) expires_at: Option<Timestamp>,
    /// When the tokens were issued.
    pub(super) refreshed_at: Option<Timestamp>,
    /// Whether the file has a refresh token.
    pub(super) has_refresh_token: bool,
}

/// What kind of account a credential is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    /// A ChatGPT account, by OAuth 2.0 tokens.
    #[serde(rename = "oauth")]
    OAuth,
    /// A key of the OpenAI API.
    ApiKey,
    /// Another gateway, by the token of one of its users.
    External,
}

impl UpstreamIdentity {
    /// Returns the identity of a ChatGPT account; `None` if no header field may hold the token.
    pub(super) fn oauth(access_token: &SecretString, facts: OAuthFacts) -> Option<Self> {
        Some(Self {
            kind: CredentialKind::OAuth,
            authorization: access_token.bearer()?,
            account_id: facts.account_id,
            plan: facts.plan,
            expires_at: facts.expires_at,
            refreshed_at: facts.refreshed_at,
            has_refresh_token: facts.has_refresh_token,
        })
    }

    /// Returns the identity of an API key; `None` if no header field may hold it.
    pub(super) fn api_key(key: &SecretString) -> Option<Self> {
        Self::without_facts(CredentialKind::ApiKey, key)
    }

    /// Returns the identity of a user of another gateway; `None` if no header field may hold the
    /// user's token.
    pub(super) fn external(token: &SecretString) -> Option<Self> {
        Self::without_facts(CredentialKind::External, token)
    }

    fn without_facts(kind: CredentialKind, secret: &SecretString) -> Option<Self> {
        let oauth = Self::oauth(secret, OAuthFacts::default())?;
        Some(Self { kind, ..oauth })
    }

    /// Returns what kind of account presents it.
    pub fn kind(&self) -> CredentialKind {
        self.kind
    }

    /// Returns the `Authorization` field, marked sensitive.
    pub fn authorization(&self) -> &HeaderValue {
        &self.authorization
    }

    /// Returns the `ChatGPT-Account-Id` field.
    pub fn account_id(&self) -> Option<&HeaderValue> {
        self.account_id.as_ref()
    }

    /// Returns the account's plan, if a token names it.
    pub(super) fn plan(&self) -> Option<&str> {
        self.plan.as_deref()
    }

    /// Returns when the access token expires, if it says so.
    pub(super) fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// Returns when the tokens were issued, if the file says so.
    pub(super) fn refreshed_at(&self) -> Option<Timestamp> {
        self.refreshed_at
    }

    /// Whether there is a refresh token to refresh it with.
    pub(super) fn is_refreshable(&self) -> bool {
        self.has_refresh_token
    }

    /// Whether the access token has expired at `now`.
    pub(super) fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }

    /// Whether `other` presents the same access token or key.
    pub(super) fn has_token_of(&self, other: &Self) -> bool {
        self.authorization == other.authorization
    }

    /// Returns the fingerprint of the access token.
    pub(super) fn fingerprint(&self) -> SecretFingerprint {
        SecretFingerprint::of(self.authorization.as_bytes())
    }
}

/// The SHA-256 of a secret, in hexadecimal: distinguishes secrets without revealing them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretFingerprint(String);

impl SecretFingerprint {
    pub(super) fn of(secret: &[u8]) -> Self {
        Self(hex(&Sha256::digest(secret)))
    }

    /// Returns the fingerprint of the identity that presents this access token.
    pub(super) fn of_access_token(token: &str) -> Self {
        Self::of(Zeroizing::new(format!("Bearer {token}")).as_bytes())
    }
}
