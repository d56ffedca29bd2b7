//! The section `outbounds`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use super::form::{OneOrMany, RawDuration, RawRoutingMark};
use super::unsupported::{IgnoredField, UnsupportedField, fields, requested};

/// A way to reach upstream.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum RawOutbound {
    /// An outbound that a `detour` can name.
    Supported(Box<RawSupportedOutbound>),
    /// An outbound of sing-box of another type. It is accepted if nothing uses it.
    Other(RawOtherOutbound),
}

impl RawOutbound {
    /// The name that a `detour` refers to.
    pub(in crate::config) fn tag(&self) -> &str {
        match self {
            Self::Supported(outbound) => &outbound.tag,
            Self::Other(outbound) => &outbound.tag,
        }
    }
}

/// An outbound of sing-box that is not supported.
#[derive(Debug, Deserialize, JsonSchema)]
pub(in crate::config) struct RawOtherOutbound {
    /// The name of its type.
    #[serde(rename = "type")]
    pub(in crate::config) kind: OtherOutboundType,
    /// The name that a `detour` would refer to.
    #[serde(default)]
    pub(in crate::config) tag: String,
}

/// The name of a type of outbounds that is not one of [`OutboundType`].
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(in crate::config) struct OtherOutboundType(pub(in crate::config) String);

impl JsonSchema for OtherOutboundType {
    fn schema_name() -> Cow<'static, str> {
        "OtherOutboundType".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "Another type of sing-box.",
            "not": { "enum": ["direct", "socks", "http"] },
        })
    }
}

/// The types of outbounds that a `detour` can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::config) enum OutboundType {
    /// A connection without a proxy.
    Direct,
    /// A SOCKS proxy, of version 4, 4a or 5.
    Socks,
    /// An HTTP proxy that supports CONNECT.
    Http,
}

/// A way to reach upstream: without a proxy, or over one.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawSupportedOutbound {
    /// `direct`, `socks` or `http`.
    #[serde(rename = "type")]
    pub(in crate::config) kind: OutboundType,
    /// The name that a `detour` refers to.
    #[serde(default)]
    pub(in crate::config) tag: String,
    /// The outbound over which this one connects. The fields about sockets have no effect with it.
    pub(in crate::config) detour: Option<String>,
    /// The proxy's host name or IP address. Required for `socks` and `http`.
    pub(in crate::config) server: Option<String>,
    /// The proxy's port. Required for `socks` and `http`.
    pub(in crate::config) server_port: Option<u16>,
    /// The version of SOCKS: `4`, `4a` or `5`. Version 4 resolves names here, the others at the
    /// proxy. Default: `5`.
    pub(in crate::config) version: Option<String>,
    /// The name of the login at the proxy.
    pub(in crate::config) username: Option<String>,
    /// The password of the login at the proxy.
    pub(in crate::config) password: Option<String>,
    /// The target of the CONNECT request, for an `http` proxy that expects a path. Default: the
    /// host and port to connect to.
    pub(in crate::config) path: Option<String>,
    /// Header fields of the CONNECT request to an `http` proxy.
    #[serde(default)]
    pub(in crate::config) headers: BTreeMap<String, OneOrMany<String>>,
    /// TLS towards an `http` proxy.
    #[serde(default)]
    pub(in crate::config) tls: RawProxyTls,
    /// The network interface that sockets are bound to. Linux only.
    pub(in crate::config) bind_interface: Option<String>,
    /// The IPv4 address that sockets are bound to.
    pub(in crate::config) inet4_bind_address: Option<String>,
    /// The IPv6 address that sockets are bound to.
    pub(in crate::config) inet6_bind_address: Option<String>,
    /// Whether a socket that is bound to an address gets its port only when it connects. Linux
    /// only.
    #[serde(default)]
    pub(in crate::config) bind_address_no_port: bool,
    /// The netfilter mark of sockets: a number, or a text such as `0x1f`. Linux only.
    pub(in crate::config) routing_mark: Option<RawRoutingMark>,
    /// Whether an address that was in use a moment ago can be bound again.
    #[serde(default)]
    pub(in crate::config) reuse_addr: bool,
    /// The network namespace of sockets: a name below `/run/netns`, or a path. Names are resolved
    /// outside of it. Linux only.
    pub(in crate::config) netns: Option<String>,
    /// The time for connecting to one address. Default: what `limits.connect_timeout` leaves.
    pub(in crate::config) connect_timeout: Option<RawDuration>,
    /// Whether the first data is sent with the connection request, if the server supports that.
    /// Linux only.
    #[serde(default)]
    pub(in crate::config) tcp_fast_open: bool,
    /// Whether Multipath TCP is used, if the system supports it. Linux only.
    #[serde(default)]
    pub(in crate::config) tcp_multi_path: bool,
    /// Whether silent connections are left alone.
    #[serde(default)]
    pub(in crate::config) disable_tcp_keep_alive: bool,
    /// The time after which a silent connection is probed. Default: `5m`.
    pub(in crate::config) tcp_keep_alive: Option<RawDuration>,
    /// The time between two probes. Default: `75s`.
    pub(in crate::config) tcp_keep_alive_interval: Option<RawDuration>,
    /// The time after which addresses of the other IP version are tried, too. Default: `300ms`.
    pub(in crate::config) fallback_delay: Option<RawDuration>,
    /// Has no effect: the system resolves names.
    domain_resolver: IgnoredField,
    /// Has no effect: the system resolves names.
    domain_strategy: IgnoredField,
    /// Has no effect: the system chooses the network.
    network_strategy: IgnoredField,
    /// Has no effect: the system chooses the network.
    network_type: IgnoredField,
    /// Has no effect: the system chooses the network.
    fallback_network_type: IgnoredField,
    /// Has no effect: only TCP is used.
    network: IgnoredField,
    /// Has no effect: only TCP is used.
    udp_fragment: IgnoredField,
    /// Has no effect: only TCP is used.
    udp_over_tcp: IgnoredField,
    /// Has no effect: upstream's address is in `endpoints`.
    override_address: IgnoredField,
    /// Has no effect: upstream's address is in `endpoints`.
    override_port: IgnoredField,
    /// Has no effect: upstream does not support it.
    proxy_protocol: IgnoredField,
    /// Has no effect: it belongs to VPN apps of Android.
    protect_path: IgnoredField,
}

