//! The configuration as an operator writes it. These types are the source of the JSON Schema, and the schema is what
//! the file is checked against: a description here is what an editor shows.
//!
//! Nothing here is checked beyond its shape; `resolve` does the rest.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::Value;

/// Tollgate's configuration.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// Where the log goes, and how much of it.
    pub log: RawLog,
    /// What is served: entries of type `ocm`.
    pub services: OneOrMany<RawService>,
    /// Ways to upstream that a `detour` may name.
    pub outbounds: OneOrMany<RawOutbound>,
    /// Policies of one's own, beside the shipped ones.
    pub policies: OneOrMany<RawPolicy>,
    /// The folder of the ledger. Default: `$XDG_DATA_HOME/tollgate` or `~/.local/share/tollgate`.
    pub data_dir: Option<String>,
    /// The listener for operators: health, metrics and policies over HTTP.
    pub admin: Option<RawAdmin>,
    /// The bounds of the gateway.
    pub limits: RawLimits,
    /// The JSON Schema of this file, for editors.
    #[serde(rename = "$schema")]
    pub schema: Option<String>,
}

/// A single item, or a list of them.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// A list.
    Many(Vec<T>),
    /// A single item, without the brackets.
    One(T),
}

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl<T> OneOrMany<T> {
    /// The items.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::Many(items) => items,
            Self::One(item) => std::slice::from_ref(item),
        }
    }
}

/// The listener for operators.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawAdmin {
    /// The address. Default: `127.0.0.1`.
    pub listen: Option<String>,
    /// The port; 0 takes a free one. Default: 9090.
    pub listen_port: Option<u16>,
    /// What operators show as `Authorization: Bearer`; needed where the address is not loopback. Without one, policies
    /// cannot be changed over this listener.
    pub token: Option<String>,
}

/// A span of time: numbers with units (`ns`, `us`, `ms`, `s`, `m`, `h`, `d`), such as `60s` or `1h30m`.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct RawDuration(pub String);

impl JsonSchema for RawDuration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "Numbers with units (ns, us, ms, s, m, h, d), such as 60s or 1h30m",
            "pattern": r"^([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h|d))+$",
        })
    }
}

/// The log.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawLog {
    /// No log at all.
    pub disabled: bool,
    /// The least level that is written. Default: `info`.
    pub level: Option<LogLevel>,
    /// A file, `stdout` or `stderr`. Default: `stderr`.
    pub output: Option<String>,
    /// Whether lines begin with the time. Default: true.
    pub timestamp: Option<bool>,
    /// `json`, or `text` for people. Default: `text` on a terminal, `json` elsewhere.
    pub format: Option<LogFormat>,
}

/// A level of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// The most.
    Trace,
    /// For whoever looks for a fault.
    Debug,
    /// One line a request.
    Info,
    /// What is odd.
    Warn,
    /// What is wrong.
    Error,
    /// As `error`.
    Fatal,
    /// As `error`.
    Panic,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// A service.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawService {
    /// The one that Tollgate serves.
    Ocm(Box<RawOcm>),
    /// One that sing-box serves and Tollgate skips.
    Other(RawOtherService),
}

/// A service of sing-box that Tollgate does not serve.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct RawOtherService {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: OtherServiceType,
}

/// The types of services of sing-box that Tollgate does not serve.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names are sing-box's")]
pub enum OtherServiceType {
    Ccm,
    Derp,
    HysteriaRealm,
    Resolved,
    SsmApi,
}

