//! The section `tls` of a service.

use schemars::JsonSchema;
use serde::Deserialize;

use super::form::OneOrMany;
use super::unsupported::{UnsupportedField, fields, requested};

/// TLS towards clients.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawTls {
    /// Whether clients speak TLS. If not, the other fields have no effect.
    pub(in crate::config) enabled: bool,
    /// The certificate chain in PEM: a list of lines, or one text.
    pub(in crate::config) certificate: OneOrMany<String>,
    /// The certificate chain's file.
    pub(in crate::config) certificate_path: Option<String>,
    /// The private key in PEM: a list of lines, or one text.
    pub(in crate::config) key: OneOrMany<String>,
    /// The private key's file.
    pub(in crate::config) key_path: Option<String>,
    /// The protocols to offer, the preferred one first. Default: `h2`, `http/1.1`.
    pub(in crate::config) alpn: OneOrMany<String>,
    /// The lowest version: `1.2` or `1.3`. Default: `1.2`.
    pub(in crate::config) min_version: Option<String>,
    /// The highest version: `1.2` or `1.3`. Default: `1.3`.
    pub(in crate::config) max_version: Option<String>,
    /// Not supported yet.
    server_name: UnsupportedField,
    /// Not supported yet.
    insecure: UnsupportedField,
    /// Not supported yet.
    cipher_suites: UnsupportedField,
    /// Not supported yet.
    curve_preferences: UnsupportedField,
    /// Not supported yet.
    client_authentication: UnsupportedField,
    /// Not supported yet.
    client_certificate: UnsupportedField,
    /// Not supported yet.
    client_certificate_path: UnsupportedField,
    /// Not supported yet.
    kernel_tx: UnsupportedField,
    /// Not supported yet.
    kernel_rx: UnsupportedField,
    /// Not supported yet.
    handshake_timeout: UnsupportedField,
    /// Not supported yet.
    certificate_provider: UnsupportedField,
    /// Not supported yet.
    acme: UnsupportedField,
    /// Not supported yet.
    ech: UnsupportedField,
    /// Not supported yet.
    reality: UnsupportedField,
}

impl RawTls {
    /// The fields that are set, but not supported.
    pub(in crate::config) fn unsupported_fields(&self) -> Vec<&'static str> {
        requested(&fields!(self:
            server_name,
            insecure,
            cipher_suites,
            curve_preferences,
            client_authentication,
            client_certificate,
            client_certificate_path,
            kernel_tx,
            kernel_rx,
            handshake_timeout,
            certificate_provider,
            acme,
            ech,
            reality,
        ))
    }
}
