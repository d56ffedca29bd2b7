//! TLS towards clients.
//!
//! Owns the server's rustls settings, the certificates that they are made from, and handshakes.
//! Does not know what is spoken inside, or when a file changes. Invariant: a [`TlsServer`] is
//! complete; of files that cannot be used, none is made.

mod algorithms;
mod certificate;
mod challenges;
mod clients;
mod hybrid;
mod material;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{Acceptor, NoServerSessionStorage};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use self::algorithms::{protocol_versions, provider};
use self::certificate::{CertificateRejections, NoCertificate, ServerCertificate};
use self::challenges::{challenge_settings, is_challenge};
use self::clients::client_verifier;
use self::hybrid::{hybrid_alone, offers_hybrid};
use crate::config::{ConfigProblem, PemContent, TlsConfig};
use crate::values::clock::Timestamp;

pub(crate) use self::challenges::OpenAlpnChallenge;
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
    Failed(#[from] std::io::Error),
    /// The client was an ACME server, and has seen what it looked for.
    #[error("tls handshake: it was an ACME challenge")]
    Challenge,
}

/// The settings of a TLS listener.
#[derive(Clone)]
pub(crate) struct TlsServer {
    settings: Arc<ServerConfig>,
    /// The same, with X25519MLKEM768 as the only key exchange of TLS 1.3, if it is offered.
    hybrid: Option<Arc<ServerConfig>>,
    /// The settings for ACME servers, if the certificate comes from one.
    challenge: Option<Arc<ServerConfig>>,
    handshake_timeout: Duration,
    /// `None` while there is no certificate.
    lifetime: Option<CertificateLifetime>,
    /// Where the texts come from, and what they were.
    sources: Arc<[PemContent]>,
    material: Arc<TlsMaterial>,
    digest: MaterialDigest,
    warnings: Arc<[ConfigProblem]>,
    /// Why clients rejected the certificate when it was read.
    rejections: Arc<CertificateRejections>,
}

/// The settings of a changed configuration for a listener that speaks TLS already.
pub(crate) struct ReplacedTls {
    pub(crate) server: TlsServer,
    /// Why the server has the certificate of the one before it, if it does.
    pub(crate) kept: Option<KeptCertificate>,
}

/// Why a changed configuration does not change the certificate.
pub(crate) enum KeptCertificate {
    /// The new one is still to be issued.
    Awaited,
    /// The files cannot be used, or clients would reject them.
    Rejected(Vec<ConfigProblem>),
}

/// From when on a certificate is valid, when it should be renewed, and when it expires.
#[derive(Debug, Clone, Copy)]
struct CertificateLifetime {
    starts_at: Timestamp,
    expires_at: Timestamp,
    renew_at: Timestamp,
}

impl std::fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsServer").finish_non_exhaustive()
    }
}

