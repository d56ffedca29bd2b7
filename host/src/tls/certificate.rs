//! The certificate that the gateway presents, and its private key.
//!
//! Owns parsing both, matching them, and the order of the chain. Invariant: the first certificate
//! of a [`ServerCertificate`] is the one of its key.

use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::parse_x509_certificate;

use super::material::TlsMaterial;
use crate::config::{ConfigPath, ConfigProblem, TlsConfig};
use crate::values::clock::Timestamp;

/// How an encrypted key in PEM says that it is one: PKCS#8, and the older form of OpenSSL.
const ENCRYPTED: [&[u8]; 2] = [b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED"];

/// A certificate chain with its private key.
pub(super) struct ServerCertificate {
    key: Arc<CertifiedKey>,
    starts_at: Timestamp,
    expires_at: Timestamp,
    renew_at: Timestamp,
    warnings: Vec<ConfigProblem>,
    rejections: CertificateRejections,
}

/// Why clients reject a certificate.
#[derive(Debug, Clone, Default)]
pub(super) struct CertificateRejections {
    /// It has expired, or is not valid yet.
    pub(super) validity: Option<ConfigProblem>,
    /// It is not valid for the name that clients connect to.
    pub(super) name: Option<ConfigProblem>,
}

impl CertificateRejections {
    pub(super) fn all(&self) -> impl Iterator<Item = &ConfigProblem> {
        self.validity.iter().chain(&self.name)
    }
}

impl ServerCertificate {
    /// Parses the chain and the key. A chain that is out of order is put in order.
    ///
    /// # Errors
    /// One of them cannot be used, or they do not belong together.
    pub(super) fn new(
        config: &TlsConfig,
        material: &TlsMaterial,
        provider: &CryptoProvider,
    ) -> Result<Self, Vec<ConfigProblem>> {
        let certificate_field = &config.certificate.field;
        let chain = certificates(&material.certificate, certificate_field);
        let key = private_key(&material.key, &config.key.field, provider);
        let (chain, key) = match (chain, key) {
            (Ok(chain), Ok(key)) => (chain, key),
            (chain, key) => return Err(chain.err().into_iter().chain(key.err()).collect()),
        };
        let links = links(&chain, certificate_field).map_err(|problem| vec![problem])?;
        let Some(order) = order(&links, key.as_ref()) else {
            return Err(vec![ConfigProblem::new(
                config.key.field.clone(),
                "expected the private key of the certificate, found that of another",
            )]);
        };
        let leaf = &links[order.places[0]];
        let now = OffsetDateTime::now_utc();
        let problem = |message: String| ConfigProblem::new(certificate_field.clone(), message);
        let warnings = order.message().map(problem).into_iter().collect();
        let rejections = CertificateRejections {
            validity: leaf.validity_message(now).map(problem),
            name: name_warning(config, &chain[order.places[0]]),
        };
        let chain = order.places.iter().map(|place| chain[*place].clone());
        Ok(Self {
            key: Arc::new(CertifiedKey::new(chain.collect(), key)),
            starts_at: timestamp(leaf.not_before),
            expires_at: timestamp(leaf.not_after),
            renew_at: timestamp(leaf.not_before + (leaf.not_after - leaf.not_before) * 2 / 3),
            warnings,
            rejections,
        })
    }

    pub(super) fn resolver(&self) -> Arc<dyn ResolvesServerCert> {
        Arc::new(OneCertificate(Arc::clone(&self.key)))
    }

    pub(super) fn starts_at(&self) -> Timestamp {
        self.starts_at
    }

    pub(super) fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// Returns when two thirds of the certificate's lifetime are over.
    pub(super) fn renew_at(&self) -> Timestamp {
        self.renew_at
    }

    /// Returns what clients cannot see, and an operator should know.
    pub(super) fn warnings(&self) -> &[ConfigProblem] {
        &self.warnings
    }

    /// Returns why clients reject the certificate as it is now.
    pub(super) fn rejections(&self) -> &CertificateRejections {
        &self.rejections
    }
}

/// Presents one certificate, whatever name the client asks for.
#[derive(Debug)]
struct OneCertificate(Arc<CertifiedKey>);

impl ResolvesServerCert for OneCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Presents nothing: handshakes fail until there is a certificate.
#[derive(Debug)]
pub(super) struct NoCertificate;

impl NoCertificate {
    pub(super) fn resolver() -> Arc<dyn ResolvesServerCert> {
        Arc::new(Self)
    }
}

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

fn timestamp(time: OffsetDateTime) -> Timestamp {
    let seconds = u64::try_from(time.unix_timestamp()).unwrap_or_default();
    Timestamp(seconds.saturating_mul(1000))
}

/// Reads the certificates of a text in PEM, at least one.
///
/// # Errors
/// The text has none, or breaks off.
pub(super) fn certificates(
    pem: &[u8],
    field: &ConfigPath,
) -> Result<Vec<CertificateDer<'static>>, ConfigProblem> {
    let problem = |found: &str| {
        ConfigProblem::new(
            field.clone(),
            format!("expected certificates in PEM, found {found}"),
        )
    };
    match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
        Ok(chain) if chain.is_empty() => Err(problem("none")),
        Ok(chain) => Ok(chain),
        Err(_) => Err(problem("something else")),
    }
}

