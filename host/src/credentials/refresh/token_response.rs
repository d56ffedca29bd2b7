//! The token endpoint's responses, and what each means for the refresh token that was presented.

use std::fmt;
use std::time::Duration;

use serde_json::Value;
use zeroize::Zeroizing;

use super::new_tokens::NewTokens;

/// Error codes that end in these mean that the refresh token is of no use any more.
const FINAL_CODE_ENDINGS: [&str; 3] = ["_reused", "_expired", "_invalidated"];

/// The longest error code that is repeated in a message.
const CODE_BYTES_MAX: usize = 64;

/// What the token endpoint answered. Its `Debug` does not print the body, which holds new tokens.
pub struct TokenResponse {
    /// The HTTP status code of the response.
    pub status: u16,
    /// The pause that `Retry-After` asks for.
    pub retry_after: Option<Duration>,
    /// The whole body, whose size the caller has bounded.
    pub body: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for TokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenResponse")
            .field("status", &self.status)
            .field("retry_after", &self.retry_after)
            .finish_non_exhaustive()
    }
}

/// Why the token endpoint did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenRequestError {
    /// The request was not sent: the refresh token is unspent.
    #[error("{0}")]
    NotSent(String),
    /// The request may have been received: the refresh token may be spent.
    #[error("{0}")]
    Lost(String),
}

/// What a response means for the refresh token that was presented.
pub(super) enum TokenVerdict {
    /// It is spent for these.
    Issued(NewTokens),
    /// It may be spent, and no tokens came.
    Uncertain { reason: String },
    /// The endpoint rejected it for good.
    Rejected { reason: String },
    /// The endpoint failed without spending it.
    Unspent { reason: String },
}

impl TokenResponse {
    pub(super) fn verdict(&self) -> TokenVerdict {
        let status = self.status;
        let code = error_code(&self.body);
        let reason = match &code {
            Some(code) => format!("the token endpoint answered {status} {code}"),
            None => format!("the token endpoint answered {status}"),
        };
        match status {
            200..300 => match NewTokens::parse(&self.body) {
                Some(tokens) => TokenVerdict::Issued(tokens),
                None => TokenVerdict::Uncertain {
                    reason: format!("{reason} without tokens"),
                },
            },
            401 => TokenVerdict::Rejected { reason },
            400..500 if code.as_deref().is_some_and(is_final) => TokenVerdict::Rejected { reason },
            // A proxy answered: the endpoint itself may have received the token.
            502 | 504 => TokenVerdict::Uncertain { reason },
            _ => TokenVerdict::Unspent { reason },
        }
    }
}

fn is_final(code: &str) -> bool {
    code == "invalid_grant"
        || FINAL_CODE_ENDINGS
            .iter()
            .any(|ending| code.ends_with(ending))
}

/// Returns the code of an error, in the forms of OpenAI (`{"error": {"code"}}`) and of RFC 6749
/// (`{"error"}`). Text that does not look like a code is dropped: it could contain a secret.
fn error_code(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let error = value.get("error");
    let code = error
        .and_then(|error| error.get("code"))
        .or(error)
        .or_else(|| value.get("code"))?
        .as_str()?;
    let is_code = (1..=CODE_BYTES_MAX).contains(&code.len())
        && code
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    is_code.then(|| code.to_owned())
}
