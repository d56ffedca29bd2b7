//! TLS towards a proxy.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsConnector;

use super::error::{DialFailure, ProxyTlsError};
use super::stream::OutboundStream;
use crate::config::{ClientCertificate, NameIndication, ProxyTls, ProxyVerification, TlsVersion};
use crate::files::io_reason;
use crate::upstream::trust::TrustRoots;

/// A TLS client for one proxy.
pub(super) struct ProxyTlsClient {
    connector: TlsConnector,
    server_name: ServerName<'static>,
}

impl ProxyTlsClient {
    /// # Errors
    /// A certificate, a key or the name cannot be used.
    pub(super) fn new(tls: &ProxyTls, trust: &TrustRoots) -> Result<Self, ProxyTlsError> {
        let server_name =
            ServerName::try_from(tls.server_name.clone()).map_err(|_| ProxyTlsError::ServerName)?;
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions(tls))
            .map_err(|error| ProxyTlsError::ClientCertificate(error.to_string()))?;
        let builder = match verifier(&tls.verification, &provider) {
            Some(verifier) => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier)),
            None => builder.with_root_certificates(roots(&tls.verification, trust)?),
        };
        let mut config = match &tls.client_certificate {
            None => builder.with_no_client_auth(),
            Some(certificate) => {
                let (chain, key) = client_certificate(certificate)?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| match error {
                        Error::InconsistentKeys(_) => ProxyTlsError::KeyOfAnother,
                        other => ProxyTlsError::ClientCertificate(other.to_string()),
                    })?
            }
        };
        config.enable_sni = tls.name_indication == NameIndication::Sent;
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            server_name,
        })
    }

    pub(super) fn server_name(&self) -> String {
        self.server_name.to_str().into_owned()
    }

    /// Does the handshake with the proxy at the other end of `stream`.
    ///
    /// # Errors
    /// The handshake failed.
    pub(super) async fn connect(
        &self,
        stream: OutboundStream,
    ) -> Result<OutboundStream, DialFailure> {
        let connected = self.connector.connect(self.server_name.clone(), stream);
        match connected.await {
            Ok(stream) => Ok(OutboundStream::over_tls(stream)),
            Err(error) => Err(DialFailure::Tls {
                host: self.server_name(),
                reason: io_reason(&error),
            }),
        }
    }
}

fn versions(tls: &ProxyTls) -> Vec<&'static SupportedProtocolVersion> {
    [
        (TlsVersion::V1_2, &rustls::version::TLS12),
        (TlsVersion::V1_3, &rustls::version::TLS13),
    ]
    .into_iter()
    .filter(|(version, _)| (tls.min_version..=tls.max_version).contains(version))
    .map(|(_, version)| version)
    .collect()
}

fn roots(
    verification: &ProxyVerification,
    trust: &TrustRoots,
) -> Result<Arc<RootCertStore>, ProxyTlsError> {
    let ProxyVerification::Roots(pem) = verification else {
        return Ok(Arc::clone(trust.roots()));
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("certificate", pem)? {
        let unreadable = |_| ProxyTlsError::Certificates {
            field: "certificate",
            found: "an unreadable one",
        };
        roots.add(certificate).map_err(unreadable)?;
    }
    Ok(Arc::new(roots))
}

fn client_certificate(
    certificate: &ClientCertificate,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), ProxyTlsError> {
    let chain = certificates("client_certificate", &certificate.chain)?;
    let key = PrivateKeyDer::from_pem_slice(certificate.key.expose().as_bytes());
    Ok((chain, key.map_err(|_| ProxyTlsError::NoKey)?))
}

fn certificates(
    field: &'static str,
    pem: &str,
) -> Result<Vec<CertificateDer<'static>>, ProxyTlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(ProxyTlsError::Certificates {
            field,
            found: "none",
        }),
        Err(_) => Err(ProxyTlsError::Certificates {
            field,
            found: "something else",
        }),
    }
}

/// Returns a verifier that does not look at issuers, if that is asked for.
fn verifier(
    verification: &ProxyVerification,
    provider: &Arc<CryptoProvider>,
) -> Option<UnchainedVerifier> {
    let accepted = match verification {
        ProxyVerification::System | ProxyVerification::Roots(_) => return None,
        ProxyVerification::PublicKeys(digests) => AcceptedKeys::Listed(digests.clone()),
        ProxyVerification::Off => AcceptedKeys::Any,
    };
    Some(UnchainedVerifier {
        accepted,
        provider: Arc::clone(provider),
    })
}

#[derive(Debug)]
enum AcceptedKeys {
    Any,
    /// Those with one of these SHA-256 digests.
    Listed(Vec<[u8; 32]>),
}

/// Checks only the key of a certificate, and that the server has that key.
#[derive(Debug)]
struct UnchainedVerifier {
    accepted: AcceptedKeys,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for UnchainedVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_accepted = match &self.accepted {
            AcceptedKeys::Any => true,
            AcceptedKeys::Listed(digests) => {
                let parsed = ParsedCertificate::try_from(certificate)?;
                let digest: [u8; 32] = Sha256::digest(parsed.subject_public_key_info()).into();
                digests.contains(&digest)
            }
        };
        if is_accepted {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
