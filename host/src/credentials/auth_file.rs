//! auth.json, as Codex writes it: from its text to what upstream is shown. No error quotes what stands in it.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::HeaderValue;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::config::shape::kind_of;
use crate::files::read_regular;
use crate::values::clock::Timestamp;
use crate::values::limits::AUTH_FILE_BYTES;
use crate::values::secret::Secret;

/// The claims of OpenAI's tokens that name account and plan.
const CLAIMS: &str = "https://api.openai.com/auth";

/// What upstream is shown of a credential.
#[derive(Debug)]
pub struct Identity {
    /// Whose it is.
    pub kind: IdentityKind,
    pub(super) authorization: HeaderValue,
    pub(super) account_id: Option<HeaderValue>,
    pub(super) plan: Option<String>,
    /// When the access token expires, where it is a JWT that tells.
    pub(super) expires_at: Option<Timestamp>,
    /// When its tokens were made.
    pub(super) refreshed_at: Option<Timestamp>,
    /// Whether there is a refresh token.
    pub(super) refreshable: bool,
}

impl Identity {
    /// Whether its access token is of no use any more.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|expires| expires <= now)
    }

    /// Which access token it is, for whoever must tell it from another without having it.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.authorization.as_bytes())
    }
}

/// The SHA-256 of a secret, in hexadecimal: tells it from another, and tells nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint(String);

impl Fingerprint {
    pub(super) fn of(secret: &[u8]) -> Self {
        Self(
            Sha256::digest(secret)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        )
    }
}

/// What a credential is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentityKind {
    /// A ChatGPT account, by OAuth 2.0 tokens.
    OAuth,
    /// An API key.
    ApiKey,
    /// Another gateway.
    External,
}

/// The text of the file at `path`.
///
/// # Errors
/// Why it cannot be read.
pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let read = read_regular(path, AUTH_FILE_BYTES).map(Zeroizing::new);
    read.map_err(|reason| format!("cannot read {}: {reason}", path.display()))
}

/// # Errors
/// What is wrong with the text, and where in it.
pub(super) fn parse(bytes: &[u8]) -> Result<Identity, String> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err("expected a JSON object, found an empty file".to_owned());
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|error| {
        // Only the place: the parser's own message can quote what stands there.
        format!(
            "expected JSON, found something else at line {} column {}",
            error.line(),
            error.column()
        )
    })?;
    let object = value
        .as_object()
        .ok_or_else(|| format!("expected a JSON object, found {}", kind_of(&value)))?;
    let mode = text(object, "auth_mode", "auth_mode")?;
    let key = text(object, "OPENAI_API_KEY", "OPENAI_API_KEY")?.filter(|key| !key.is_empty());
    let by_key = mode.is_none_or(|mode| !mode.eq_ignore_ascii_case("chatgpt"));
    match key {
        Some(key) if by_key => api_key(key),
        _ => oauth(object),
    }
}

fn api_key(key: &str) -> Result<Identity, String> {
    Ok(Identity {
        kind: IdentityKind::ApiKey,
        authorization: bearer(key, "OPENAI_API_KEY")?,
        account_id: None,
        plan: None,
        expires_at: None,
        refreshed_at: None,
        refreshable: false,
    })
}

/// Another gateway, by the token that it gave its user.
pub(super) fn external(token: &Secret) -> Option<Identity> {
    Some(Identity {
        kind: IdentityKind::External,
        authorization: token.bearer()?,
        account_id: None,
        plan: None,
        expires_at: None,
        refreshed_at: None,
        refreshable: false,
    })
}

fn oauth(object: &Map<String, Value>) -> Result<Identity, String> {
    let tokens = match object.get("tokens") {
        Some(Value::Object(tokens)) => tokens,
        None | Some(Value::Null) => {
            return Err("tokens: missing, and there is no OPENAI_API_KEY".to_owned());
        }
        Some(other) => {
            return Err(format!(
                "tokens: expected an object, found {}",
                kind_of(other)
            ));
        }
    };
    let access =
        text(tokens, "access_token", "tokens.access_token")?.filter(|token| !token.is_empty());
    let access = access.ok_or("tokens.access_token: missing")?;
    let id_token = text(tokens, "id_token", "tokens.id_token")?;
    let refresh = text(tokens, "refresh_token", "tokens.refresh_token")?;
    let refreshed_at =
        text(object, "last_refresh", "last_refresh")?.and_then(Timestamp::from_rfc3339);
    let claim = |name: &str| {
        id_token
            .into_iter()
            .chain([access])
            .find_map(|token| claim(token, name))
    };
    let account = text(tokens, "account_id", "tokens.account_id")?.map(str::to_owned);
    let account = account
        .filter(|account| !account.is_empty())
        .or_else(|| claim("chatgpt_account_id"));
    let account_id = account
        .map(|account| HeaderValue::from_str(&account))
        .transpose()
        .map_err(|_| "tokens.account_id: expected visible ASCII characters, found others")?;
    Ok(Identity {
        kind: IdentityKind::OAuth,
        authorization: bearer(access, "tokens.access_token")?,
        account_id,
        plan: claim("chatgpt_plan_type"),
        expires_at: expiry(access),
        refreshed_at,
        refreshable: refresh.is_some_and(|token| !token.is_empty()),
    })
}

