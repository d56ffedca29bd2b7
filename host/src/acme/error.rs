//! Why a certificate is not issued.

use std::path::Path;

use crate::values::limits::ACME_ORDER_TIMEOUT;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcmeError {
    /// The server rejected a request, or it could not be sent.
    #[error("{0}")]
    Server(#[from] instant_acme::Error),
    /// The server offers other challenges.
    #[error("{domain}: the server does not offer {challenge}")]
    NotOffered {
        /// The domain to validate.
        domain: String,
        /// The challenge that the configuration allows.
        challenge: &'static str,
    },
    /// The server did not find the answer to the challenge.
    #[error("{domain}: {challenge} failed: {reason}")]
    NotValidated {
        /// The domain that was validated.
        domain: String,
        /// The challenge that was tried.
        challenge: &'static str,
        /// The reason that the server gives.
        reason: String,
    },
    /// The gateway cannot answer the challenge.
    #[error("{challenge} cannot be answered: {reason}")]
    Unanswered {
        /// The challenge that was tried.
        challenge: &'static str,
        /// Why it cannot be answered.
        reason: String,
    },
    /// ZeroSSL issues no key of an external account.
    #[error("zerossl issues no key for the e-mail address: {reason}")]
    ExternalAccount {
        /// Why there is no key.
        reason: String,
    },
    /// A key cannot be made or read.
    #[error("key: {0}")]
    Key(#[from] rcgen::Error),
    /// A file of the account or the certificate cannot be used.
    #[error("{path}: {reason}")]
    File {
        /// The path of the file.
        path: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// The server was too slow.
    #[error("no certificate within {} s", ACME_ORDER_TIMEOUT.as_secs())]
    TimedOut,
}

impl AcmeError {
    /// Whether the server does not know the account (RFC 8555, section 6.7).
    pub(super) fn is_unknown_account(&self) -> bool {
        let Self::Server(instant_acme::Error::Api(problem)) = self else {
            return false;
        };
        problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:accountDoesNotExist")
    }

    pub(super) fn file(path: &Path, reason: impl Into<String>) -> Self {
        Self::File {
            path: path.display().to_string(),
            reason: reason.into(),
        }
    }
}
