//! A certificate from an ACME server, with every field at a value that can be used.

use std::path::PathBuf;

use crate::config::path::ConfigPath;
use crate::values::secret::SecretString;

/// A certificate that the gateway obtains from an ACME server (RFC 8555), and renews.
#[derive(Debug, Clone, PartialEq)]
pub struct AcmeConfig {
    /// The section that it comes from.
    pub field: ConfigPath,
    /// The domains of the certificate, at least one.
    pub domains: Vec<String>,
    /// The URL of the ACME server's directory.
    pub directory_url: String,
    /// The address at which the certificate authority can reach the operator.
    pub email: Option<String>,
    /// The private key of an existing account, in PEM.
    pub account_key: Option<SecretString>,
    /// The account at the certificate authority that the ACME account belongs to.
    pub external_account: Option<ExternalAccount>,
    /// The type of the certificate's key.
    pub key_type: CertificateKeyType,
    /// The challenges that may be answered, at least one, the preferred one first.
    pub challenges: Vec<AcmeChallenge>,
    /// The file of the ACME account, in JSON.
    pub account_path: PathBuf,
    /// The file of the certificate's key and chain, in PEM.
    pub certificate_path: PathBuf,
}

/// An account at a certificate authority.
#[derive(Debug, Clone, PartialEq)]
pub enum ExternalAccount {
    /// An account whose key is configured.
    Known {
        /// The identifier of the key.
        key_id: String,
        /// The key in base64url, which was checked.
        mac_key: SecretString,
    },
    /// The account that ZeroSSL has for an e-mail address. It issues the key on request.
    IssuedFor {
        /// The e-mail address of the account there.
        email: String,
    },
}

/// The algorithm of a certificate's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateKeyType {
    /// ECDSA with the curve P-256.
    P256,
    /// ECDSA with the curve P-384.
    P384,
    /// EdDSA with the curve Ed25519.
    Ed25519,
}

/// How the gateway proves that it serves a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// The challenge TLS-ALPN-01 (RFC 8737).
    TlsAlpn {
        /// The port to listen on beside the service's, if it is another.
        port: Option<u16>,
    },
    /// The challenge HTTP-01 (RFC 8555, section 8.3).
    Http {
        /// The port to listen on while a challenge is open.
        port: u16,
    },
}

impl AcmeChallenge {
    /// The name in ACME.
    pub fn name(self) -> &'static str {
        match self {
            Self::TlsAlpn { .. } => "tls-alpn-01",
            Self::Http { .. } => "http-01",
        }
    }
}
