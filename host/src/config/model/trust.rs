//! What verifies the certificates of upstream. The texts in PEM are not read yet.

use std::path::PathBuf;

use super::tls::PemSource;
use crate::config::path::ConfigPath;

/// What verifies the certificates of upstream, and of proxies on the way to it.
#[derive(Debug, Clone, PartialEq)]
pub struct TrustConfig {
    /// The certificates of authorities to begin with.
    pub store: TrustStore,
    /// Further certificates of authorities.
    pub certificates: Vec<PemSource>,
    /// Folders whose files have further certificates, each with its place.
    pub folders: Vec<(ConfigPath, PathBuf)>,
}

/// The certificates of authorities to begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrustStore {
    /// The platform's, or those of `SSL_CERT_FILE`.
    System,
    /// No authority is trusted.
    Empty,
}
