//! The root certificates that verify upstream's and, by default, those of proxies.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Root certificates: the platform's, or those of `SSL_CERT_FILE`. Clones share them.
#[derive(Clone)]
pub struct TrustRoots {
    roots: Arc<RootCertStore>,
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

    fn new(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates);
        Self {
            roots: Arc::new(roots),
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
