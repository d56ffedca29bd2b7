//! TLS towards clients.
//!
//! Owns the server's rustls settings and its handshakes. Does not know what is spoken inside.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::{ConfigProblem, TlsConfig, TlsVersion};

/// A client's connection after its handshake.
pub(crate) type TlsConnection<S> = TlsStream<S>;

/// Why a handshake did not complete.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// It took longer than `limits.handshake_timeout`.
    #[error("tls handshake: timed out")]
    TimedOut,
    /// The client and the gateway did not agree, or the connection broke.
    #[error("tls handshake: {0}")]
    Failed(std::io::Error),
}

#[derive(Clone)]
pub(crate) struct TlsServer {
    acceptor: TlsAcceptor,
    handshake_timeout: Duration,
}

impl std::fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsServer").finish_non_exhaustive()
    }
}

impl TlsServer {
    /// Creates a server with the certificate, the key and the versions of `config`.
    ///
    /// # Errors
    /// The certificate or the key cannot be used; the problem names its place in the configuration.
    pub(crate) fn new(
        config: &TlsConfig,
        handshake_timeout: Duration,
    ) -> Result<Self, ConfigProblem> {
        let chain = certificate_chain(config)?;
        let key = PrivateKeyDer::from_pem_slice(config.key.expose().as_bytes()).map_err(|_| {
            ConfigProblem::new(
                config.key_field.clone(),
                "expected a private key in PEM, found none",
            )
        })?;
        let mut server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&protocol_versions(config))
            .map_err(|error| {
                ConfigProblem::new(config.certificate_field.clone(), error.to_string())
            })?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| certificate_problem(config, &error))?;
        server.alpn_protocols.clone_from(&config.alpn);
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            handshake_timeout,
        })
    }

    /// Performs the handshake.
    ///
    /// # Errors
    /// The handshake failed or timed out.
    pub(crate) async fn accept<S>(&self, stream: S) -> Result<TlsConnection<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match timeout(self.handshake_timeout, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(HandshakeError::Failed(error)),
            Err(_) => Err(HandshakeError::TimedOut),
        }
    }
}

/// Whether the client and the gateway negotiated HTTP/2.
pub(crate) fn is_http2<S>(connection: &TlsConnection<S>) -> bool {
    connection.get_ref().1.alpn_protocol() == Some(b"h2")
}

fn certificate_chain(config: &TlsConfig) -> Result<Vec<CertificateDer<'static>>, ConfigProblem> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&config.certificate).collect();
    let problem = |found: &str| {
        ConfigProblem::new(
            config.certificate_field.clone(),
            format!("expected certificates in PEM, found {found}"),
        )
    };
    match chain {
        Ok(chain) if chain.is_empty() => Err(problem("none")),
        Ok(chain) => Ok(chain),
        Err(_) => Err(problem("something else")),
    }
}

fn protocol_versions(config: &TlsConfig) -> Vec<&'static rustls::SupportedProtocolVersion> {
    [
        (TlsVersion::V1_2, &rustls::version::TLS12),
        (TlsVersion::V1_3, &rustls::version::TLS13),
    ]
    .into_iter()
    .filter(|(version, _)| (config.min_version..=config.max_version).contains(version))
    .map(|(_, version)| version)
    .collect()
}

fn certificate_problem(config: &TlsConfig, error: &rustls::Error) -> ConfigProblem {
    match error {
        rustls::Error::InvalidCertificate(_) => ConfigProblem::new(
            config.certificate_field.clone(),
            "expected certificates in PEM, found an unreadable one",
        ),
        rustls::Error::InconsistentKeys(_) => ConfigProblem::new(
            config.key_field.clone(),
            "expected the private key of the certificate, found that of another",
        ),
        other => ConfigProblem::new(
            config.key_field.clone(),
            format!("cannot be used with the certificate: {other}"),
        ),
    }
}