impl OtherServiceType {
    /// Its name, as it is written.
    pub fn name(self) -> &'static str {
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
pub enum OcmType {
    /// OpenAI Codex Multiplexer.
    Ocm,
}

/// An OCM service: a listener, the credentials behind it and the users before it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawOcm {
    /// `ocm`
    #[serde(rename = "type")]
    pub kind: OcmType,
    /// The service's name in the ledger and the log. Default: `ocm`, or `ocm-N` where there are several.
    pub tag: Option<String>,
    /// The address to listen on. Default: `127.0.0.1`.
    pub listen: Option<String>,
    /// The port to listen on; 0 takes a free one. Default: 8080.
    pub listen_port: Option<u16>,
    /// The credential's file. Default: `$CODEX_HOME/auth.json` or `~/.codex/auth.json`. Not with `credentials`.
    pub credential_path: Option<String>,
    /// The credentials and the pools that are made of them.
    #[serde(default)]
    pub credentials: OneOrMany<RawCredential>,
    /// The usage file. Not with `credentials`.
    pub usages_path: Option<String>,
    /// Who may use the service. Nobody named: everybody who reaches it.
    #[serde(default)]
    pub users: OneOrMany<RawUser>,
    /// Header fields to set on requests to upstream, in place of those of the same name.
    #[serde(default)]
    pub headers: BTreeMap<String, OneOrMany<String>>,
    /// The outbound to upstream. Not with `credentials`.
    pub detour: Option<String>,
    /// TLS towards clients.
    #[serde(default)]
    pub tls: RawTls,
    /// Where upstream is.
    #[serde(default)]
    pub endpoints: RawEndpoints,
    /// The tag of the pricing policy. Default: the shipped `openai-pricing`.
    pub pricer: Option<String>,
    /// The tags of rewriting policies, in order. The shipped `standard-headers` follows them.
    #[serde(default)]
    pub rewriters: OneOrMany<String>,
    /// Not there yet.
    pub bind_interface: Option<Value>,
    /// Not there yet.
    pub routing_mark: Option<Value>,
    /// Not there yet.
    pub reuse_addr: Option<Value>,
    /// Not there yet.
    pub netns: Option<Value>,
    /// Not there yet.
    pub tcp_fast_open: Option<Value>,
    /// Not there yet.
    pub tcp_multi_path: Option<Value>,
    /// Not there yet.
    pub disable_tcp_keep_alive: Option<Value>,
    /// Not there yet.
    pub tcp_keep_alive: Option<Value>,
    /// Not there yet.
    pub tcp_keep_alive_interval: Option<Value>,
    /// Not there yet.
    pub udp_fragment: Option<Value>,
    /// Not there yet.
    pub udp_timeout: Option<Value>,
    /// Not there yet.
    pub proxy_protocol: Option<Value>,
    /// Not there yet.
    pub proxy_protocol_accept_no_header: Option<Value>,
}

impl RawOcm {
    /// The listen fields that are set and not there yet, by name.
    pub fn later_fields(&self) -> Vec<&'static str> {
        let fields = [
            ("bind_interface", &self.bind_interface),
            ("routing_mark", &self.routing_mark),
            ("reuse_addr", &self.reuse_addr),
            ("netns", &self.netns),
            ("tcp_fast_open", &self.tcp_fast_open),
            ("tcp_multi_path", &self.tcp_multi_path),
            ("disable_tcp_keep_alive", &self.disable_tcp_keep_alive),
            ("tcp_keep_alive", &self.tcp_keep_alive),
            ("tcp_keep_alive_interval", &self.tcp_keep_alive_interval),
            ("udp_fragment", &self.udp_fragment),
            ("udp_timeout", &self.udp_timeout),
            ("proxy_protocol", &self.proxy_protocol),
            (
                "proxy_protocol_accept_no_header",
                &self.proxy_protocol_accept_no_header,
            ),
        ];
        set_fields(&fields)
    }
}

/// The fields that ask for something: one that is empty, or says no, asks for what there is without it.
fn set_fields(fields: &[(&'static str, &Option<Value>)]) -> Vec<&'static str> {
    fields
        .iter()
        .filter(|(_, value)| value.as_ref().is_some_and(asks))
        .map(|(name, _)| *name)
        .collect()
}

fn asks(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) => true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => {
            fields.get("enabled") != Some(&Value::Bool(false)) && !fields.is_empty()
        }
    }
}

/// Where upstream is; each with a default.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawEndpoints {
    /// The backend of ChatGPT. Default: `https://chatgpt.com/backend-api`.
    pub chatgpt: Option<String>,
    /// The API. Default: `https://api.openai.com`.
    pub api: Option<String>,
    /// Where tokens are refreshed. Default: `https://auth.openai.com/oauth/token`.
    pub token: Option<String>,
}

