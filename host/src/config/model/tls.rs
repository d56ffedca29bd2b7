//! TLS towards the clients of a service, with every field at a value that can be used. The texts in
//! PEM are not read yet: `tls` reads them at the start and each time a file changes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::acme::AcmeConfig;
use crate::config::path::ConfigPath;
use crate::values::secret::SecretString;

/// TLS towards the clients of a service.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// The certificate chain, that of the gateway first.
    pub certificate: PemSource,
    /// The private key of the first certificate.
    pub key: PemSource,
    /// The ACME server that issues the certificate and the key, if one does. Their file may be
    /// missing then.
    pub acme: Option<AcmeConfig>,
    /// The name that the certificate should be valid for, with its place.
    pub server_name: Option<(ConfigPath, String)>,
    /// The protocols that are offered, the preferred one first.
    pub alpn: Vec<Vec<u8>>,
    /// The lowest version that is accepted.
    pub min_version: TlsVersion,
    /// The highest version that is accepted.
    pub max_version: TlsVersion,
    /// The cipher suites that are offered for TLS 1.2. Those of TLS 1.3 are always offered.
    pub tls12_suites: Vec<Tls12Suite>,
    /// The key exchanges that are offered, the preferred one first.
    pub key_exchanges: Vec<KeyExchange>,
    /// How clients authenticate with certificates, if they are asked to.
    pub client_authentication: Option<ClientAuthentication>,
    /// Time for a handshake; `None` for `limits.handshake_timeout`.
    pub handshake_timeout: Option<Duration>,
}

impl TlsConfig {
    /// Returns the files that it names.
    pub fn files(&self) -> Vec<&Path> {
        let authorities = self
            .client_authentication
            .iter()
            .flat_map(|clients| &clients.authorities);
        [&self.certificate, &self.key]
            .into_iter()
            .chain(authorities)
            .filter_map(PemSource::file)
            .collect()
    }
}

/// Where a text in PEM comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct PemSource {
    /// The field that names it.
    pub field: ConfigPath,
    /// The text, or its file.
    pub content: PemContent,
}

/// A text in PEM, or the file that has it.
#[derive(Debug, Clone, PartialEq)]
pub enum PemContent {
    /// The text, which is in the configuration.
    Inline(SecretString),
    /// The file that has the text.
    File(PathBuf),
}

impl PemSource {
    /// Returns the file that has the text, if a file has it.
    pub fn file(&self) -> Option<&Path> {
        match &self.content {
            PemContent::Inline(_) => None,
            PemContent::File(path) => Some(path),
        }
    }
}

/// The versions of TLS that the gateway speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    V1_2,
    /// TLS 1.3 (RFC 8446).
    V1_3,
}

/// A cipher suite of TLS 1.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls12Suite {
    /// An ECDSA certificate and AES-256-GCM (RFC 5289).
    EcdheEcdsaAes256GcmSha384,
    /// An ECDSA certificate and AES-128-GCM (RFC 5289).
    EcdheEcdsaAes128GcmSha256,
    /// An ECDSA certificate and ChaCha20-Poly1305 (RFC 7905).
    EcdheEcdsaChacha20Poly1305Sha256,
    /// An RSA certificate and AES-256-GCM (RFC 5289).
    EcdheRsaAes256GcmSha384,
    /// An RSA certificate and AES-128-GCM (RFC 5289).
    EcdheRsaAes128GcmSha256,
    /// An RSA certificate and ChaCha20-Poly1305 (RFC 7905).
    EcdheRsaChacha20Poly1305Sha256,
}

impl Tls12Suite {
    /// All suites, the preferred one first.
    pub const ALL: [Self; 6] = [
        Self::EcdheEcdsaAes256GcmSha384,
        Self::EcdheEcdsaAes128GcmSha256,
        Self::EcdheEcdsaChacha20Poly1305Sha256,
        Self::EcdheRsaAes256GcmSha384,
        Self::EcdheRsaAes128GcmSha256,
        Self::EcdheRsaChacha20Poly1305Sha256,
    ];

    /// The name in IANA's registry and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::EcdheEcdsaAes256GcmSha384 => "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
            Self::EcdheEcdsaAes128GcmSha256 => "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            Self::EcdheEcdsaChacha20Poly1305Sha256 => {
                "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"
            }
            Self::EcdheRsaAes256GcmSha384 => "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
            Self::EcdheRsaAes128GcmSha256 => "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            Self::EcdheRsaChacha20Poly1305Sha256 => "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        }
    }
}

/// A key exchange of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyExchange {
    /// ML-KEM-768 beside X25519, for TLS 1.3 alone: a recorded connection stays secret if one of
    /// the two is broken.
    X25519MlKem768,
    /// The curve of RFC 7748.
    X25519,
    /// The curve secp256r1 (RFC 8422).
    P256,
    /// The curve secp384r1 (RFC 8422).
    P384,
}

impl KeyExchange {
    /// All key exchanges, the preferred one first.
    pub const ALL: [Self; 4] = [Self::X25519MlKem768, Self::X25519, Self::P256, Self::P384];

    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::X25519MlKem768 => "X25519MLKEM768",
            Self::X25519 => "X25519",
            Self::P256 => "P256",
            Self::P384 => "P384",
        }
    }
}

/// How clients authenticate with certificates.
#[derive(Debug, Clone)]
pub struct ClientAuthentication {
    /// What is asked of clients.
    pub mode: ClientAuthenticationMode,
    /// The certificates of the authorities that sign those of clients. With some, a certificate is
    /// verified if `mode` says so.
    pub authorities: Vec<PemSource>,
    /// The SHA-256 digests of the public keys that clients may have. With some, every certificate
    /// that a client presents must have one of them.
    pub public_keys: Vec<[u8; 32]>,
}

/// What is asked of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuthenticationMode {
    /// A certificate may be presented. It is not verified.
    Request,
    /// A certificate must be presented. It is not verified.
    RequireAny,
    /// A certificate may be presented. It is verified.
    VerifyIfGiven,
    /// A certificate must be presented. It is verified.
    RequireAndVerify,
}

impl ClientAuthenticationMode {
    /// All modes that ask for certificates.
    pub const ALL: [Self; 4] = [
        Self::Request,
        Self::RequireAny,
        Self::VerifyIfGiven,
        Self::RequireAndVerify,
    ];

    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::RequireAny => "require-any",
            Self::VerifyIfGiven => "verify-if-given",
            Self::RequireAndVerify => "require-and-verify",
        }
    }

    /// Whether a client without a certificate is rejected.
    pub fn is_mandatory(self) -> bool {
        match self {
            Self::Request | Self::VerifyIfGiven => false,
            Self::RequireAny | Self::RequireAndVerify => true,
        }
    }

    /// Whether certificates are verified.
    pub fn verifies(self) -> bool {
        match self {
            Self::Request | Self::RequireAny => false,
            Self::VerifyIfGiven | Self::RequireAndVerify => true,
        }
    }
}
