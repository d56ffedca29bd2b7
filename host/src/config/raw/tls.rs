//! The section `tls` of a service.

use schemars::JsonSchema;
use serde::Deserialize;

use super::form::OneOrMany;
use super::unsupported::{UnsupportedField, fields, requested};

/// TLS between the clients and the gateway.
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
    /// Not supported yet: the server name that clients must ask for.
    server_name: UnsupportedField,
    /// Not supported yet: whether certificates are accepted unchecked.
    insecure: UnsupportedField,
    /// Not supported yet: the cipher suites to offer.
    cipher_suites: UnsupportedField,
    /// Not supported yet: the key exchanges to offer, the preferred one first.
    curve_preferences: UnsupportedField,
    /// Not supported yet: whether clients present a certificate.
    client_authentication: UnsupportedField,
    /// Not supported yet: the certificates that clients are checked against, in PEM.
    client_certificate: UnsupportedField,
    /// Not supported yet: the files of the certificates that clients are checked against.
    client_certificate_path: UnsupportedField,
    /// Not supported yet: whether the kernel encrypts what is sent.
    kernel_tx: UnsupportedField,
    /// Not supported yet: whether the kernel decrypts what is received.
    kernel_rx: UnsupportedField,
    /// Not supported yet: how long a handshake may take.
    handshake_timeout: UnsupportedField,
    /// Not supported yet: the provider that the certificate comes from.
    certificate_provider: UnsupportedField,
    /// Not supported yet: a certificate that is issued over ACME.
    acme: UnsupportedField,
    /// Not supported yet: Encrypted Client Hello.
    ech: UnsupportedField,
    /// Not supported yet: the Reality protocol of Xray.
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