/// A user.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawUser {
    /// The user's name in the ledger and the log.
    #[serde(default)]
    pub name: String,
    /// What the user's clients send as `Authorization: Bearer`.
    #[serde(default)]
    pub token: String,
    /// The credential or pool that serves the user. Required with `credentials`.
    pub credential: Option<String>,
    /// Whether credentials of type `external` may serve the user. Default: false.
    #[serde(default)]
    pub allow_external_usage: bool,
}

/// A credential, or a pool of them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawCredential {
    /// A file.
    Default(RawDefault),
    /// A pool whose members are chosen by a strategy.
    Balancer(RawBalancer),
    /// A pool whose members are taken in order.
    Fallback(RawFallback),
    /// Another gateway.
    External(RawExternal),
    /// What is not there yet.
    Later(RawLaterCredential),
}

/// The type of a credential that is a file.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the name says it")]
pub enum DefaultType {
    Default,
}

/// The type of a pool with a strategy.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the name says it")]
pub enum BalancerType {
    Balancer,
}

/// The type of a pool in order.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the name says it")]
pub enum FallbackType {
    Fallback,
}

/// The type of a credential that is another gateway.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the name says it")]
pub enum ExternalType {
    External,
}

/// Types of credentials that are not there yet.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum LaterCredentialType {
    Reverse,
}

/// A credential that is a file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawDefault {
    /// `default`, or left out.
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "read for its shape only")]
    kind: Option<DefaultType>,
    /// Its name.
    #[serde(default)]
    pub tag: String,
    /// The file. Default: `$CODEX_HOME/auth.json` or `~/.codex/auth.json`.
    pub credential_path: Option<String>,
    /// The usage file.
    pub usages_path: Option<String>,
    /// The outbound to upstream.
    pub detour: Option<String>,
    /// Pauses the credential at 100 minus this many percent of its 5-hour window.
    #[schemars(range(min = 1, max = 99))]
    pub reserve_5h: Option<u8>,
    /// Pauses the credential at 100 minus this many percent of its weekly window.
    #[schemars(range(min = 1, max = 99))]
    pub reserve_weekly: Option<u8>,
    /// Pauses the credential at this many percent of its 5-hour window. Not with `reserve_5h`.
    #[schemars(range(min = 1, max = 100))]
    pub limit_5h: Option<u8>,
    /// Pauses the credential at this many percent of its weekly window. Not with `reserve_weekly`.
    #[schemars(range(min = 1, max = 100))]
    pub limit_weekly: Option<u8>,
}

/// A pool whose members are chosen by a strategy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawBalancer {
    /// `balancer`
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "read for its shape only")]
    kind: BalancerType,
    /// Its name.
    #[serde(default)]
    pub tag: String,
    /// `least_used`, `round_robin`, `random`, `fallback`, or the tag of a policy. Default: `least_used`.
    pub strategy: Option<String>,
    /// The tags of its members.
    #[serde(default)]
    pub credentials: OneOrMany<String>,
    /// How often upstream is asked for the members' use. Default: `60s`.
    pub poll_interval: Option<RawDuration>,
    /// Moves a session when its credential's weekly use exceeds the best one's by more than this many percentage
    /// points, divided by its plan's weight. 0: never. For `least_used`.
    #[schemars(range(min = 0.0))]
    pub rebalance_threshold: Option<f64>,
}

/// A pool whose members are taken in order.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawFallback {
    /// `fallback`
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "read for its shape only")]
    kind: FallbackType,
    /// Its name.
    #[serde(default)]
    pub tag: String,
    /// The tags of its members, in order.
    #[serde(default)]
    pub credentials: OneOrMany<String>,
    /// How often upstream is asked for the members' use. Default: `60s`.
    pub poll_interval: Option<RawDuration>,
}

