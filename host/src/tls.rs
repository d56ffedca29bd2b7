//! TLS towards clients.
//!
//! Owns the server's rustls settings, the certificates that they are made from, and handshakes.
//! Does not know what is spoken inside, or when a file changes. Invariant: a [`TlsServer`] is
//! complete; of files that cannot be used, none is made.

mod algorithms;
mod certificate;
mod clients;
mod hybrid;
mod material;

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use self::algorithms::{protocol_versions, provider};
use self::certificate::ServerCertificate;
use self::clients::client_verifier;
use crate::config::{ConfigProblem, TlsConfig};
use crate::values::clock::Timestamp;

pub(crate) use self::material::{MaterialDigest, TlsMaterial};

/// A client's connection after its handshake.
pub(crate) type TlsConnection<S> = TlsStream<S>;

/// Why a handshake did not complete.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// It took longer than the section's or the limits' `handshake_timeout`.
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
    expires_at: Timestamp,
    digest: MaterialDigest,
    warnings: Arc<[ConfigProblem]>,
}

impl std::fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsServer").finish_non_exhaustive()
    }
}

impl TlsServer {
    /// Creates a server with the settings of `config` and the texts that it names.
    ///
    /// # Errors
    /// Everything that cannot be used; each problem names its place in the configuration.
    pub(crate) fn new(
        config: &TlsConfig,
        material: &TlsMaterial,
        handshake_timeout: Duration,
    ) -> Result<Self, Vec<ConfigProblem>> {
        let provider = Arc::new(provider(config));
        let mut problems = Vec::new();
        let certificate = ServerCertificate::new(config, material, &provider)
            .map_err(|found| problems.extend(found));
        let clients =
            client_verifier(config, material, &provider).map_err(|found| problems.extend(found));
        let (Ok(certificate), Ok(clients)) = (certificate, clients) else {
            return Err(problems);
        };
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&protocol_versions(config))
            .map_err(|error| {
                let field = config.certificate.field.clone();
                vec![ConfigProblem::new(field, error.to_string())]
            })?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(certificate.resolver());
        server.alpn_protocols.clone_from(&config.alpn);
        // Clients without a preference get the stronger suite.
        server.ignore_client_order = true;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            handshake_timeout: config.handshake_timeout.unwrap_or(handshake_timeout),
            expires_at: certificate.expires_at(),
            digest: material.digest(),
            warnings: certificate.into_warnings().into(),
        })
    }

    /// Reads the texts that `config` names, and creates a server. Blocks.
    ///
    /// # Errors
    /// As [`TlsServer::new`], and files that cannot be read.
    pub(crate) fn load(
        config: &TlsConfig,
        handshake_timeout: Duration,
    ) -> Result<Self, Vec<ConfigProblem>> {
        Self::new(config, &TlsMaterial::read(config)?, handshake_timeout)
    }

    /// Performs the handshake of a new connection.
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

    /// Returns when the certificate expires.
    pub(crate) fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// Returns the digest of the texts that the server was made from.
    pub(crate) fn digest(&self) -> MaterialDigest {
        self.digest
    }

    /// Returns what an operator should know about the certificate.
    pub(crate) fn warnings(&self) -> &[ConfigProblem] {
        &self.warnings
    }
}

/// Whether the client and the gateway negotiated HTTP/2.
pub(crate) fn is_http2<S>(connection: &TlsConnection<S>) -> bool {
    connection.get_ref().1.alpn_protocol() == Some(b"h2")
}
