//! The section `services`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::credential::RawCredential;
use super::form::{OneOrMany, RawRoutingMark, RequiredText};
use super::tls::RawTls;
use super::unsupported::{IgnoredField, fields, requested};

/// An entry of `services`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum RawService {
    /// A service that Tollgate runs.
    Ocm(Box<RawOcm>),
    /// A service of sing-box that Tollgate ignores.
    Other(RawOtherService),
}

/// A service of sing-box that Tollgate ignores.
#[derive(Debug, Deserialize, JsonSchema)]
pub(in crate::config) struct RawOtherService {
    /// The type of the ignored service.
    #[serde(rename = "type")]
    pub(in crate::config) kind: OtherServiceType,
}

/// The types of the services of sing-box that Tollgate ignores.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(in crate::config) enum OtherServiceType {
    Ccm,
    Derp,
    HysteriaRealm,
    OomKiller,
    Resolved,
    SsmApi,
}

impl OtherServiceType {
    pub(in crate::config) fn as_str(self) -> &'static str {
        match self {
            Self::Ccm => "ccm",
            Self::Derp => "derp",
            Self::HysteriaRealm => "hysteria-realm",
            Self::OomKiller => "oom-killer",
            Self::Resolved => "resolved",
            Self::SsmApi => "ssm-api",
        }
    }
}

/// The type of an OCM service.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum OcmType {
    /// The type that sing-box calls "OpenAI Codex Multiplexer".
    Ocm,
}

/// An OCM service: a listener, the credentials behind it and the users in front of it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawOcm {
    /// The type: always `ocm`.
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "read for its form only")]
    kind: OcmType,
    /// The service's name in the ledger and the log. Default: `ocm`, or `ocm-N` if there are
    /// several.
    pub(in crate::config) tag: Option<String>,
    /// The IP address to listen on, or `unix:` and the path of a Unix socket. Default:
    /// `127.0.0.1`.
    pub(in crate::config) listen: Option<String>,
    /// The port to listen on. With 0 the system chooses one. Default: 8080.
    pub(in crate::config) listen_port: Option<u16>,
    /// The file of the only credential. Default: `$CODEX_HOME/auth.json` or `~/.codex/auth.json`.
    /// Not with `credentials`.
    pub(in crate::config) credential_path: Option<String>,
    /// The credentials, and the pools that contain them.
    #[serde(default)]
    pub(in crate::config) credentials: OneOrMany<RawCredential>,
    /// The usage file of the only credential. Not with `credentials`.
    pub(in crate::config) usages_path: Option<String>,
    /// Who may use the service. Without users, everyone who can connect may.
    #[serde(default)]
    pub(in crate::config) users: OneOrMany<RawUser>,
    /// Header fields to set on requests to upstream. They replace those of the same name.
    #[serde(default)]
    pub(in crate::config) headers: BTreeMap<String, OneOrMany<String>>,
    /// The outbound to upstream of the only credential. Not with `credentials`.
    pub(in crate::config) detour: Option<String>,
    /// Whether credentials without a `detour` use the proxy that `HTTPS_PROXY` names, except for
    /// the hosts in `NO_PROXY`. Default: false.
    #[serde(default)]
    pub(in crate::config) use_environment_proxy: bool,
    /// TLS between the clients and the gateway. Default: none.
    #[serde(default)]
    pub(in crate::config) tls: RawTls,
    /// The base URLs of upstream.
    #[serde(default)]
    pub(in crate::config) endpoints: RawEndpoints,
    /// The tag of the pricing policy. Default: the shipped `openai-pricing`.
    pub(in crate::config) pricer: Option<String>,
    /// The tags of rewriting policies, in order. The shipped `standard-headers` runs after them.
    #[serde(default)]
    pub(in crate::config) rewriters: OneOrMany<String>,
    /// The network interface to listen on, on Linux and macOS.
    pub(in crate::config) bind_interface: Option<String>,
    /// The netfilter mark of the listener's packets, on Linux: a number, or a text such as
    /// `"0x1234"`.
    pub(in crate::config) routing_mark: Option<RawRoutingMark>,
    /// Whether other processes may listen on the same address. Default: false.
    pub(in crate::config) reuse_addr: Option<bool>,
    /// The network namespace to listen in, on Linux: a name or a path.
    pub(in crate::config) netns: Option<String>,
    /// Whether clients may send data with their first packet (TCP Fast Open). Default: false.
    pub(in crate::config) tcp_fast_open: Option<bool>,
    /// Whether clients may use several paths (Multipath TCP), on Linux. Default: false.
    pub(in crate::config) tcp_multi_path: Option<bool>,
    /// Whether silent clients are not probed. Default: false.
    pub(in crate::config) disable_tcp_keep_alive: Option<bool>,
    /// The time without data after which a client is probed. Default: `5m`.
    pub(in crate::config) tcp_keep_alive: Option<String>,
    /// The time between two probes. Default: `75s`.
    pub(in crate::config) tcp_keep_alive_interval: Option<String>,
    /// Whether each connection begins with a PROXY protocol header (version 1 or 2), which gives
    /// the client's address. Requires `trusted_proxies`. Default: false.
    pub(in crate::config) proxy_protocol: Option<bool>,
    /// The proxies whose statements about a client's address are believed: IP addresses, networks
    /// such as `10.0.0.0/8`, and `unix` for clients of a Unix socket.
    #[serde(default)]
    pub(in crate::config) trusted_proxies: OneOrMany<String>,
    /// Has no effect: the service does not use UDP.
    udp_fragment: IgnoredField,
    /// Has no effect: the service does not use UDP.
    udp_timeout: IgnoredField,
    /// Has no effect: the service does not use UDP.
    udp_disable_domain_unmapping: IgnoredField,
    /// Has no effect: the service does not look for protocols.
    sniff: IgnoredField,
    /// Has no effect: the service does not look for protocols.
    sniff_override_destination: IgnoredField,
    /// Has no effect: the service does not look for protocols.
    sniff_timeout: IgnoredField,
    /// Has no effect: the service does not look for protocols.
    domain_strategy: IgnoredField,
    /// Has no effect: with `proxy_protocol`, a connection without the header is closed.
    proxy_protocol_accept_no_header: IgnoredField,
}