impl fmt::Debug for RawSupportedOutbound {
    /// Prints no login and no header field.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawSupportedOutbound")
            .field("kind", &self.kind)
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

impl RawSupportedOutbound {
    /// The fields that are set, but have no effect.
    pub(in crate::config) fn ignored_fields(&self) -> Vec<&'static str> {
        requested(&fields!(self:
            domain_resolver,
            domain_strategy,
            network_strategy,
            network_type,
            fallback_network_type,
            network,
            udp_fragment,
            udp_over_tcp,
            override_address,
            override_port,
            proxy_protocol,
            protect_path,
        ))
    }

    /// The fields about sockets that are set.
    pub(in crate::config) fn socket_fields(&self) -> Vec<&'static str> {
        let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let fields = [
            ("bind_interface", is_set(&self.bind_interface)),
            ("inet4_bind_address", is_set(&self.inet4_bind_address)),
            ("inet6_bind_address", is_set(&self.inet6_bind_address)),
            ("bind_address_no_port", self.bind_address_no_port),
            ("routing_mark", self.routing_mark.is_some()),
            ("reuse_addr", self.reuse_addr),
            ("netns", is_set(&self.netns)),
            ("connect_timeout", self.connect_timeout.is_some()),
            ("tcp_fast_open", self.tcp_fast_open),
            ("tcp_multi_path", self.tcp_multi_path),
            ("disable_tcp_keep_alive", self.disable_tcp_keep_alive),
            ("tcp_keep_alive", self.tcp_keep_alive.is_some()),
            (
                "tcp_keep_alive_interval",
                self.tcp_keep_alive_interval.is_some(),
            ),
            ("fallback_delay", self.fallback_delay.is_some()),
        ];
        names_of_set(&fields)
    }

    /// The fields that are set, but belong to outbounds of another type.
    pub(in crate::config) fn misplaced_fields(&self) -> Vec<&'static str> {
        let (is_direct, is_http) = match self.kind {
            OutboundType::Direct => (true, false),
            OutboundType::Socks => (false, false),
            OutboundType::Http => (false, true),
        };
        names_of_set(&[
            ("server", is_direct && self.server.is_some()),
            ("server_port", is_direct && self.server_port.is_some()),
            ("version", (is_direct || is_http) && self.version.is_some()),
            ("username", is_direct && self.username.is_some()),
            ("password", is_direct && self.password.is_some()),
            ("path", !is_http && self.path.is_some()),
            ("headers", !is_http && !self.headers.is_empty()),
            ("tls", !is_http && self.tls.enabled),
        ])
    }
}

