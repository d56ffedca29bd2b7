//! The section `tls` of a service.

use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;

use super::acme::{RawAcme, RawCertificateProvider};
use super::form::{OneOrMany, RawDuration};
use super::unsupported::{UnsupportedField, fields, requested};

/// TLS between the clients and the gateway.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawTls {
    /// Whether clients speak TLS. If not, the other fields have no effect.
    pub(in crate::config) enabled: bool,
    /// The certificate chain in PEM: a list of lines, or one text.
    pub(in crate::config) certificate: OneOrMany<String>,
    /// The certificate chain's file. The gateway reads it again when it changes.
    pub(in crate::config) certificate_path: Option<String>,
    /// The private key in PEM: a list of lines, or one text.
    pub(in crate::config) key: OneOrMany<String>,
    /// The private key's file. The gateway reads it again when it changes.
    pub(in crate::config) key_path: Option<String>,
    /// The name that clients connect to. The gateway warns if the certificate is not valid for it.
    pub(in crate::config) server_name: Option<String>,
    /// The protocols to offer, the preferred one first. Default: `h2`, `http/1.1`.
    pub(in crate::config) alpn: OneOrMany<String>,
    /// The lowest version: `1.2` or `1.3`. Default: `1.2`.
    pub(in crate::config) min_version: Option<String>,
    /// The highest version: `1.2` or `1.3`. Default: `1.3`.
    pub(in crate::config) max_version: Option<String>,
    /// The cipher suites to offer for TLS 1.2, in any order. Those of TLS 1.3 are always offered.
    /// Default: all that are supported.
    pub(in crate::config) cipher_suites: OneOrMany<String>,
    /// The key exchanges to offer, in any order: `X25519MLKEM768`, `X25519`, `P256`, `P384`.
    /// Default: all that are supported.
    pub(in crate::config) curve_preferences: OneOrMany<String>,
    /// Whether clients present certificates: `no`, `request`, `require-any`, `verify-if-given` or
    /// `require-and-verify`. Default: `no`, or `require-and-verify` if a certificate or a public
    /// key to verify with is set.
    pub(in crate::config) client_authentication: Option<String>,
    /// The certificates of the authorities that sign those of clients, in PEM: a list of lines, or
    /// one text.
    pub(in crate::config) client_certificate: OneOrMany<String>,
    /// The files of the authorities' certificates. The gateway reads them again when they change.
    pub(in crate::config) client_certificate_path: OneOrMany<String>,
    /// The SHA-256 digests, in base64, of the public keys that clients may have.
    pub(in crate::config) client_certificate_public_key_sha256: OneOrMany<String>,
    /// Time for a handshake. Default: `limits.handshake_timeout`.
    pub(in crate::config) handshake_timeout: Option<RawDuration>,
    /// Without effect: kernel TLS is not used.
    pub(in crate::config) kernel_tx: bool,
    /// Without effect: kernel TLS is not used.
    pub(in crate::config) kernel_rx: bool,
    /// Without a certificate: a self-signed one is made at each start. With one: without effect.
    pub(in crate::config) insecure: bool,
    /// The provider that the certificate comes from: the tag of an entry in
    /// `certificate_providers`, or a provider of type `acme`.
    pub(in crate::config) certificate_provider: Option<RawCertificateProvider>,
    /// The certificate is obtained from an ACME server, and renewed.
    pub(in crate::config) acme: Option<RawAcme>,
    /// Not supported: Encrypted Client Hello.
    ech: UnsupportedField,
    /// Not supported: the Reality protocol of Xray.
    reality: UnsupportedField,
}

/// Leaves the keys out.
impl fmt::Debug for RawTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawTls")
            .field("enabled", &self.enabled)
            .finish_non_exhaustive()
    }
}

impl RawTls {
    /// The fields that are set, but not supported.
    pub(in crate::config) fn unsupported_fields(&self) -> Vec<&'static str> {
        requested(&fields!(self:
            ech,
            reality,
        ))
    }
}
