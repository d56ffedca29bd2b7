//! The section `services`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::credential::RawCredential;
use super::form::{OneOrMany, RequiredText};
use super::tls::RawTls;
use super::unsupported::{UnsupportedField, fields, requested};

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
    Resolved,
    SsmApi,
}

impl OtherServiceType {
    pub(in crate::config) fn as_str(self) -> &'static str {
        match self {
            Self::Ccm => "ccm",
            Self::Derp => "derp",
            Self::HysteriaRealm => "hysteria-realm",
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
    /// The IP address to listen on. Default: `127.0.0.1`.
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
    /// Not supported yet: the network interface to listen on.
    bind_interface: UnsupportedField,
    /// Not supported yet: the netfilter mark of the connections.
    routing_mark: UnsupportedField,
    /// Not supported yet: whether the address may be bound more than once.
    reuse_addr: UnsupportedField,
    /// Not supported yet: the network namespace to listen in.
    netns: UnsupportedField,
    /// Not supported yet: whether a connection may carry data in its first packet.
    tcp_fast_open: UnsupportedField,
    /// Not supported yet: whether a connection may use several network paths.
    tcp_multi_path: UnsupportedField,
    /// Not supported yet: whether no keep-alive probes are sent.
    disable_tcp_keep_alive: UnsupportedField,
    /// Not supported yet: the idle time before the first keep-alive probe.
    tcp_keep_alive: UnsupportedField,
    /// Not supported yet: the time between keep-alive probes.
    tcp_keep_alive_interval: UnsupportedField,
    /// Not supported yet: whether UDP packets may be fragmented.
    udp_fragment: UnsupportedField,
    /// Not supported yet: how long an idle UDP session is kept.
    udp_timeout: UnsupportedField,
    /// Not supported yet: whether connections begin with a PROXY header.
    proxy_protocol: UnsupportedField,
    /// Not supported yet: whether a connection may lack the PROXY header.
    proxy_protocol_accept_no_header: UnsupportedField,
}

impl RawOcm {
    /// The fields of the listener that are set, but not supported.
    pub(in crate::config) fn unsupported_fields(&self) -> Vec<&'static str> {
        requested(&fields!(self:
            bind_interface,
            routing_mark,
            reuse_addr,
            netns,
            tcp_fast_open,
            tcp_multi_path,
            disable_tcp_keep_alive,
            tcp_keep_alive,
            tcp_keep_alive_interval,
            udp_fragment,
            udp_timeout,
            proxy_protocol,
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
    /// The user's name in the ledger and the log.
    #[serde(default)]
    pub(in crate::config) name: RequiredText,
    /// The token that the user's clients send as `Authorization: Bearer`.
    #[serde(default)]
    pub(in crate::config) token: RequiredText,
    /// The tag of the user's credential or pool. Required with `credentials`.
    pub(in crate::config) credential: Option<String>,
    /// Whether credentials of type `external` may be used for the user. Default: false.
    #[serde(default)]
    pub(in crate::config) allow_external_usage: bool,
}
