//! What an operator on a listener may do.

use http::header::{AUTHORIZATION, HeaderMap};

use crate::values::headers::bearer_token;
use crate::values::secret::SecretString;

/// Who may use a listener.
#[derive(Debug, Clone)]
pub(crate) enum AdminAccess {
    /// Every connection may change things: the socket's mode has let in only its owner.
    Owner,
    /// Requests with this token may change things, others may do nothing.
    Token(SecretString),
    /// Every request may read.
    ReadOnly,
}

/// What one request may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AdminPermissions {
    None,
    Read,
    ReadAndChange,
}

impl AdminAccess {
    /// The access over TCP, with the `admin.token` of the configuration.
    pub(crate) fn over_tcp(token: Option<SecretString>) -> Self {
        token.map_or(Self::ReadOnly, Self::Token)
    }

    pub(super) fn permissions(&self, headers: &HeaderMap) -> AdminPermissions {
        match self {
            Self::Owner => AdminPermissions::ReadAndChange,
            Self::ReadOnly => AdminPermissions::Read,
            Self::Token(token) if presents(headers, token) => AdminPermissions::ReadAndChange,
            Self::Token(_) => AdminPermissions::None,
        }
    }
}

/// Whether the headers carry `token`. [`SecretString`] compares in constant time.
fn presents(headers: &HeaderMap, token: &SecretString) -> bool {
    let presented = headers.get(AUTHORIZATION).and_then(bearer_token);
    presented.is_some_and(|presented| SecretString::new(presented.to_owned()) == *token)
}
