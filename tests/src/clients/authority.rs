//! Certificates made for the tests, and what trusts them.

use std::ops::Range;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer,
    KeyPair,
};
use rustls::client::WantsClientCert;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, SupportedProtocolVersion};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio_rustls::TlsConnector;

/// The supported versions of TLS.
pub const TLS_VERSIONS: &[&SupportedProtocolVersion] = &[&TLS12, &TLS13];

/// A certificate authority that issues certificates for tests.
pub struct Authority {
    /// The authority's certificate, in PEM.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
pub struct Certificate {
    /// The certificate, without the authority's.
    pub pem: String,
    /// The private key that belongs to it.
    pub key: String,
}

impl Authority {
    /// Creates an authority that nothing trusts yet.
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Another name than that of the certificates that it signs, which is a default.
        params
            .distinguished_name
            .push(DnType::CommonName, "authority of a test");
        let pem = params.self_signed(&key).expect("signs").pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// Signs a certificate for these host names and addresses.
    pub fn sign(&self, names: &[&str]) -> Certificate {
        self.sign_changed(names, |_| {})
    }

    /// Signs a certificate for these names that is valid in these years.
    pub fn sign_for_years(&self, names: &[&str], years: Range<i32>) -> Certificate {
        self.sign_changed(names, |params| {
            params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
            params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        })
    }

    fn sign_changed(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Certificate {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        let pem = params.signed_by(&key, &self.issuer).expect("signs").pem();
        Certificate {
            pem,
            key: key.serialize_pem(),
        }
    }

    /// Signs a request (PKCS#10, in DER) for a certificate that is valid for `lifetime` since it was
    /// `age` ago. Returns the chain, in PEM.
    pub(crate) fn sign_request(&self, request: &[u8], lifetime: Duration, age: Duration) -> String {
        let mut request =
            CertificateSigningRequestParams::from_der(&request.to_vec().into()).expect("a request");
        request.params.not_before = OffsetDateTime::now_utc() - age;
        request.params.not_after = request.params.not_before + lifetime;
        let signed = request.signed_by(&self.issuer).expect("signs");
        signed.pem() + &self.pem
    }

    /// Returns a TLS client that trusts this authority, speaks `versions` and offers `alpn`.
    pub fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
    ) -> TlsConnector {
        let mut config = self.trusting(versions).with_no_client_auth();
        config.alpn_protocols = protocol_names(alpn);
        TlsConnector::from(Arc::new(config))
    }

    /// As [`Authority::client`], with a client that presents `certificate`.
    ///
    /// # Panics
    /// Panics if the certificate and its key do not belong together.
    pub fn client_presenting(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
        certificate: &Certificate,
    ) -> TlsConnector {
        let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).expect("PEM");
        let mut config = self
            .trusting(versions)
            .with_client_auth_cert(vec![certificate.der()], key)
            .expect("a certificate and its key");
        config.alpn_protocols = protocol_names(alpn);
        TlsConnector::from(Arc::new(config))
    }

    fn trusting(
        &self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ConfigBuilder<ClientConfig, WantsClientCert> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("PEM"))
            .expect("a root");
        ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots)
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Certificate {
    /// Returns the SHA-256 digest of its public key, in base64.
    ///
    /// # Panics
    /// Panics if it is not a certificate.
    pub fn public_key_sha256(&self) -> String {
        let certificate = self.der();
        let parsed = ParsedCertificate::try_from(&certificate).expect("a certificate");
        STANDARD.encode(Sha256::digest(parsed.subject_public_key_info()))
    }

    fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("PEM")
    }

    /// Returns the settings of a TLS server with this certificate that accepts `alpn`.
    pub fn server(&self, alpn: &[&str]) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("PEM");
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(TLS_VERSIONS)
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![self.der()], key)
            .expect("a certificate");
        config.alpn_protocols = protocol_names(alpn);
        Arc::new(config)
    }
}

fn protocol_names(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.as_bytes().to_vec()).collect()
}

/// The TLS settings of scripted upstreams, made once a process.
pub(crate) struct UpstreamTls {
    /// The certificate that the gateway must trust.
    pub(crate) root: String,
    pub(crate) certificate: Certificate,
    pub(crate) server: Arc<ServerConfig>,
}

pub(crate) static UPSTREAM_TLS: LazyLock<UpstreamTls> = LazyLock::new(|| {
    let authority = Authority::new();
    let certificate = authority.sign(&["localhost", "127.0.0.1"]);
    UpstreamTls {
        root: authority.pem,
        server: certificate.server(&["h2", "http/1.1"]),
        certificate,
    }
});
