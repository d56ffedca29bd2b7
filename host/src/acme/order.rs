//! An order of a certificate: its domains are validated, then it is issued.

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Identifier, NewOrder, Order, OrderStatus,
    RetryPolicy,
};
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ED25519,
};

use super::error::AcmeError;
use crate::config::{AcmeChallenge, AcmeConfig, CertificateKeyType};
use crate::values::limits::ACME_ORDER_TIMEOUT;

/// The pause before the server is asked for the first time. It doubles from then on.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

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

/// Returns how often the server is asked whether it is done.
fn polling() -> RetryPolicy {
    RetryPolicy::new()
        .initial_delay(FIRST_PAUSE)
        .timeout(ACME_ORDER_TIMEOUT)
}

/// Orders a certificate and has its domains validated.
pub(super) async fn prepare<P>(
    account: &Account,
    config: &AcmeConfig,
    challenge: AcmeChallenge,
    present: impl Fn(ChallengeAnswer) -> Result<P, AcmeError>,
) -> Result<Order, AcmeError> {
    let identifiers: Vec<Identifier> = config.domains.iter().map(|name| identifier(name)).collect();
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
    // Presented until the order is ready.
    let mut presented = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let domain = authorization.identifier().to_string();
        let Some(mut open) = authorization.challenge(challenge_type(challenge)) else {
            return Err(AcmeError::NotOffered {
                domain,
                challenge: challenge.name(),
            });
        };
        let key_authorization = open.key_authorization();
        let answer = match challenge {
            AcmeChallenge::Http { .. } => ChallengeAnswer::Http {
                token: open.token.clone(),
                key_authorization: key_authorization.as_str().to_owned(),
            },
            AcmeChallenge::TlsAlpn { .. } => ChallengeAnswer::TlsAlpn {
                domain,
                digest: sha256(key_authorization.digest().as_ref()),
            },
        };
        presented.push(present(answer)?);
        open.set_ready().await?;
    }
    match order.poll_ready(&polling()).await? {
        OrderStatus::Ready | OrderStatus::Valid | OrderStatus::Processing => Ok(order),
        OrderStatus::Pending | OrderStatus::Invalid => {
            Err(failed_validation(&mut order, challenge).await)
        }
    }
}

fn identifier(name: &str) -> Identifier {
    match name.parse() {
        Ok(address) => Identifier::Ip(address),
        Err(_) => Identifier::Dns(name.to_owned()),
    }
}

fn challenge_type(challenge: AcmeChallenge) -> ChallengeType {
    match challenge {
        AcmeChallenge::TlsAlpn { .. } => ChallengeType::TlsAlpn01,
        AcmeChallenge::Http { .. } => ChallengeType::Http01,
    }
}

fn sha256(digest: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest);
    bytes
}

/// Returns the server's reason for an order that became invalid.
async fn failed_validation(order: &mut Order, challenge: AcmeChallenge) -> AcmeError {
    let mut domain = String::new();
    let mut reason = "the order is invalid".to_owned();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        // The answer that the order began with is outdated.
        if authorization.refresh().await.is_err() {
            continue;
        }
        let failed = authorization
            .challenges
            .iter()
            .find_map(|challenge| challenge.error.as_ref());
        if let Some(problem) = failed {
            reason = problem.to_string();
            domain = authorization.identifier().to_string();
        }
    }
    AcmeError::NotValidated {
        domain,
        challenge: challenge.name(),
        reason,
    }
}

/// Has the certificate of `order` issued for a new key. Returns both in PEM, the key first.
pub(super) async fn chain(order: &mut Order, config: &AcmeConfig) -> Result<String, AcmeError> {
    let algorithm = match config.key_type {
        CertificateKeyType::P256 => &PKCS_ECDSA_P256_SHA256,
        CertificateKeyType::P384 => &PKCS_ECDSA_P384_SHA384,
        CertificateKeyType::Ed25519 => &PKCS_ED25519,
    };
    let key = KeyPair::generate_for(algorithm)?;
    let mut params = CertificateParams::new(config.domains.clone())?;
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key)?;
    order.finalize_csr(request.der()).await?;
    let chain = order.poll_certificate(&polling()).await?;
    Ok(format!("{}{chain}", key.serialize_pem()))
}
