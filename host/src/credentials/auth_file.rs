//! auth.json, as Codex writes it: from its text to what the credential presents to upstream.
//!
//! Owns the format's rules. Does not know when the file is read. Invariant: no error quotes the
//! file's content.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::HeaderValue;
use serde::Deserialize;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::identity::{OAuthFacts, UpstreamIdentity};
use crate::files::{FileReadError, read_regular};
use crate::values::clock::Timestamp;
use crate::values::json::kind::json_kind;
use crate::values::limits::AUTH_FILE_BYTES;
use crate::values::secret::SecretString;

/// The claim of OpenAI's tokens that contains the account and its plan.
const OPENAI_CLAIM: &str = "https://api.openai.com/auth";

/// Expiry times beyond this, in Unix seconds, are nonsense.
const EXPIRY_MAX_S: f64 = 1e12;

/// Why an auth.json cannot be used. The operator must act: log in again, or repair the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthFileError {
    /// The file cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Unreadable {
        /// The path of the auth.json.
        path: PathBuf,
        /// What keeps it from being read.
        reason: FileReadError,
    },
    /// The file has no text.
    #[error("expected a JSON object, found an empty file")]
    Empty,
    /// The text ends in the middle of its JSON, as if the file was written in part.
    #[error("incomplete JSON: the file ends in the middle of a value")]
    Incomplete,
    /// The text is not JSON. The parser's own message could quote a secret, so only the position is
    /// kept.
    #[error("invalid JSON at line {line}, column {column}")]
    NotJson {
        /// The line, from 1.
        line: usize,
        /// The column in bytes, from 1.
        column: usize,
    },
    /// The JSON, or a value in it, has another type.
    #[error("{}expected {expected}, found {found}", prefix(place))]
    WrongType {
        /// The value's path; empty for the whole text.
        place: &'static str,
        /// The expected type, with its article.
        expected: &'static str,
        /// The type that was found, with its article.
        found: &'static str,
    },
    /// The file has neither tokens nor an API key.
    #[error("tokens: missing, and there is no OPENAI_API_KEY")]
    NoSecret,
    /// The tokens have no access token.
    #[error("tokens.access_token: missing")]
    NoAccessToken,
    /// A value has characters that no header field may hold.
    #[error("{place}: expected visible ASCII characters, found others")]
    NotSendable {
        /// The path of the value in the file, such as `tokens.access_token`.
        place: &'static str,
    },
}

fn prefix(place: &str) -> String {
    if place.is_empty() {
        String::new()
    } else {
        format!("{place}: ")
    }
}

/// Returns the text of the file at `path`.
///
/// # Errors
/// The file cannot be read.
pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, AuthFileError> {
    let text = read_regular(path, AUTH_FILE_BYTES).map(Zeroizing::new);
    text.map_err(|reason| AuthFileError::Unreadable {
        path: path.to_owned(),
        reason,
    })
}

fn not_json(text: &[u8], error: &serde_json::Error) -> AuthFileError {
    if error.is_eof() {
        return AuthFileError::Incomplete;
    }
    let (line, column) = (error.line(), error.column());
    if column > 0 {
        return AuthFileError::NotJson { line, column };
    }
    // serde_json reports the end of a line as column 0 of the next one.
    let mut lines = text.split(|byte| *byte == b'\n');
    let line = line.saturating_sub(1).max(1);
    let length = lines.nth(line - 1).map_or(0, <[u8]>::len);
    AuthFileError::NotJson {
        line,
        column: length + 1,
    }
}

/// Returns what a file with this text presents to upstream.
///
/// # Errors
/// The text is not a usable auth.json.
pub(super) fn parse(text: &[u8]) -> Result<UpstreamIdentity, AuthFileError> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Err(AuthFileError::Empty);
    }
    let value: Value = serde_json::from_slice(text).map_err(|error| not_json(text, &error))?;
    let Value::Object(object) = &value else {
        return Err(wrong_type("", "a JSON object", &value));
    };
    let mode = string(object, "auth_mode", "auth_mode")?;
    let key = string(object, "OPENAI_API_KEY", "OPENAI_API_KEY")?.filter(|key| !key.is_empty());
    let allows_key = mode.is_none_or(|mode| !mode.eq_ignore_ascii_case("chatgpt"));
    match key {
        Some(key) if allows_key => {
            UpstreamIdentity::api_key(&secret(key)).ok_or(AuthFileError::NotSendable {
                place: "OPENAI_API_KEY",
            })
        }
        _ => parse_tokens(object),
    }
}

