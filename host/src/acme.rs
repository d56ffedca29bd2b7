//! Certificates from an ACME server (RFC 8555).
//!
//! Owns the account, the order of a certificate, and the files of both. Does not know how a
//! challenge is answered on the network, or who presents the certificate. Invariant: a certificate's
//! file holds its key and its whole chain, and is replaced in one step.

mod account;
mod fetch;
mod order;

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use tokio::time::timeout;

use self::account::account;
use self::order::{chain, prepare};
use crate::config::{AcmeChallenge, AcmeConfig};
use crate::files::{io_reason, parent_folder, replace_private};
use crate::values::limits::ACME_ORDER_TIMEOUT;

pub(crate) use self::fetch::{AcmeFetch, AcmeFetchError};

/// The mode of the folder of accounts and certificates.
const FOLDER_MODE: u32 = 0o700;

/// What the ACME server looks for while it validates a domain.
#[derive(Debug, Clone)]
pub(crate) enum ChallengeAnswer {
    /// A file at `/.well-known/acme-challenge/` over HTTP.
    Http {
        /// The name of the file.
        token: String,
        /// The content of the file.
        key_authorization: String,
    },
    /// A certificate that is presented if a client asks for the protocol `acme-tls/1`.
    TlsAlpn {
        /// The domain that the client names.
        domain: String,
        /// What the extension `acmeIdentifier` of the certificate contains.
        digest: [u8; 32],
    },
}

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
    fn file(path: &Path, reason: impl Into<String>) -> Self {
        Self::File {
            path: path.display().to_string(),
            reason: reason.into(),
        }
    }
}

/// Obtains a certificate and stores it. `present` answers a challenge until what it returns is
/// dropped.
///
/// # Errors
/// There is no certificate.
pub(crate) async fn issue<P>(
    config: &AcmeConfig,
    challenge: AcmeChallenge,
    fetch: AcmeFetch,
    present: impl Fn(ChallengeAnswer) -> Result<P, AcmeError>,
) -> Result<(), AcmeError> {
    let issuing = async {
        let account = account(config, fetch).await?;
        let mut order = prepare(&account, config, challenge, present).await?;
        chain(&mut order, config).await
    };
    let text = timeout(ACME_ORDER_TIMEOUT, issuing)
        .await
        .map_err(|_| AcmeError::TimedOut)??;
    store(&config.certificate_path, text.as_bytes())
}

/// Writes a file that only its owner may read, in a folder that may not exist yet.
fn store(path: &Path, content: &[u8]) -> Result<(), AcmeError> {
    let folder = DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(parent_folder(path));
    folder
        .and_then(|()| replace_private(path, content))
        .map_err(|error: io::Error| AcmeError::file(path, io_reason(&error)))
}
