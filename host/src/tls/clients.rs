//! Verification of the certificates that clients present.
//!
//! Invariant: whatever the mode, a client proves that it has the private key of its certificate.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use sha2::{Digest, Sha256};

use super::certificate::certificates;
use super::material::TlsMaterial;
use crate::config::{ClientAuthentication, ConfigPath, ConfigProblem, TlsConfig};

/// Returns what verifies clients as `config` says.
///
/// # Errors
/// Certificates of authorities that cannot be used.
pub(super) fn client_verifier(
    config: &TlsConfig,
    material: &TlsMaterial,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Vec<ConfigProblem>> {
    let Some(clients) = &config.client_authentication else {
        return Ok(WebPkiClientVerifier::no_client_auth());
    };
    let authorities = if clients.mode.verifies() && !clients.authorities.is_empty() {
        Some(authority_verifier(clients, material, provider)?)
    } else {
        None
    };
    Ok(Arc::new(PresentedCertificates {
        authorities,
        public_keys: clients.public_keys.clone(),
        is_mandatory: clients.mode.is_mandatory(),
        algorithms: provider.signature_verification_algorithms,
    }))
}

/// Returns what verifies chains up to the configured authorities.
fn authority_verifier(
    clients: &ClientAuthentication,
    material: &TlsMaterial,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Vec<ConfigProblem>> {
    let mut roots = RootCertStore::empty();
    let mut problems = Vec::new();
    for (source, pem) in clients.authorities.iter().zip(&material.authorities) {
        problems.extend(add_roots(&mut roots, pem, &source.field).err());
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| {
            let field = clients.authorities[0].field.clone();
            vec![ConfigProblem::new(field, error.to_string())]
        })
}

fn add_roots(
    roots: &mut RootCertStore,
    pem: &[u8],
    field: &ConfigPath,
) -> Result<(), ConfigProblem> {
    for certificate in certificates(pem, field)? {
        roots.add(certificate).map_err(|_| {
            let message = "expected certificates in PEM, found an unreadable one";
            ConfigProblem::new(field.clone(), message)
        })?;
    }
    Ok(())
}

/// Checks the certificates that clients present.
#[derive(Debug)]
struct PresentedCertificates {
    /// Verifies the chain; `None` if any certificate is accepted.
    authorities: Option<Arc<dyn ClientCertVerifier>>,
    /// The SHA-256 digests of the public keys that are accepted; all if there is none.
    public_keys: Vec<[u8; 32]>,
    is_mandatory: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PresentedCertificates {
    fn check_public_key(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        if self.public_keys.is_empty() {
            return Ok(());
        }
        let digest: [u8; 32] = Sha256::digest(parsed.subject_public_key_info()).into();
        if self.public_keys.contains(&digest) {
            Ok(())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }
}

impl ClientCertVerifier for PresentedCertificates {
    fn client_auth_mandatory(&self) -> bool {
        self.is_mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.authorities
            .as_ref()
            .map_or(&[], |authorities| authorities.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if let Some(authorities) = &self.authorities {
            authorities.verify_client_cert(end_entity, intermediates, now)?;
        }
        self.check_public_key(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
