//! Handshakes in memory, with a client that has the same key exchanges.

use std::sync::Arc;

use rustls::crypto::ring::{default_provider, kx_group};
use rustls::crypto::{ActiveKeyExchange, CryptoProvider, SupportedKxGroup};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, NamedGroup, RootCertStore, SupportedProtocolVersion};
use tokio_rustls::TlsConnector;

use super::hybrid::X25519MlKem768;
use super::*;
use crate::config::{ConfigPath, KeyExchange, PemContent, PemSource, Tls12Suite, TlsVersion};
use crate::values::secret::SecretString;

/// Returns settings with a certificate in `config` itself, and that certificate.
fn config_offering(
    offered: &[KeyExchange],
    versions: (TlsVersion, TlsVersion),
) -> (TlsConfig, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let source = |text: String| PemSource {
        field: ConfigPath::root(),
        content: PemContent::Inline(SecretString::new(text)),
    };
    let config = TlsConfig {
        certificate: source(made.cert.pem()),
        key: source(made.signing_key.serialize_pem()),
        acme: None,
        server_name: None,
        alpn: Vec::new(),
        min_version: versions.0,
        max_version: versions.1,
        tls12_suites: Tls12Suite::ALL.to_vec(),
        key_exchanges: offered.to_vec(),
        client_authentication: None,
        handshake_timeout: None,
    };
    (config, made.cert.pem())
}

/// Returns the key exchange of a handshake between a server with `offered` and a client with
/// `groups`, the preferred one first.
async fn agreed(
    offered: &[KeyExchange],
    groups: Vec<&'static dyn SupportedKxGroup>,
) -> Option<NamedGroup> {
    let both = (TlsVersion::V1_2, TlsVersion::V1_3);
    agreed_by(offered, both, groups, &[&TLS12, &TLS13]).await
}

/// As [`agreed`], with these versions of the server and of the client.
async fn agreed_by(
    offered: &[KeyExchange],
    versions: (TlsVersion, TlsVersion),
    groups: Vec<&'static dyn SupportedKxGroup>,
    client_versions: &[&'static SupportedProtocolVersion],
) -> Option<NamedGroup> {
    let (config, certificate) = config_offering(offered, versions);
    let server = TlsServer::load(&config, Duration::from_secs(10)).expect("a server");
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM");
    roots.add(root).expect("a root");
    let provider = CryptoProvider {
        kx_groups: groups,
        ..default_provider()
    };
    let client = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(client_versions)
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (near, far) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from("localhost").expect("a name");
    let connector = TlsConnector::from(Arc::new(client));
    let (accepted, connected) = tokio::join!(server.accept(far), connector.connect(name, near));
    accepted.ok()?;
    let stream = connected.ok()?;
    let group = stream.get_ref().1.negotiated_key_exchange_group()?;
    Some(group.name())
}

#[tokio::test]
async fn the_hybrid_key_exchange_is_preferred_whatever_the_clients_order_is() {
    let hybrid: &'static dyn SupportedKxGroup = &X25519MlKem768;
    for groups in [
        vec![hybrid, kx_group::X25519],
        vec![kx_group::X25519, hybrid],
    ] {
        assert_eq!(
            agreed(&KeyExchange::ALL, groups.clone()).await,
            Some(NamedGroup::X25519MLKEM768)
        );
        assert_eq!(
            agreed(&[KeyExchange::X25519], groups).await,
            Some(NamedGroup::X25519)
        );
    }
}

#[tokio::test]
async fn clients_without_the_hybrid_key_exchange_use_another_one() {
    for (group, name) in [
        (kx_group::X25519, NamedGroup::X25519),
        (kx_group::SECP256R1, NamedGroup::secp256r1),
    ] {
        assert_eq!(agreed(&KeyExchange::ALL, vec![group]).await, Some(name));
    }
    let only_hybrid = agreed(&[KeyExchange::X25519MlKem768], vec![kx_group::X25519]);
    assert_eq!(only_hybrid.await, None);
}

/// A client's hybrid key exchange that is named even if the client speaks TLS 1.2 alone.
#[derive(Debug)]
struct NamedAnyway;

impl SupportedKxGroup for NamedAnyway {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        X25519MlKem768.start()
    }

    fn name(&self) -> NamedGroup {
        X25519MlKem768.name()
    }

    fn usable_for_version(&self, _: rustls::ProtocolVersion) -> bool {
        true
    }
}

/// The hybrid is a group of TLS 1.3 alone, and clients name it whatever version comes of it.
#[tokio::test]
async fn clients_that_offer_the_hybrid_key_exchange_connect_with_every_version() {
    let hybrid: &'static dyn SupportedKxGroup = &NamedAnyway;
    let (v2, v3) = (TlsVersion::V1_2, TlsVersion::V1_3);
    let (only2, only3, both): (&[_], &[_], &[_]) = (&[&TLS12], &[&TLS13], &[&TLS12, &TLS13]);
    let (plain, preferred) = (NamedGroup::X25519, NamedGroup::X25519MLKEM768);
    for (versions, client, expected) in [
        ((v2, v2), only2, Some(plain)),
        ((v2, v2), both, Some(plain)),
        ((v2, v3), only2, Some(plain)),
        ((v2, v3), only3, Some(preferred)),
        ((v2, v3), both, Some(preferred)),
        ((v3, v3), both, Some(preferred)),
        ((v3, v3), only2, None),
    ] {
        let groups = vec![hybrid, kx_group::X25519];
        let agreed = agreed_by(&KeyExchange::ALL, versions, groups, client).await;
        assert_eq!(
            agreed, expected,
            "{versions:?} and a client with {client:?}"
        );
    }
}
