//! TLS towards clients.
//!
//! Owns the server's rustls settings and its handshakes; refuses to know what is spoken inside.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::{Problem, TlsConfig, TlsVersion};

/// A client's connection, once hands were shaken.
pub type Connection = TlsStream<TcpStream>;

/// A handshake that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It took longer than `limits.handshake_timeout`.
    #[error("tls handshake: timed out")]
    TimedOut,
    /// The client and the gateway did not agree.
    #[error("tls handshake: {0}")]
    Failed(std::io::Error),
}

/// Makes TLS out of connections.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    handshake_timeout: Duration,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// # Errors
    /// The certificate or the key cannot be used, at its place in the configuration.
    pub fn new(config: &TlsConfig, handshake_timeout: Duration) -> Result<Self, Problem> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(&config.certificate)
                .collect::<Result<_, _>>()
                .map_err(|_| {
                    Problem::new(
                        &config.certificate_from,
                        "expected certificates in PEM, found something else",
                    )
                })?;
        if chain.is_empty() {
            return Err(Problem::new(
                &config.certificate_from,
                "expected certificates in PEM, found none",
            ));
        }
        let key = PrivateKeyDer::from_pem_slice(config.key.expose().as_bytes()).map_err(|_| {
            Problem::new(
                &config.key_from,
                "expected a private key in PEM, found none",
            )
        })?;
        let versions: Vec<&'static rustls::SupportedProtocolVersion> = [
            (TlsVersion::V1_2, &rustls::version::TLS12),
            (TlsVersion::V1_3, &rustls::version::TLS13),
        ]
        .into_iter()
        .filter(|(version, _)| (config.min_version..=config.max_version).contains(version))
        .map(|(_, version)| version)
        .collect();
        let mut server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&versions)
            .map_err(|error| Problem::new(&config.certificate_from, error.to_string()))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| unusable(config, &error))?;
        server.alpn_protocols.clone_from(&config.alpn);
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            handshake_timeout,
        })
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// It failed, or took too long.
    pub async fn accept(&self, stream: TcpStream) -> Result<Connection, HandshakeError> {
        match timeout(self.handshake_timeout, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(HandshakeError::Failed(error)),
            Err(_) => Err(HandshakeError::TimedOut),
        }
    }
}

fn unusable(config: &TlsConfig, error: &rustls::Error) -> Problem {
    match error {
        rustls::Error::InvalidCertificate(_) => Problem::new(
            &config.certificate_from,
            "expected certificates in PEM, found one that cannot be read",
        ),
        rustls::Error::InconsistentKeys(_) => Problem::new(
            &config.key_from,
            "expected the key of the certificate, found another's",
        ),
        other => Problem::new(
            &config.key_from,
            format!("cannot be used with the certificate: {other}"),
        ),
    }
}

/// Whether the client and the gateway agreed on HTTP/2.
pub fn is_http2(stream: &Connection) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(b"h2")
}