fn parse_tokens(object: &Map<String, Value>) -> Result<UpstreamIdentity, AuthFileError> {
    let tokens = match object.get("tokens") {
        Some(Value::Object(tokens)) => tokens,
        None | Some(Value::Null) => return Err(AuthFileError::NoSecret),
        Some(other) => return Err(wrong_type("tokens", "an object", other)),
    };
    let access_token = string(tokens, "access_token", "tokens.access_token")?
        .filter(|token| !token.is_empty())
        .ok_or(AuthFileError::NoAccessToken)?;
    let id_token = string(tokens, "id_token", "tokens.id_token")?;
    let refresh_token = string(tokens, "refresh_token", "tokens.refresh_token")?;
    let refreshed_at =
        string(object, "last_refresh", "last_refresh")?.and_then(Timestamp::from_rfc3339);
    let facts = OAuthFacts {
        account_id: account_id(tokens, id_token, access_token)?,
        plan: openai_claim(id_token, access_token, "chatgpt_plan_type"),
        expires_at: jwt_expiry(access_token),
        refreshed_at,
        has_refresh_token: refresh_token.is_some_and(|token| !token.is_empty()),
    };
    UpstreamIdentity::oauth(&secret(access_token), facts).ok_or(AuthFileError::NotSendable {
        place: "tokens.access_token",
    })
}

fn account_id(
    tokens: &Map<String, Value>,
    id_token: Option<&str>,
    access_token: &str,
) -> Result<Option<HeaderValue>, AuthFileError> {
    let account = string(tokens, "account_id", "tokens.account_id")?
        .filter(|account| !account.is_empty())
        .map(str::to_owned)
        .or_else(|| openai_claim(id_token, access_token, "chatgpt_account_id"));
    account
        .map(|account| HeaderValue::from_str(&account))
        .transpose()
        .map_err(|_| AuthFileError::NotSendable {
            place: "tokens.account_id",
        })
}

/// Returns the refresh token in the text of an auth.json, if there is one.
pub(super) fn refresh_token(text: &[u8]) -> Option<Zeroizing<String>> {
    #[derive(Deserialize)]
    struct AuthFile {
        tokens: AuthFileTokens,
    }
    #[derive(Deserialize)]
    struct AuthFileTokens {
        refresh_token: Zeroizing<String>,
    }
    let file: AuthFile = serde_json::from_slice(text).ok()?;
    Some(file.tokens.refresh_token).filter(|token| !token.is_empty())
}

fn secret(text: &str) -> SecretString {
    SecretString::new(text.to_owned())
}

/// Returns the string under `key`; `None` if it is missing or null.
fn string<'a>(
    object: &'a Map<String, Value>,
    key: &str,
    place: &'static str,
) -> Result<Option<&'a str>, AuthFileError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(wrong_type(place, "a string", other)),
    }
}

fn wrong_type(place: &'static str, expected: &'static str, found: &Value) -> AuthFileError {
    AuthFileError::WrongType {
        place,
        expected,
        found: json_kind(found),
    }
}

/// Returns one of OpenAI's claims, from the id token or else the access token (JWTs, RFC 7519).
/// Signatures are not checked: upstream does that, and these claims grant nothing here.
fn openai_claim(id_token: Option<&str>, access_token: &str, name: &str) -> Option<String> {
    let of_token = |token: &str| {
        let claims = jwt_claims(token)?;
        Some(claims.get(OPENAI_CLAIM)?.get(name)?.as_str()?.to_owned())
    };
    id_token
        .and_then(of_token)
        .or_else(|| of_token(access_token))
}