fn names_of_set(fields: &[(&'static str, bool)]) -> Vec<&'static str> {
    fields
        .iter()
        .filter(|(_, is_set)| *is_set)
        .map(|(name, _)| *name)
        .collect()
}

/// TLS towards a proxy.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawProxyTls {
    /// Whether the proxy speaks TLS. If not, the other fields have no effect.
    pub(in crate::config) enabled: bool,
    /// The name in the proxy's certificate. Default: `server`.
    pub(in crate::config) server_name: Option<String>,
    /// Whether the name is not sent to the proxy.
    pub(in crate::config) disable_sni: bool,
    /// Whether any certificate of the proxy is accepted.
    pub(in crate::config) insecure: bool,
    /// The lowest version: `1.2` or `1.3`. Default: `1.2`.
    pub(in crate::config) min_version: Option<String>,
    /// The highest version: `1.2` or `1.3`. Default: `1.3`.
    pub(in crate::config) max_version: Option<String>,
    /// The certificates that are trusted in place of the system's, in PEM: a list of lines, or one
    /// text.
    pub(in crate::config) certificate: OneOrMany<String>,
    /// The file of these certificates.
    pub(in crate::config) certificate_path: Option<String>,
    /// The SHA-256 digests, in base64, of the public keys of which the proxy's certificate must
    /// have one. Its issuer is not checked then.
    pub(in crate::config) certificate_public_key_sha256: OneOrMany<String>,
    /// The certificate chain that is presented to the proxy, in PEM: a list of lines, or one text.
    pub(in crate::config) client_certificate: OneOrMany<String>,
    /// The file of this certificate chain.
    pub(in crate::config) client_certificate_path: Option<String>,
    /// The private key of `client_certificate`, in PEM: a list of lines, or one text.
    pub(in crate::config) client_key: OneOrMany<String>,
    /// The file of this private key.
    pub(in crate::config) client_key_path: Option<String>,
    /// Not supported: hiding the proxy's name from the network.
    ech: UnsupportedField,
    /// Not supported: posing as the client of another site.
    reality: UnsupportedField,
    /// Has no effect: only HTTP/1.1 is spoken with a proxy.
    alpn: IgnoredField,
    /// Has no effect: the TLS library chooses.
    cipher_suites: IgnoredField,
    /// Has no effect: the TLS library chooses.
    curve_preferences: IgnoredField,
    /// Has no effect: handshakes are sent in one piece.
    fragment: IgnoredField,
    /// Has no effect: handshakes are sent in one piece.
    fragment_fallback_delay: IgnoredField,
    /// Has no effect: handshakes are sent in one piece.
    record_fragment: IgnoredField,
    /// Has no effect: no browser is imitated.
    utls: IgnoredField,
    /// Has no effect: TLS is not offloaded.
    kernel_tx: IgnoredField,
    /// Has no effect: TLS is not offloaded.
    kernel_rx: IgnoredField,
    /// Has no effect: `limits.connect_timeout` bounds the handshake.
    handshake_timeout: IgnoredField,
}

impl fmt::Debug for RawProxyTls {
    /// Leaves out the key, which is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawProxyTls")
            .field("enabled", &self.enabled)
            .finish_non_exhaustive()
    }
}

impl RawProxyTls {
    /// The fields that are set, but not supported: without them the connection would be another.
    pub(in crate::config) fn unsupported_fields(&self) -> Vec<&'static str> {
        requested(&fields!(self: ech, reality))
    }

    /// The fields that are set, but have no effect.
    pub(in crate::config) fn ignored_fields(&self) -> Vec<&'static str> {
        requested(&fields!(self:
            alpn,
            cipher_suites,
            curve_preferences,
            fragment,
            fragment_fallback_delay,
            record_fragment,
            utls,
            kernel_tx,
            kernel_rx,
            handshake_timeout,
        ))
    }
}
