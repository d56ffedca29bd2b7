//! Certificates from an ACME server (RFC 8555).
//!
//! Owns the account, the order of a certificate, and the files of both. Does not know how a
//! challenge is answered on the network, or who presents the certificate. Invariant: a certificate's
//! file holds its key and its whole chain, and is replaced in one step.

mod account;
mod error;
mod external_account;
mod fetch;
mod files;
mod order;

use std::sync::Arc;

use tokio::time::timeout;

use self::account::{account, forget};
use self::files::store;
use self::order::{chain, prepare};
use crate::config::{AcmeChallenge, AcmeConfig};
use crate::values::limits::ACME_ORDER_TIMEOUT;

pub(crate) use self::error::AcmeError;
pub(crate) use self::fetch::{AcmeFetch, AcmeFetchError};
pub(crate) use self::order::ChallengeAnswer;

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
        let known = account(config, Arc::clone(&fetch)).await?;
        let mut order = match prepare(&known, config, challenge, &present).await {
            Err(error) if error.is_unknown_account() => {
                forget(config, known.id()).await?;
                let new = account(config, fetch).await?;
                prepare(&new, config, challenge, &present).await?
            }
            prepared => prepared?,
        };
        chain(&mut order, config).await
    };
    let text = timeout(ACME_ORDER_TIMEOUT, issuing)
        .await
        .map_err(|_| AcmeError::TimedOut)??;
    store(&config.certificate_path, text.as_bytes())
}
