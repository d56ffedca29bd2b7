//! The root certificates that verify upstream's and, by default, those of proxies.

use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use crate::config::{ConfigPath, ConfigProblem, PemContent, PemSource, TrustConfig, TrustStore};
use crate::files::{io_reason, read_regular};
use crate::values::limits::CONFIG_FILE_BYTES;

/// Root certificates: the platform's, or those of `SSL_CERT_FILE`. Clones share them.
#[derive(Clone)]
pub struct TrustRoots {
    roots: Arc<RootCertStore>,
    /// What the configuration adds to the platform's, or puts in their place.
    configured: Arc<ConfiguredTrust>,
}

/// What the configuration adds to the platform's certificates, for another process.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ConfiguredTrust {
    /// Whether the platform's certificates are not trusted.
    is_alone: bool,
    /// The certificates, each in DER.
    certificates: Vec<Vec<u8>>,
}

impl std::fmt::Debug for TrustRoots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrustRoots")
            .field("count", &self.roots.len())
            .finish_non_exhaustive()
    }
}

impl TrustRoots {
    /// Loads the platform's certificates. Unreadable ones are left out.
    pub fn from_platform() -> Self {
        Self::new(rustls_native_certs::load_native_certs().certs)
    }

    /// Trusts only the certificates in `pem`. Certificates that cannot be parsed are left out.
    pub fn from_pem(pem: &[u8]) -> Self {
        Self::new(CertificateDer::pem_slice_iter(pem).flatten())
    }

    /// Loads the certificates of `config`. `system` replaces the platform's.
    ///
    /// # Errors
    /// Every file and folder that cannot be used.
    pub fn load(config: &TrustConfig, system: Option<Self>) -> Result<Self, Vec<ConfigProblem>> {
        let mut problems = Vec::new();
        let mut certificates = Vec::new();
        for source in &config.certificates {
            match of_source(source) {
                Ok(found) => certificates.extend(found),
                Err(problem) => problems.push(problem),
            }
        }
        for (field, folder) in &config.folders {
            match of_folder(field, folder) {
                Ok(found) => certificates.extend(found),
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let configured = ConfiguredTrust {
            is_alone: config.store == TrustStore::Empty,
            certificates: certificates.iter().map(|found| found.to_vec()).collect(),
        };
        Ok(Self::with(configured, system))
    }

    /// Loads the platform's certificates with what `configured` says of them.
    pub fn with_configured(configured: ConfiguredTrust) -> Self {
        Self::with(configured, None)
    }

    fn with(configured: ConfiguredTrust, system: Option<Self>) -> Self {
        let mut roots = if configured.is_alone {
            RootCertStore::empty()
        } else {
            let system = system.unwrap_or_else(Self::from_platform);
            Arc::unwrap_or_clone(system.roots)
        };
        let added = configured.certificates.iter().cloned();
        roots.add_parsable_certificates(added.map(CertificateDer::from));
        Self {
            roots: Arc::new(roots),
            configured: Arc::new(configured),
        }
    }

    /// Returns what the configuration adds.
    pub fn configured(&self) -> &ConfiguredTrust {
        &self.configured
    }

    fn new(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates);
        Self {
            roots: Arc::new(roots),
            configured: Arc::default(),
        }
    }

    /// Whether there is no root certificate: every `https` upstream fails.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    pub(super) fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }
}

type Certificates = Vec<CertificateDer<'static>>;

/// Reads the certificates of a text in PEM, at least one.
fn of_source(source: &PemSource) -> Result<Certificates, ConfigProblem> {
    let problem = |message: String| ConfigProblem::new(source.field.clone(), message);
    let text = match &source.content {
        PemContent::Inline(text) => text.expose().as_bytes().to_vec(),
        PemContent::File(path) => read_regular(path, CONFIG_FILE_BYTES)
            .map_err(|error| problem(format!("cannot read {}: {error}", path.display())))?,
    };
    let found: Result<Certificates, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.unwrap_or_default();
    let is_usable =
        |found: &CertificateDer<'static>| RootCertStore::empty().add(found.clone()).is_ok();
    if found.is_empty() {
        return Err(problem(
            "expected certificates in PEM, found none".to_owned(),
        ));
    }
    if !found.iter().all(is_usable) {
        let message = "expected certificates in PEM, found an unreadable one";
        return Err(problem(message.to_owned()));
    }
    Ok(found)
}

/// Reads the certificates of all files in a folder. Other files are left out, and a folder that does
/// not exist has none.
fn of_folder(field: &ConfigPath, folder: &Path) -> Result<Certificates, ConfigProblem> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            let message = format!("cannot read {}: {}", folder.display(), io_reason(&error));
            return Err(ConfigProblem::new(field.clone(), message));
        }
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        if let Ok(text) = read_regular(&entry.path(), CONFIG_FILE_BYTES) {
            found.extend(CertificateDer::pem_slice_iter(&text).flatten());
        }
    }
    Ok(found)
}
