//! The responses to the challenge TLS-ALPN-01 (RFC 8737): a certificate for a client that asks for
//! the protocol `acme-tls/1`.
//!
//! Owns which challenges are open. Any listener of the process answers them, because a certificate
//! authority connects to the one at port 443.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};

/// The protocol that a certificate authority asks for.
const ACME_PROTOCOL: &[u8] = b"acme-tls/1";

static OPEN: LazyLock<RwLock<HashMap<String, Arc<CertifiedKey>>>> = LazyLock::new(RwLock::default);

/// Why a challenge cannot be answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AlpnChallengeError {
    /// The certificate cannot be made.
    #[error("{0}")]
    Certificate(#[from] rcgen::Error),
    /// The certificate cannot be presented.
    #[error("{0}")]
    Key(#[from] rustls::Error),
}

/// A challenge that is answered until this is dropped.
#[derive(Debug)]
pub(crate) struct OpenAlpnChallenge {
    domain: String,
}

impl OpenAlpnChallenge {
    /// Responds to the challenge of `domain` by a certificate with `digest`.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub(crate) fn open(domain: &str, digest: [u8; 32]) -> Result<Self, AlpnChallengeError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([domain.to_owned()])?;
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(&digest)];
        let certificate = params.self_signed(&key)?.der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        // rustls cannot compare the key with the certificate: it rejects critical extensions that it
        // does not know, and RFC 8737 requires that this one is critical.
        let key = default_provider().key_provider.load_private_key(key)?;
        let certified = CertifiedKey::new(vec![certificate], key);
        OPEN.write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(domain.to_owned(), Arc::new(certified));
        Ok(Self {
            domain: domain.to_owned(),
        })
    }
}

impl Drop for OpenAlpnChallenge {
    fn drop(&mut self) {
        OPEN.write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.domain);
    }
}

/// Returns whether the client validates a domain.
pub(super) fn is_challenge(hello: &ClientHello<'_>) -> bool {
    hello
        .alpn()
        .is_some_and(|mut protocols| protocols.any(|protocol| protocol == ACME_PROTOCOL))
}

/// Returns the settings for clients that validate a domain: they present no certificate, whatever
/// other clients must do.
pub(super) fn challenge_settings() -> Result<ServerConfig, rustls::Error> {
    let mut settings = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS12, &TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(OpenChallenges));
    settings.alpn_protocols = vec![ACME_PROTOCOL.to_vec()];
    Ok(settings)
}

/// Presents the certificate of the challenge of the domain that a client names.
#[derive(Debug)]
struct OpenChallenges;

impl ResolvesServerCert for OpenChallenges {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let domain = hello.server_name()?;
        OPEN.read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(domain)
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_open_until_it_is_dropped() {
        let is_open = || OPEN.read().expect("no panic").contains_key("unit.example");
        let open = OpenAlpnChallenge::open("unit.example", [7; 32]).expect("a certificate");
        assert!(is_open());
        let presented = OPEN.read().expect("no panic")["unit.example"].cert[0].to_vec();
        assert!(memchr::memmem::find(&presented, &[7; 32]).is_some());
        drop(open);
        assert!(!is_open());
    }
}
