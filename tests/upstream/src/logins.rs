//! Logins: families of refresh tokens, the tokens themselves, and what the token endpoint answers.

pub(crate) mod login;
pub(crate) mod token_reply;
pub(crate) mod tokens;
