//! The responses to the challenge TLS-ALPN-01 (RFC 8737): a certificate for a client that asks for
//! the protocol `acme-tls/1`.
//!
//! Owns which challenges are open. Every listener with a certificate from an ACME server answers all
//! of them, because a certificate authority connects to the one at port 443.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};

use crate::values::hex::hex;

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
    name: String,
    certified: Arc<CertifiedKey>,
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
        let certified = Arc::new(CertifiedKey::new(vec![certificate], key));
        let name = presented_name(domain);
        OPEN.write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.clone(), Arc::clone(&certified));
        Ok(Self { name, certified })
    }
}

impl Drop for OpenAlpnChallenge {
    fn drop(&mut self) {
        let mut open = OPEN.write().unwrap_or_else(PoisonError::into_inner);
        // Another certificate of the same domain may have opened a later one.
        let is_own = |known: &Arc<CertifiedKey>| Arc::ptr_eq(known, &self.certified);
        if open.get(&self.name).is_some_and(is_own) {
            open.remove(&self.name);
        }
    }
}

/// Returns the name that a certificate authority asks for: of an address, that of its reverse
/// lookup (RFC 8738, section 6).
fn presented_name(domain: &str) -> String {
    match domain.parse() {
        Ok(IpAddr::V4(address)) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        Ok(IpAddr::V6(address)) => {
            let digits = hex(&address.octets());
            let reversed = digits.chars().rev().flat_map(|digit| [digit, '.']);
            reversed.chain("ip6.arpa".chars()).collect()
        }
        Err(_) => domain.to_owned(),
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
    fn addresses_are_asked_for_by_their_reverse_names() {
        for (domain, name) in [
            ("a.example", "a.example"),
            ("192.0.2.7", "7.2.0.192.in-addr.arpa"),
            (
                "2001:db8::1",
                "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            ),
        ] {
            assert_eq!(presented_name(domain), name);
        }
    }

    #[test]
    fn a_later_challenge_of_a_domain_stays_open_when_the_earlier_one_ends() {
        let is_open = || OPEN.read().expect("no panic").contains_key("twice.example");
        let earlier = OpenAlpnChallenge::open("twice.example", [1; 32]).expect("a certificate");
        let later = OpenAlpnChallenge::open("twice.example", [2; 32]).expect("a certificate");
        drop(earlier);
        assert!(is_open());
        drop(later);
        assert!(!is_open());
    }

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