/// Another gateway that speaks this protocol, with a token that it gave to one of its users.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawExternal {
    /// `external`
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "read for its shape only")]
    kind: ExternalType,
    /// Its name.
    #[serde(default)]
    pub tag: String,
    /// Where it listens, such as `https://gateway.example:8080`.
    #[serde(default)]
    pub url: String,
    /// The token that it knows this gateway by.
    #[serde(default)]
    pub token: String,
    /// The outbound to it.
    pub detour: Option<String>,
    /// The usage file.
    pub usages_path: Option<String>,
    /// How often it is asked for its use. Default: `60s`.
    pub poll_interval: Option<RawDuration>,
}

/// A credential of a type that is not there yet.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct RawLaterCredential {
    /// `reverse`
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "read for its shape only")]
    kind: LaterCredentialType,
    /// Its name.
    #[serde(default)]
    pub tag: String,
}

/// TLS towards clients.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawTls {
    /// Whether clients speak TLS.
    pub enabled: bool,
    /// The certificate chain, in PEM, a line an item or whole.
    pub certificate: OneOrMany<String>,
    /// The certificate chain's file.
    pub certificate_path: Option<String>,
    /// The private key, in PEM, a line an item or whole.
    pub key: OneOrMany<String>,
    /// The private key's file.
    pub key_path: Option<String>,
    /// The protocols that are offered, the preferred first. Default: `h2`, `http/1.1`.
    pub alpn: OneOrMany<String>,
    /// `1.2` or `1.3`. Default: `1.2`.
    pub min_version: Option<String>,
    /// `1.2` or `1.3`. Default: `1.3`.
    pub max_version: Option<String>,
    /// Not there yet.
    pub server_name: Option<Value>,
    /// Not there yet.
    pub insecure: Option<Value>,
    /// Not there yet.
    pub cipher_suites: Option<Value>,
    /// Not there yet.
    pub curve_preferences: Option<Value>,
    /// Not there yet.
    pub client_authentication: Option<Value>,
    /// Not there yet.
    pub client_certificate: Option<Value>,
    /// Not there yet.
    pub client_certificate_path: Option<Value>,
    /// Not there yet.
    pub kernel_tx: Option<Value>,
    /// Not there yet.
    pub kernel_rx: Option<Value>,
    /// Not there yet.
    pub handshake_timeout: Option<Value>,
    /// Not there yet.
    pub certificate_provider: Option<Value>,
    /// Not there yet.
    pub acme: Option<Value>,
    /// Not there yet.
    pub ech: Option<Value>,
    /// Not there yet.
    pub reality: Option<Value>,
}

impl RawTls {
    /// The fields that are set and not there yet, by name.
    pub fn later_fields(&self) -> Vec<&'static str> {
        let fields = [
            ("server_name", &self.server_name),
            ("insecure", &self.insecure),
            ("cipher_suites", &self.cipher_suites),
            ("curve_preferences", &self.curve_preferences),
            ("client_authentication", &self.client_authentication),
            ("client_certificate", &self.client_certificate),
            ("client_certificate_path", &self.client_certificate_path),
            ("kernel_tx", &self.kernel_tx),
            ("kernel_rx", &self.kernel_rx),
            ("handshake_timeout", &self.handshake_timeout),
            ("certificate_provider", &self.certificate_provider),
            ("acme", &self.acme),
            ("ech", &self.ech),
            ("reality", &self.reality),
        ];
        set_fields(&fields)
    }
}

/// A way to upstream. Any of sing-box's may stand here; only one that a `detour` names must be known.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct RawOutbound {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its name.
    #[serde(default)]
    pub tag: String,
}