fn private_key(
    pem: &[u8],
    field: &ConfigPath,
    provider: &CryptoProvider,
) -> Result<Arc<dyn SigningKey>, ConfigProblem> {
    let problem = |message: String| ConfigProblem::new(field.clone(), message);
    let is_encrypted = ENCRYPTED
        .iter()
        .any(|mark| memchr::memmem::find(pem, mark).is_some());
    if is_encrypted {
        let message = "expected a private key without a passphrase, found an encrypted one";
        return Err(problem(message.to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(pem)
        .map_err(|_| problem("expected a private key in PEM, found none".to_owned()))?;
    provider
        .key_provider
        .load_private_key(key)
        .map_err(|_| {
            problem(
                "expected an ECDSA (P-256, P-384), Ed25519 or RSA key (2048 to 8192 bits), found another or a damaged one"
                    .to_owned(),
            )
        })
}

/// What is known of one certificate in a chain.
struct ChainLink {
    /// `None` for a certificate that rustls cannot present as its own.
    public_key: Option<Vec<u8>>,
    subject: Vec<u8>,
    issuer: Vec<u8>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl ChainLink {
    /// Says if the certificate is not valid at `now`.
    fn validity_message(&self, now: OffsetDateTime) -> Option<String> {
        if now > self.not_after {
            Some(format!(
                "expired at {}: clients reject it",
                text(self.not_after)
            ))
        } else if now < self.not_before {
            let from = text(self.not_before);
            Some(format!(
                "not valid before {from}: clients reject it until then"
            ))
        } else {
            None
        }
    }
}

fn text(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

fn links(
    chain: &[CertificateDer<'_>],
    field: &ConfigPath,
) -> Result<Vec<ChainLink>, ConfigProblem> {
    let link = |certificate: &CertificateDer<'_>| {
        let (rest, parsed) = parse_x509_certificate(certificate).ok()?;
        rest.is_empty().then(|| ChainLink {
            // Of the certificates that sign it, some may be too old for rustls.
            public_key: ParsedCertificate::try_from(certificate)
                .ok()
                .map(|parsed| parsed.subject_public_key_info().as_ref().to_vec()),
            subject: parsed.subject().as_raw().to_vec(),
            issuer: parsed.issuer().as_raw().to_vec(),
            not_before: parsed.validity().not_before.to_datetime(),
            not_after: parsed.validity().not_after.to_datetime(),
        })
    };
    let links: Option<Vec<ChainLink>> = chain.iter().map(link).collect();
    links.ok_or_else(|| {
        let message = "expected certificates in PEM, found an unreadable one";
        ConfigProblem::new(field.clone(), message)
    })
}

/// The order in which a chain is presented.
struct ChainOrder {
    /// Indices into the chain as it was given.
    places: Vec<usize>,
    /// Certificates at the end that sign none of those before them.
    unrelated: usize,
}

impl ChainOrder {
    /// Says what is wrong with the order as it was given.
    fn message(&self) -> Option<String> {
        if !self.places.is_sorted() {
            Some("the certificates are out of order: presented in the right one".to_owned())
        } else if self.unrelated > 0 {
            let (count, total) = (self.unrelated, self.places.len());
            Some(format!(
                "{count} of {total} certificates sign none of those before them"
            ))
        } else {
            None
        }
    }
}

/// Returns the order: the certificate of `key`, its issuer, and so on, then all others.
/// Returns `None` if no certificate is that of `key`.
fn order(links: &[ChainLink], key: &dyn SigningKey) -> Option<ChainOrder> {
    let leaf = match key.public_key() {
        Some(public_key) => links
            .iter()
            .position(|link| link.public_key.as_deref() == Some(public_key.as_ref()))?,
        None => 0,
    };
    let mut rest: Vec<usize> = (0..links.len()).filter(|place| *place != leaf).collect();
    let mut places = vec![leaf];
    let mut last = leaf;
    while links[last].issuer != links[last].subject
        && let Some(found) = rest
            .iter()
            .position(|place| links[*place].subject == links[last].issuer)
    {
        last = rest.remove(found);
        places.push(last);
    }
    let unrelated = rest.len();
    places.extend(rest);
    Some(ChainOrder { places, unrelated })
}

/// Says if the certificate is not valid for the name that clients connect to.
fn name_warning(config: &TlsConfig, leaf: &CertificateDer<'_>) -> Option<ConfigProblem> {
    let (field, name) = config.server_name.as_ref()?;
    let is_valid = ServerName::try_from(name.as_str()).is_ok_and(|name| {
        ParsedCertificate::try_from(leaf).is_ok_and(|leaf| verify_server_name(&leaf, &name).is_ok())
    });
    (!is_valid).then(|| {
        let message = format!("the certificate is not valid for {name:?}");
        ConfigProblem::new(field.clone(), message)
    })
}