/// The refresh token, where the text has one.
pub(super) fn refresh_token(bytes: &[u8]) -> Option<Zeroizing<String>> {
    #[derive(Deserialize)]
    struct File {
        tokens: Tokens,
    }
    #[derive(Deserialize)]
    struct Tokens {
        refresh_token: Zeroizing<String>,
    }
    let file: File = serde_json::from_slice(bytes).ok()?;
    Some(file.tokens.refresh_token).filter(|token| !token.is_empty())
}

fn bearer(token: &str, place: &str) -> Result<HeaderValue, String> {
    let secret = Secret::new(token.to_owned());
    secret
        .bearer()
        .ok_or_else(|| format!("{place}: expected visible ASCII characters, found others"))
}

/// The string under `key`; none where it is missing or null.
fn text<'a>(
    object: &'a Map<String, Value>,
    key: &str,
    place: &str,
) -> Result<Option<&'a str>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!(
            "{place}: expected a string, found {}",
            kind_of(other)
        )),
    }
}

/// A claim of a JWT (RFC 7519) of OpenAI's. The signature is upstream's business: nothing is granted by it here.
fn claim(token: &str, name: &str) -> Option<String> {
    claims(token)?
        .get(CLAIMS)?
        .get(name)?
        .as_str()
        .map(str::to_owned)
}

/// When a JWT expires (RFC 7519, section 4.1.4). A token that is none does not tell.
fn expiry(token: &str) -> Option<Timestamp> {
    let seconds = claims(token)?
        .get("exp")?
        .as_f64()
        .filter(|seconds| (0.0..1e12).contains(seconds))?;
    Some(Timestamp((seconds * 1e3) as u64))
}

fn claims(token: &str) -> Option<Value> {
    let payload = token.split('.').nth(1)?;
    let payload = BASE64_URL_SAFE_NO_PAD
        .decode(payload.trim_end_matches('='))
        .ok()?;
    serde_json::from_slice(&payload).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: &str = "canary-secret";

    #[track_caller]
    fn check_error(text: &str, expected: &str) {
        let error = parse(text.as_bytes()).expect_err("not a usable file");
        assert!(error.contains(expected), "{error:?} has no {expected:?}");
        assert!(!error.contains(CANARY), "{error:?}");
    }

    #[test]
    fn every_mistake_is_named_and_none_is_quoted() {
        check_error("", "empty file");
        check_error("[]", "expected a JSON object, found an array");
        check_error(
            &format!(r#"{{"tokens": {{"access_token": "{CANARY}"#),
            "expected JSON",
        );
        check_error(
            &format!(r#""{CANARY}""#),
            "expected a JSON object, found a string",
        );
        check_error(r#"{"OPENAI_API_KEY": null}"#, "tokens: missing");
        check_error(
            r#"{"tokens": 5}"#,
            "tokens: expected an object, found a number",
        );
        check_error(r#"{"tokens": {}}"#, "tokens.access_token: missing");
        check_error(
            &format!(r#"{{"tokens": {{"access_token": ["{CANARY}"]}}}}"#),
            "found an array",
        );
        check_error(
            &format!(r#"{{"OPENAI_API_KEY": "{CANARY}\n"}}"#),
            "visible ASCII",
        );
    }

    #[test]
    fn a_key_is_a_key_unless_the_mode_says_chatgpt() {
        let key = parse(br#"{"OPENAI_API_KEY": "sk-1"}"#).expect("a key");
        assert_eq!(key.kind, IdentityKind::ApiKey);
        let both = br#"{"auth_mode": "chatgpt", "OPENAI_API_KEY": "sk-1", "tokens": {"access_token": "t"}}"#;
        assert_eq!(parse(both).expect("tokens").kind, IdentityKind::OAuth);
    }

    #[test]
    fn account_and_plan_are_read_from_the_tokens_claims() {
        let claims = BASE64_URL_SAFE_NO_PAD
            .encode(br#"{"https://api.openai.com/auth":{"chatgpt_plan_type":"pro","chatgpt_account_id":"acc"}}"#);
        let file = format!(r#"{{"tokens": {{"access_token": "x.{claims}.y"}}}}"#);
        let identity = parse(file.as_bytes()).expect("tokens");
        assert_eq!(identity.plan.as_deref(), Some("pro"));
        assert_eq!(identity.account_id.expect("an account"), "acc");
    }

    #[test]
    fn a_jwt_tells_its_end_and_another_token_does_not() {
        let end = |access: &str| {
            let file = format!(r#"{{"tokens": {{"access_token": "{access}"}}}}"#);
            parse(file.as_bytes()).expect("tokens").expires_at
        };
        let jwt = |claims: &str| format!("x.{}.y", BASE64_URL_SAFE_NO_PAD.encode(claims));
        assert_eq!(
            end(&jwt(r#"{"exp": 1700000000}"#)),
            Some(Timestamp(1_700_000_000_000))
        );
        for none in [
            "plain",
            "a.b.c",
            "..",
            &jwt("[]"),
            &jwt(r#"{"exp": "soon"}"#),
            &jwt(r#"{"exp": -1}"#),
        ] {
            assert_eq!(end(none), None, "{none}");
        }
    }

    #[test]
    fn debug_shows_no_token() {
        let identity = parse(format!(r#"{{"tokens": {{"access_token": "{CANARY}"}}}}"#).as_bytes())
            .expect("tokens");
        assert!(!format!("{identity:?}").contains(CANARY));
    }
}