/// A policy of one's own.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawPolicy {
    /// Its name in this file.
    #[serde(default)]
    pub tag: String,
    /// What it decides.
    pub kind: PolicyKind,
    /// The component's file, or `builtin:NAME` for a shipped one.
    #[serde(default)]
    pub path: String,
    /// Its configuration, as its own schema says.
    pub config: Option<Value>,
    /// How long one call may take. Default: `5ms`. A call is looked at every few milliseconds: one of less than `4ms` may
    /// take that long.
    pub timeout: Option<RawDuration>,
    /// How much memory an instance may have, in bytes, and as much again what it hands over in one call. Default: 16777216.
    pub memory: Option<u64>,
    /// For a rewriter: what happens to a request when it fails. Default: `refuse`.
    pub on_failure: Option<OnFailure>,
    /// Another component, which is run on the same arguments beside this one. What it says changes nothing: where it
    /// says something else, that is counted and kept.
    pub shadow: Option<String>,
    /// A file in which each call is kept, as JSON lines: for `tollgate policy replay` and `tollgate explain`.
    pub record: Option<String>,
}

/// What a policy decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PolicyKind {
    /// Which credential serves a request.
    Balancer,
    /// How header fields are rewritten.
    Rewriter,
    /// What usage costs.
    Pricer,
}

/// What happens to a request when its rewriter fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It is answered with 500.
    #[default]
    Refuse,
    /// It goes on without the rewriter's edits.
    Skip,
}

/// What happens to requests while the ledger cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawLedgerFull {
    /// They are answered with 503.
    Refuse,
    /// They are served; rows wait in memory, and in the log where there is no more room.
    Serve,
}

/// When a request goes on to the next credential of its pool, before a byte of an answer was sent. Each is on by
/// default.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawFailover {
    /// Upstream answers 429.
    pub rate_limited: Option<bool>,
    /// Upstream refuses the credential's token (401), and a refresh does not help.
    pub unauthorized: Option<bool>,
    /// No connection comes about.
    pub unreachable: Option<bool>,
    /// The response's head does not come within `upstream_head_timeout`.
    pub timed_out: Option<bool>,
    /// Upstream answers 502.
    pub bad_gateway: Option<bool>,
    /// Upstream answers 503.
    pub service_unavailable: Option<bool>,
    /// Upstream answers 504.
    pub gateway_timeout: Option<bool>,
}