impl TlsServer {
    /// Creates a server with the settings of `config` and the texts that it names. Without a
    /// certificate, which is still to be issued, every handshake fails.
    ///
    /// # Errors
    /// Everything that cannot be used; each problem names its place in the configuration.
    pub(crate) fn new(
        config: &TlsConfig,
        material: &Arc<TlsMaterial>,
        handshake_timeout: Duration,
    ) -> Result<Self, Vec<ConfigProblem>> {
        let provider = Arc::new(provider(config));
        let mut problems = Vec::new();
        let certificate = if config.acme.is_some() && material.is_missing() {
            Ok(None)
        } else {
            ServerCertificate::new(config, material, &provider).map(Some)
        };
        let certificate = certificate.map_err(|found| problems.extend(found));
        let clients =
            client_verifier(config, material, &provider).map_err(|found| problems.extend(found));
        let (Ok(certificate), Ok(clients)) = (certificate, clients) else {
            return Err(problems);
        };
        let unusable = |error: rustls::Error| {
            let field = config.certificate.field.clone();
            vec![ConfigProblem::new(field, error.to_string())]
        };
        let resolver = certificate
            .as_ref()
            .map_or_else(NoCertificate::resolver, ServerCertificate::resolver);
        let settings = |provider: &Arc<CryptoProvider>| {
            let mut settings = ServerConfig::builder_with_provider(Arc::clone(provider))
                .with_protocol_versions(&protocol_versions(config))
                .map_err(unusable)?
                .with_client_cert_verifier(Arc::clone(&clients))
                .with_cert_resolver(Arc::clone(&resolver));
            settings.alpn_protocols.clone_from(&config.alpn);
            // Clients without a preference get the stronger suite.
            settings.ignore_client_order = true;
            if config.client_authentication.is_some() {
                // A resumed connection would not present its certificate again, and an expired one
                // would pass.
                settings.session_storage = Arc::new(NoServerSessionStorage {});
                settings.send_tls13_tickets = 0;
            }
            Ok::<_, Vec<ConfigProblem>>(settings)
        };
        let all = settings(&provider)?;
        let hybrid = match hybrid_alone(&provider) {
            Some(provider) => {
                let mut hybrid = settings(&Arc::new(provider))?;
                hybrid.session_storage = Arc::clone(&all.session_storage);
                Some(Arc::new(hybrid))
            }
            None => None,
        };
        let challenge = match &config.acme {
            Some(_) => Some(Arc::new(challenge_settings().map_err(unusable)?)),
            None => None,
        };
        Ok(Self {
            settings: Arc::new(all),
            hybrid,
            challenge,
            handshake_timeout: config.handshake_timeout.unwrap_or(handshake_timeout),
            lifetime: certificate.as_ref().map(|certificate| CertificateLifetime {
                starts_at: certificate.starts_at(),
                expires_at: certificate.expires_at(),
                renew_at: certificate.renew_at(),
            }),
            sources: sources(config),
            material: Arc::clone(material),
            digest: material.digest(),
            warnings: certificate
                .as_ref()
                .map(|certificate| certificate.warnings().into())
                .unwrap_or_default(),
            rejections: certificate
                .as_ref()
                .map(|certificate| certificate.rejections().clone().into())
                .unwrap_or_default(),
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
        let material = Arc::new(TlsMaterial::read(config)?);
        Self::new(config, &material, handshake_timeout)
    }

    /// Reads the texts that a changed `config` names, and creates a server that follows this one.
    /// It keeps the certificate of this one while its own is still to be issued. If `config` names
    /// the same texts and they cannot be used, or clients would reject them, it keeps the texts of
    /// this one. Blocks.
    ///
    /// # Errors
    /// As [`TlsServer::load`], for texts that this server has not.
    pub(crate) fn reload(
        &self,
        config: &TlsConfig,
        handshake_timeout: Duration,
    ) -> Result<ReplacedTls, Vec<ConfigProblem>> {
        let read = TlsMaterial::read(config).map(Arc::new);
        if let Ok(material) = &read
            && self.must_lend_certificate(config, material)
        {
            let material = Arc::new(material.with_certificate_of(&self.material));
            return Ok(ReplacedTls {
                server: Self::new(config, &material, handshake_timeout)?,
                kept: Some(KeptCertificate::Awaited),
            });
        }
        let new = read.and_then(|material| Self::new(config, &material, handshake_timeout));
        let has_same_sources = self.sources == sources(config);
        let kept = has_same_sources
            .then(|| Self::new(config, &self.material, handshake_timeout).ok())
            .flatten();
        let problems = match (&new, &kept) {
            (Ok(new), Some(kept)) => new.rejections_beside(kept),
            (Ok(_), None) => Vec::new(),
            (Err(problems), _) => problems.clone(),
        };
        match kept {
            Some(server) if !problems.is_empty() => Ok(ReplacedTls {
                server,
                kept: Some(KeptCertificate::Rejected(problems)),
            }),
            Some(_) | None => new.map(|server| ReplacedTls { server, kept: None }),
        }
    }

    /// Whether the certificate of this server must do, because that of `config` is still to be
    /// issued.
    pub(crate) fn must_lend_certificate(&self, config: &TlsConfig, material: &TlsMaterial) -> bool {
        config.acme.is_some() && material.is_missing() && self.lifetime.is_some()
    }

    /// Returns the texts that the server was made from.
    pub(crate) fn material(&self) -> &TlsMaterial {
        &self.material
    }

    /// Performs the handshake of a new connection.
    ///
    /// # Errors
    /// The handshake failed or timed out.
    pub(crate) async fn accept<S>(&self, stream: S) -> Result<TlsConnection<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match timeout(self.handshake_timeout, self.shake_hands(stream)).await {
            Ok(done) => done,
            Err(_) => Err(HandshakeError::TimedOut),
        }
    }

    async fn shake_hands<S>(&self, stream: S) -> Result<TlsConnection<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let begun = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let hello = begun.client_hello();
        if let Some(challenge) = self.challenge.as_ref().filter(|_| is_challenge(&hello)) {
            begun.into_stream(Arc::clone(challenge)).await?;
            return Err(HandshakeError::Challenge);
        }
        // rustls would follow the client's order, and most clients name X25519 first.
        let settings = match &self.hybrid {
            Some(hybrid) if offers_hybrid(&hello) => hybrid,
            _ => &self.settings,
        };
        Ok(begun.into_stream(Arc::clone(settings)).await?)
    }

    /// Returns when the certificate expires, or `None` while there is none.
    pub(crate) fn expires_at(&self) -> Option<Timestamp> {
        Some(self.lifetime?.expires_at)
    }

    /// Returns when the certificate should be renewed, or `None` while there is none.
    pub(crate) fn renew_at(&self) -> Option<Timestamp> {
        Some(self.lifetime?.renew_at)
    }

    /// Returns the digest of the texts that the server was made from.
    pub(crate) fn digest(&self) -> MaterialDigest {
        self.digest
    }

    /// Returns what an operator should know about the certificate.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = &ConfigProblem> {
        self.warnings.iter().chain(self.rejections.all())
    }

    /// Returns why clients reject the certificate, for example because it has expired, while they
    /// do not reject that of `current` for such a reason.
    pub(crate) fn rejections_beside(&self, current: &Self) -> Vec<ConfigProblem> {
        let now = Timestamp::now();
        let Some(lifetime) = current
            .lifetime
            .filter(|lifetime| lifetime.expires_at > now)
        else {
            return Vec::new();
        };
        let (new, old) = (&*self.rejections, &*current.rejections);
        let validity = new.validity.iter().filter(|_| lifetime.starts_at <= now);
        let name = new.name.iter().filter(|_| old.name.is_none());
        validity.chain(name).cloned().collect()
    }
}

/// Returns where the texts of `config` come from.
fn sources(config: &TlsConfig) -> Arc<[PemContent]> {
    let authorities = config
        .client_authentication
        .iter()
        .flat_map(|clients| &clients.authorities);
    [&config.certificate, &config.key]
        .into_iter()
        .chain(authorities)
        .map(|source| source.content.clone())
        .collect()
}

/// Whether the client and the gateway negotiated HTTP/2.
pub(crate) fn is_http2<S>(connection: &TlsConnection<S>) -> bool {
    connection.get_ref().1.alpn_protocol() == Some(b"h2")
}
