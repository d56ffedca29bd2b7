//! The resolved outbounds: how connections to upstream are made.
//!
//! An outbound is serialized in one case only: the process that refreshes a credential receives the
//! outbound to the token endpoint over a pipe, secrets included. `Debug` prints no secret.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::TlsVersion;
use super::listen::KeepAliveTimes;
use crate::values::secret::SecretString;

/// The time after which a silent connection is probed by default.
const KEEP_ALIVE: Duration = Duration::from_secs(5 * 60);

/// The time between two probes by default.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(75);

/// The time after which addresses of the other IP version are tried by default (RFC 8305 names
/// 250 ms, sing-box 300 ms).
const FALLBACK_DELAY: Duration = Duration::from_millis(300);

/// How the connections of a credential are made.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum UpstreamRoute {
    /// From this host to upstream, without an outbound.
    #[default]
    Direct,
    /// Through the outbound of a `detour`.
    Outbound(Arc<OutboundConfig>),
    /// Through the proxies that the environment names.
    Environment(Arc<EnvironmentProxies>),
}

/// The proxies that the environment names.
#[derive(Debug, Clone, PartialEq)]
pub struct EnvironmentProxies {
    /// The proxy for `https` URLs: `HTTPS_PROXY` or `ALL_PROXY`.
    pub https: Option<OutboundConfig>,
    /// The proxy for `http` URLs: `HTTP_PROXY` or `ALL_PROXY`.
    pub http: Option<OutboundConfig>,
    /// The hosts that are reached without a proxy, as `NO_PROXY` lists them.
    pub no_proxy: String,
}

/// An outbound, and how it connects itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutboundConfig {
    /// Its name in the configuration, or the variable that it comes from.
    pub tag: String,
    /// What is spoken with its server.
    pub protocol: OutboundProtocol,
    /// How its server is reached.
    pub carrier: OutboundCarrier,
}

/// What an outbound speaks with its server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum OutboundProtocol {
    /// There is no server: the outbound connects to the target.
    Direct,
    /// SOCKS of one of its versions.
    Socks(SocksProxy),
    /// HTTP with the method CONNECT.
    Http(Box<HttpProxy>),
}

/// How an outbound connects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum OutboundCarrier {
    /// With sockets of this host.
    Sockets(SocketOptions),
    /// Through the outbound of its `detour`.
    Outbound(Box<OutboundConfig>),
}

/// Where a proxy listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyAddress {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The port in TCP.
    pub port: u16,
}

/// How a SOCKS proxy is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SocksProxy {
    /// Where the proxy listens.
    pub address: ProxyAddress,
    /// The version that it is spoken to with.
    pub version: SocksVersion,
    /// The login. Versions 4 and 4a have no password.
    pub login: Option<ProxyLogin>,
}

/// The versions of SOCKS, and who resolves names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocksVersion {
    /// Version 4. Names are resolved by the gateway, to IPv4 addresses.
    V4,
    /// Version 4a. Names are resolved by the proxy, to IPv4 addresses.
    V4a,
    /// Version 5 (RFC 1928). Names are resolved by the proxy.
    V5,
}

/// A login at a proxy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProxyLogin {
    /// Secret, because some operators put a token here.
    #[serde(with = "piped_secret")]
    pub username: SecretString,
    /// The password, which may be empty.
    #[serde(with = "piped_secret")]
    pub password: SecretString,
}

/// An HTTP proxy that supports CONNECT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HttpProxy {
    /// Where the proxy listens.
    pub address: ProxyAddress,
    /// The login, for Basic authentication.
    pub login: Option<ProxyLogin>,
    /// What the request line names in place of the target. It begins with a slash.
    pub path: Option<String>,
    /// More fields of the request.
    pub headers: Vec<ProxyHeader>,
    /// TLS towards the proxy.
    pub tls: Option<ProxyTls>,
}

/// A header field of the requests to a proxy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProxyHeader {
    /// The name in lower case.
    pub name: String,
    /// Secret, because it may be a token.
    #[serde(with = "piped_secret")]
    pub value: SecretString,
}

/// TLS towards a proxy. PEM texts are read, but not parsed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProxyTls {
    /// The name that the proxy's certificate must have.
    pub server_name: String,
    /// Whether the name is sent to the proxy.
    pub name_indication: NameIndication,
    /// Which certificates are accepted.
    pub verification: ProxyVerification,
    /// What is presented to the proxy.
    pub client_certificate: Option<ClientCertificate>,
    /// The lowest version that is offered.
    pub min_version: TlsVersion,
    /// The highest version that is offered.
    pub max_version: TlsVersion,
}

/// Whether a TLS client sends the server's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NameIndication {
    /// RFC 6066, section 3.
    Sent,
    /// The name is only compared with the certificate.
    Hidden,
}

/// Which certificates of a proxy are accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProxyVerification {
    /// Those that the system trusts.
    System,
    /// Those that these certificates, in PEM, trust.
    Roots(String),
    /// Those whose public key has one of these SHA-256 digests.
    PublicKeys(Vec<[u8; 32]>),
    /// All certificates, without a check.
    Off,
}

/// A certificate that is presented to a server, in PEM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientCertificate {
    /// The certificate itself comes first.
    pub chain: String,
    /// The private key of the first certificate.
    #[serde(with = "piped_secret")]
    pub key: SecretString,
}

/// How sockets are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOptions {
    /// The network interface that sockets are bound to.
    pub bind_interface: Option<String>,
    /// The local IPv4 address.
    pub inet4_bind_address: Option<Ipv4Addr>,
    /// The local IPv6 address.
    pub inet6_bind_address: Option<Ipv6Addr>,
    /// Whether the port of a bound socket is chosen only when it connects.
    pub bind_address_no_port: bool,
    /// The netfilter mark of sockets.
    pub routing_mark: Option<u32>,
    /// Whether an address that was in use a moment ago can be bound again.
    pub reuse_addr: bool,
    /// The file of the network namespace.
    pub netns: Option<PathBuf>,
    /// The time for connecting to one address.
    pub connect_timeout: Option<Duration>,
    /// Whether the first data is sent with the connection request.
    pub tcp_fast_open: bool,
    /// Whether Multipath TCP is used.
    pub tcp_multi_path: bool,
    /// When silent connections are probed, if they are.
    pub keep_alive: Option<KeepAliveTimes>,
    /// The time after which addresses of the other IP version are tried, too.
    pub fallback_delay: Duration,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            bind_interface: None,
            inet4_bind_address: None,
            inet6_bind_address: None,
            bind_address_no_port: false,
            routing_mark: None,
            reuse_addr: false,
            netns: None,
            connect_timeout: None,
            tcp_fast_open: false,
            tcp_multi_path: false,
            keep_alive: Some(KeepAliveTimes {
                idle: KEEP_ALIVE,
                interval: KEEP_ALIVE_INTERVAL,
            }),
            fallback_delay: FALLBACK_DELAY,
        }
    }
}

/// Writes a secret for the process at the other end of a pipe.
mod piped_secret {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::values::secret::SecretString;

    pub(super) fn serialize<S: Serializer>(
        secret: &SecretString,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(secret.expose())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SecretString, D::Error> {
        Ok(SecretString::new(String::deserialize(deserializer)?))
    }
}