/// The bounds of the gateway. Sizes are in bytes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawLimits {
    /// A request's head; past it 431. Default: 65536.
    #[schemars(range(min = 8192, max = 1048576))]
    pub request_head_bytes: Option<u64>,
    /// A request's body; past it 413. Default: 134217728.
    pub request_body_bytes: Option<u64>,
    /// How much of a body is kept so that it can be sent to another credential. Default: 33554432.
    pub replay_bytes: Option<u64>,
    /// How far a compressed body is decoded on the side, for metering. Default: 268435456.
    pub decoded_bytes: Option<u64>,
    /// How far the body of a refused request is read on, so that its client sees the answer. Default: 16777216.
    pub discard_bytes: Option<u64>,
    /// Connections from clients at a time. Default: 16384.
    #[schemars(range(min = 1))]
    pub connections: Option<u64>,
    /// Streams at a time on one HTTP/2 connection. Default: 256.
    #[schemars(range(min = 1))]
    pub http2_streams: Option<u32>,
    /// Requests whose rows are not yet in the ledger; past it 503. Default: 16384.
    #[schemars(range(min = 1, max = 1048576))]
    pub settle_queue: Option<u64>,
    /// The ledger's size on disk; 0: as far as the disk goes. Default: 0.
    pub ledger_bytes: Option<u64>,
    /// A message over a WebSocket. Default: 67108864.
    #[schemars(range(min = 1))]
    pub websocket_message_bytes: Option<u64>,
    /// WebSockets of one user at a time. Default: 256.
    #[schemars(range(min = 1))]
    pub websockets_per_user: Option<u64>,
    /// What happens to requests while the ledger cannot be written. Default: `refuse`.
    pub ledger_full: Option<RawLedgerFull>,
    /// Sessions whose credential is remembered. Default: 65536.
    #[schemars(range(min = 1))]
    pub sessions: Option<u64>,
    /// Client addresses whose failed authentications are remembered. Default: 4096.
    #[schemars(range(min = 1))]
    pub auth_addresses: Option<u64>,
    /// A TLS handshake. Default: `10s`.
    pub handshake_timeout: Option<RawDuration>,
    /// To the end of a request's head. Default: `60s`.
    pub head_timeout: Option<RawDuration>,
    /// Between two parts of a request's body. Default: `60s`.
    pub body_timeout: Option<RawDuration>,
    /// For how long the body of a refused request is read on. Default: `10s`.
    pub discard_timeout: Option<RawDuration>,
    /// For how long a client may take nothing of what is sent to it. Default: `5m`.
    pub client_stall_timeout: Option<RawDuration>,
    /// To a connection to upstream. Default: `10s`.
    pub connect_timeout: Option<RawDuration>,
    /// From a request to upstream to the response's head; past it 504. Default: `10m`.
    pub upstream_head_timeout: Option<RawDuration>,
    /// Between two parts of upstream's response. Default: `10m`.
    pub upstream_idle_timeout: Option<RawDuration>,
    /// For how long a response's last byte waits for its row. Default: `10s`.
    pub commit_timeout: Option<RawDuration>,
    /// For how long requests may go on after a signal to stop. Default: `30s`.
    pub drain_timeout: Option<RawDuration>,
    /// From a request's first attempt to the head of its last one's response. Default: `15m`.
    pub failover_timeout: Option<RawDuration>,
    /// When a request goes on to the next credential.
    pub failover: RawFailover,
    /// For how long a refresh of tokens may take. Default: `30s`.
    pub refresh_timeout: Option<RawDuration>,
    /// For how long another process may hold the lock of an auth.json. Default: `20s`.
    pub lock_timeout: Option<RawDuration>,
    /// For how long upstream may take to tell a credential's use. Default: `5s`.
    pub poll_timeout: Option<RawDuration>,
    /// After how long without a message a WebSocket is closed. Default: `1h`.
    pub websocket_idle_timeout: Option<RawDuration>,
    /// After how long a client that is quiet on its WebSocket is sent a ping; after twice that it is taken for gone.
    /// Default: `30s`.
    pub websocket_ping_interval: Option<RawDuration>,
    /// For how long an idle connection to upstream is kept. Default: `90s`.
    pub upstream_keep_alive: Option<RawDuration>,
    /// After how long without a request a session's credential is forgotten. Default: `24h`.
    pub session_lifetime: Option<RawDuration>,
    /// Threads for policies that are too slow for the threads that serve requests. Default: 2.
    #[schemars(range(min = 1, max = 256))]
    pub policy_threads: Option<u64>,
    /// Calls that wait for one of those threads; past it a call fails. Default: 1024.
    #[schemars(range(min = 1, max = 1048576))]
    pub policy_queue: Option<u64>,
    /// A policy whose warm call takes longer runs on those threads. Default: `250us`.
    pub policy_slow_after: Option<RawDuration>,
    /// For how long a start waits for a policy's component to be compiled; then it goes on in the background.
    /// Default: `3s`.
    pub policy_start_wait: Option<RawDuration>,
    /// Compiled code of policies that is kept in `data_dir`; 0: none. Default: 268435456.
    pub policy_cache_bytes: Option<u64>,
    /// Faults within `policy_fault_window` that put a policy into quarantine. Default: 5.
    #[schemars(range(min = 1, max = 1000))]
    pub policy_faults: Option<u64>,
    /// The span in which faults count together. Default: `60s`.
    pub policy_fault_window: Option<RawDuration>,
    /// The first quarantine; it doubles with each further one. Default: `10s`.
    pub policy_quarantine: Option<RawDuration>,
    /// The longest quarantine. Default: `10m`.
    pub policy_quarantine_max: Option<RawDuration>,
    /// Calls in which a new generation of a policy must prove itself, or the one before it is back. Default: 100.
    pub policy_probation_calls: Option<u64>,
    /// Lines that one policy may write to the log in a second. Default: 100.
    pub policy_log_lines: Option<u64>,
    /// The size at which a record of policy calls begins anew. Default: 67108864.
    #[schemars(range(min = 4096))]
    pub policy_record_bytes: Option<u64>,
    /// Full records that are kept beside the one that is written. Default: 4.
    #[schemars(range(max = 1000))]
    pub policy_record_files: Option<u64>,
}