/// Returns when a JWT expires (RFC 7519, section 4.1.4); `None` if the token is not a JWT or does
/// not say.
fn jwt_expiry(token: &str) -> Option<Timestamp> {
    let seconds = jwt_claims(token)?
        .get("exp")?
        .as_f64()
        .filter(|seconds| (0.0..EXPIRY_MAX_S).contains(seconds))?;
    Some(Timestamp((seconds * 1e3) as u64))
}

fn jwt_claims(token: &str) -> Option<Value> {
    let payload = token.split('.').nth(1)?;
    let payload = BASE64_URL_SAFE_NO_PAD
        .decode(payload.trim_end_matches('='))
        .ok()?;
    serde_json::from_slice(&payload).ok()
}

#[cfg(test)]
mod tests {
    use super::super::identity::CredentialKind;
    use super::*;

    const CANARY: &str = "canary-secret";

    #[track_caller]
    fn check_error(text: &str, expected: &str) {
        let error = parse(text.as_bytes())
            .expect_err("not a usable file")
            .to_string();
        assert!(error.contains(expected), "{error:?} has no {expected:?}");
        assert!(!error.contains(CANARY), "{error:?}");
    }

    #[test]
    fn every_mistake_is_named_and_none_is_quoted() {
        check_error("", "empty file");
        check_error("[]", "expected a JSON object, found an array");
        check_error(
            &format!(r#"{{"tokens": {{"access_token": "{CANARY}"#),
            "incomplete JSON: the file ends",
        );
        check_error(
            &format!(r#"{{"tokens": {CANARY}}}"#),
            "invalid JSON at line 1, column",
        );
        // A line that ends within a string.
        check_error(
            &format!("{{\n\"{CANARY}\n\": 1}}"),
            &format!("invalid JSON at line 2, column {}", CANARY.len() + 2),
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
            "tokens.access_token: expected a string, found an array",
        );
        check_error(
            &format!(r#"{{"OPENAI_API_KEY": "{CANARY}\n"}}"#),
            "visible ASCII",
        );
    }

    #[test]
    fn a_key_is_used_unless_the_mode_is_chatgpt() {
        let key = parse(br#"{"OPENAI_API_KEY": "sk-1"}"#).expect("a key");
        assert_eq!(key.kind(), CredentialKind::ApiKey);
        let both = br#"{"auth_mode": "chatgpt", "OPENAI_API_KEY": "sk-1", "tokens": {"access_token": "t"}}"#;
        assert_eq!(parse(both).expect("tokens").kind(), CredentialKind::OAuth);
    }

    #[test]
    fn account_and_plan_are_read_from_the_tokens_claims() {
        let claims = BASE64_URL_SAFE_NO_PAD
            .encode(br#"{"https://api.openai.com/auth":{"chatgpt_plan_type":"pro","chatgpt_account_id":"acc"}}"#);
        let file = format!(r#"{{"tokens": {{"access_token": "x.{claims}.y"}}}}"#);
        let identity = parse(file.as_bytes()).expect("tokens");
        assert_eq!(identity.plan(), Some("pro"));
        assert_eq!(identity.account_id().expect("an account"), "acc");
    }

    #[test]
    fn expiry_is_read_from_a_jwt_and_unknown_for_other_tokens() {
        let expiry = |access: &str| {
            let file = format!(r#"{{"tokens": {{"access_token": "{access}"}}}}"#);
            parse(file.as_bytes()).expect("tokens").expires_at()
        };
        let jwt = |claims: &str| format!("x.{}.y", BASE64_URL_SAFE_NO_PAD.encode(claims));
        assert_eq!(
            expiry(&jwt(r#"{"exp": 1700000000}"#)),
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
            assert_eq!(expiry(none), None, "{none}");
        }
    }

    #[test]
    fn debug_shows_no_token() {
        let file = format!(r#"{{"tokens": {{"access_token": "{CANARY}"}}}}"#);
        let identity = parse(file.as_bytes()).expect("tokens");
        assert!(!format!("{identity:?}").contains(CANARY));
    }
}
