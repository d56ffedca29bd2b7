//! Handshakes in memory, with a client that has the same key exchanges.

use std::sync::Arc;

use rustls::crypto::ring::{default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, NamedGroup, RootCertStore};
use tokio_rustls::TlsConnector;

use super::hybrid::X25519MlKem768;
use super::*;
use crate::config::{ConfigPath, KeyExchange, PemContent, PemSource, Tls12Suite, TlsVersion};
use crate::values::secret::SecretString;

/// Returns the key exchange of a handshake between a server with `offered` and a client with
/// `groups`, the preferred one first.
async fn agreed(
    offered: &[KeyExchange],
    groups: Vec<&'static dyn SupportedKxGroup>,
) -> Option<NamedGroup> {
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
        min_version: TlsVersion::V1_2,
        max_version: TlsVersion::V1_3,
        tls12_suites: Tls12Suite::ALL.to_vec(),
        key_exchanges: offered.to_vec(),
        client_authentication: None,
        handshake_timeout: None,
    };
    let server = TlsServer::load(&config, Duration::from_secs(10)).expect("a server");
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(made.cert.pem().as_bytes()).expect("PEM");
    roots.add(root).expect("a root");
    let provider = CryptoProvider {
        kx_groups: groups,
        ..default_provider()
    };
    let client = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
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