impl RawOcm {
    /// The fields that set options of a TCP socket, as far as they ask for something.
    pub(in crate::config) fn socket_options(&self) -> Vec<&'static str> {
        let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        [
            ("bind_interface", is_set(&self.bind_interface)),
            ("routing_mark", self.routing_mark.is_some()),
            ("reuse_addr", self.reuse_addr == Some(true)),
            ("netns", is_set(&self.netns)),
            ("tcp_fast_open", self.tcp_fast_open == Some(true)),
            ("tcp_multi_path", self.tcp_multi_path == Some(true)),
            (
                "disable_tcp_keep_alive",
                self.disable_tcp_keep_alive == Some(true),
            ),
            ("tcp_keep_alive", is_set(&self.tcp_keep_alive)),
            (
                "tcp_keep_alive_interval",
                is_set(&self.tcp_keep_alive_interval),
            ),
        ]
        .into_iter()
        .filter(|(_, is_set)| *is_set)
        .map(|(name, _)| name)
        .collect()
    }

    /// The fields of the listener that are set, but have no effect.
    pub(in crate::config) fn ignored_fields(&self) -> Vec<&'static str> {
        requested(&fields!(self:
            udp_fragment,
            udp_timeout,
            udp_disable_domain_unmapping,
            sniff,
            sniff_override_destination,
            sniff_timeout,
            domain_strategy,
            proxy_protocol_accept_no_header,
        ))
    }
}

/// The base URLs of upstream.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawEndpoints {
    /// The backend of ChatGPT, for credentials with tokens. Default:
    /// `https://chatgpt.com/backend-api`.
    pub(in crate::config) chatgpt: Option<String>,
    /// The API, for credentials that are an API key. Default: `https://api.openai.com`.
    pub(in crate::config) api: Option<String>,
    /// The endpoint that refreshes tokens. Default: `https://auth.openai.com/oauth/token`.
    pub(in crate::config) token: Option<String>,
}

/// A user, who presents a token and is served by a credential or a pool.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawUser {
    /// The user's name in the ledger and the log. Users may share one.
    #[serde(default)]
    pub(in crate::config) name: String,
    /// The token that the user's clients send as `Authorization: Bearer`.
    #[serde(default)]
    pub(in crate::config) token: RequiredText,
    /// The tag of the user's credential or pool. Required if `credentials` has several entries.
    pub(in crate::config) credential: Option<String>,
    /// Whether credentials of type `external` may be used for the user. Default: false.
    #[serde(default)]
    pub(in crate::config) allow_external_usage: bool,
    /// The tag of a credential of type `external` that is left out of the user's status: the one by
    /// which this user's gateway is reached. Default: none.
    pub(in crate::config) external_credential: Option<String>,
}
