//! Certificates made for the tests, and what trusts them.

use std::sync::{Arc, LazyLock};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
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
        let pem = params.self_signed(&key).expect("signs").pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// Signs a certificate for these host names and addresses.
    pub fn sign(&self, names: &[&str]) -> Certificate {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).expect("names");
        let pem = params.signed_by(&key, &self.issuer).expect("signs").pem();
        Certificate {
            pem,
            key: key.serialize_pem(),
        }
    }

    /// Returns a TLS client that trusts this authority, speaks `versions` and offers `alpn`.
    pub fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
    ) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("PEM"))
            .expect("a root");
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocol_names(alpn);
        TlsConnector::from(Arc::new(config))
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Certificate {
    /// Returns the settings of a TLS server with this certificate that accepts `alpn`.
    pub fn server(&self, alpn: &[&str]) -> Arc<ServerConfig> {
        let certificate = CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("PEM");
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(TLS_VERSIONS)
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
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
    pub(crate) server: Arc<ServerConfig>,
}

pub(crate) static UPSTREAM_TLS: LazyLock<UpstreamTls> = LazyLock::new(|| {
    let authority = Authority::new();
    let certificate = authority.sign(&["localhost", "127.0.0.1"]);
    UpstreamTls {
        root: authority.pem,
        server: certificate.server(&["h2", "http/1.1"]),
    }
});
