//! Certificates from an ACME server: `tls.acme`, `tls.certificate_provider` and the section
//! `certificate_providers`.

use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;

use super::form::OneOrMany;
use super::unsupported::{UnsupportedField, fields, requested};

/// A certificate that the gateway obtains from an ACME server (RFC 8555), and renews.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawAcme {
    /// The type: always `acme`. Not needed in `tls.acme`.
    #[serde(rename = "type")]
    pub(in crate::config) kind: Option<String>,
    /// The name that `tls.certificate_provider` refers to.
    pub(in crate::config) tag: Option<String>,
    /// The domains of the certificate. Without any, ACME is not used.
    pub(in crate::config) domain: OneOrMany<String>,
    /// The folder for the account and the certificate. Default: `acme` in `data_dir`.
    pub(in crate::config) data_directory: Option<String>,
    /// Has no effect: clients that send no server name get the same certificate.
    pub(in crate::config) default_server_name: Option<String>,
    /// The address at which the certificate authority can reach you.
    pub(in crate::config) email: Option<String>,
    /// The certificate authority: `letsencrypt`, `zerossl`, or the URL of an ACME directory.
    /// Default: `letsencrypt`.
    pub(in crate::config) provider: Option<String>,
    /// The private key of an existing account, in PEM: ECDSA with P-256.
    pub(in crate::config) account_key: Option<String>,
    /// Whether the challenge HTTP-01 is not used.
    pub(in crate::config) disable_http_challenge: bool,
    /// Whether the challenge TLS-ALPN-01 is not used.
    pub(in crate::config) disable_tls_alpn_challenge: bool,
    /// The port to listen on for HTTP-01, to which port 80 is forwarded. Default: 80.
    pub(in crate::config) alternative_http_port: Option<u16>,
    /// The port to listen on for TLS-ALPN-01, to which port 443 is forwarded. Default: the
    /// service's port.
    pub(in crate::config) alternative_tls_port: Option<u16>,
    /// The account at the certificate authority that the ACME account belongs to. Default for
    /// `zerossl`: the one of `email`.
    pub(in crate::config) external_account: Option<RawExternalAccount>,
    /// The type of the certificate's key: `p256`, `p384` or `ed25519`. Default: `p256`.
    pub(in crate::config) key_type: Option<String>,
    /// Has no effect: the challenge DNS-01 is not supported.
    dns01_challenge: UnsupportedField,
    /// Has no effect: the certificate authority is reached directly.
    http_client: UnsupportedField,
    /// Has no effect: the certificate authority is reached directly.
    detour: UnsupportedField,
}

/// Leaves the keys out.
impl fmt::Debug for RawAcme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawAcme")
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

impl RawAcme {
    /// The fields that are set, but not supported.
    pub(in crate::config) fn unsupported_fields(&self) -> Vec<&'static str> {
        requested(&fields!(self: dns01_challenge, http_client, detour))
    }
}

/// An account at a certificate authority, for external account binding (RFC 8555, section 7.3.4).
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawExternalAccount {
    /// The identifier of the key, as the certificate authority issued it.
    pub(in crate::config) key_id: Option<String>,
    /// The key itself, in base64url.
    pub(in crate::config) mac_key: Option<String>,
}

/// Where a certificate comes from.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum RawCertificateProvider {
    /// The tag of an entry in `certificate_providers`.
    Tag(String),
    /// A provider of type `acme`.
    Acme(Box<RawAcme>),
    /// A provider of sing-box that Tollgate does not support.
    Other(RawOtherProvider),
}

impl RawCertificateProvider {
    /// Whether it names no provider.
    pub(in crate::config) fn is_empty(&self) -> bool {
        match self {
            Self::Tag(tag) => tag.is_empty(),
            Self::Acme(_) | Self::Other(_) => false,
        }
    }
}

/// A provider of sing-box that Tollgate does not support.
#[derive(Debug, Deserialize, JsonSchema)]
pub(in crate::config) struct RawOtherProvider {
    /// The name of its type.
    #[serde(rename = "type")]
    pub(in crate::config) kind: String,
    /// The name that `tls.certificate_provider` refers to.
    pub(in crate::config) tag: Option<String>,
}
