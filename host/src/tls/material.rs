//! The texts in PEM that a configuration names, as they are now.
//!
//! Owns reading them, all at once. Does not parse them. Invariant: two materials with the same
//! digest make the same server.

use std::path::Path;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::config::{ConfigProblem, PemContent, PemSource, TlsConfig};
use crate::files::{FileReadError, read_regular};
use crate::values::limits::CONFIG_FILE_BYTES;

/// Tells the versions of a material apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MaterialDigest([u8; 32]);

type PemText = Zeroizing<Vec<u8>>;

/// The certificate chain, the private key and the authorities of clients, in PEM.
pub(crate) struct TlsMaterial {
    pub(super) certificate: PemText,
    pub(super) key: PemText,
    /// In the order of the configuration.
    pub(super) authorities: Vec<PemText>,
}

impl TlsMaterial {
    /// Reads the texts that `config` names. Blocks. A certificate that is still to be issued is
    /// missing.
    ///
    /// # Errors
    /// Every file that cannot be read.
    pub(crate) fn read(config: &TlsConfig) -> Result<Self, Vec<ConfigProblem>> {
        let mut problems = Vec::new();
        let is_awaited = |source: &PemSource| {
            let acme = config.acme.as_ref();
            acme.is_some_and(|acme| source.file() == Some(&acme.certificate_path))
        };
        let mut text = |source: &PemSource| match read(source) {
            Err(PemReadError::Missing(_)) if is_awaited(source) => PemText::default(),
            Ok(text) => text,
            Err(PemReadError::Missing(problem) | PemReadError::Unreadable(problem)) => {
                problems.push(problem);
                PemText::default()
            }
        };
        let material = Self {
            certificate: text(&config.certificate),
            key: text(&config.key),
            authorities: config
                .client_authentication
                .iter()
                .flat_map(|clients| &clients.authorities)
                .map(text)
                .collect(),
        };
        if problems.is_empty() {
            Ok(material)
        } else {
            Err(problems)
        }
    }

    /// Returns these texts with the certificate and the key of `other`.
    pub(crate) fn with_certificate_of(&self, other: &Self) -> Self {
        Self {
            certificate: other.certificate.clone(),
            key: other.key.clone(),
            authorities: self.authorities.clone(),
        }
    }

    /// Whether there is neither a certificate nor a key.
    pub(super) fn is_missing(&self) -> bool {
        self.certificate.is_empty() && self.key.is_empty()
    }

    /// Returns the digest of all texts.
    pub(crate) fn digest(&self) -> MaterialDigest {
        let mut digest = Sha256::new();
        for text in [&self.certificate, &self.key]
            .into_iter()
            .chain(&self.authorities)
        {
            digest.update((text.len() as u64).to_be_bytes());
            digest.update(text.as_slice());
        }
        MaterialDigest(digest.finalize().into())
    }
}

/// Why a text cannot be read.
enum PemReadError {
    /// There is no file.
    Missing(ConfigProblem),
    /// The file cannot be read.
    Unreadable(ConfigProblem),
}

fn read(source: &PemSource) -> Result<PemText, PemReadError> {
    match &source.content {
        PemContent::Inline(text) => Ok(Zeroizing::new(text.expose().as_bytes().to_vec())),
        PemContent::File(path) => read_file(path).map(Zeroizing::new).map_err(|error| {
            let message = format!("cannot read {}: {error}", path.display());
            let problem = ConfigProblem::new(source.field.clone(), message);
            // A file in a folder that cannot be searched is not missing.
            match path.try_exists() {
                Ok(false) => PemReadError::Missing(problem),
                Ok(true) | Err(_) => PemReadError::Unreadable(problem),
            }
        }),
    }
}

/// Reads a file, which must be a regular one: it is read again and again.
fn read_file(path: &Path) -> Result<Vec<u8>, FileReadError> {
    if path.is_dir() {
        return Err(FileReadError::Folder);
    }
    read_regular(path, CONFIG_FILE_BYTES)
}
