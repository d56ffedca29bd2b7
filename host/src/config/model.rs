//! The resolved configuration: every field can be used as it is. Tags are resolved to indices, and
//! defaults are filled in.

mod acme;
mod external;
mod listen;
mod outbound;
mod tls;
mod trust;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::uri::Uri;
use serde_json::Value;

pub use acme::{AcmeChallenge, AcmeConfig, CertificateKeyType, ExternalAccount};
pub use external::{DialHost, DialTarget, ReverseRole};
pub use listen::{
    KeepAliveTimes, ListenAddress, ListenConfig, ListenOptions, ProxyProtocol, TrustedProxies,
};
pub use outbound::{
    ClientCertificate, EnvironmentProxies, HttpProxy, NameIndication, OutboundCarrier,
    OutboundConfig, OutboundProtocol, ProxyAddress, ProxyHeader, ProxyLogin, ProxyTls,
    ProxyVerification, SocketOptions, SocksProxy, SocksVersion, UpstreamRoute,
};
pub use tls::{
    ClientAuthentication, ClientAuthenticationMode, KeyExchange, PemContent, PemSource, Tls12Suite,
    TlsConfig, TlsVersion,
};
pub use trust::{TrustConfig, TrustStore};

use super::path::ConfigPath;
use super::raw::{LogFormat, LogLevel, OnFailure, PolicyKind};
use super::shipped::ShippedPolicy;
use crate::values::limits::Limits;
use crate::values::secret::SecretString;

/// The time that a policy's call may take by default.
pub const POLICY_TIMEOUT: Duration = Duration::from_millis(5);

/// The memory that a policy's instance may have by default, in bytes.
pub const POLICY_MEMORY: usize = 16 * 1024 * 1024;

/// A configuration whose every field can be used as it is.
#[derive(Debug)]
pub struct Config {
    /// Where and how the log is written.
    pub log: LogConfig,
    /// The services, at least one.
    pub services: Vec<ServiceConfig>,
    /// Every policy that is used or configured, shipped ones included. A [`PolicyId`] is an index
    /// into this list.
    pub policies: Vec<PolicyConfig>,
    /// The folder of the ledger.
    pub data_dir: PathBuf,
    /// What verifies the certificates of upstream.
    pub trust: TrustConfig,
    /// The listener for operators, if there is one.
    pub admin: Option<AdminConfig>,
    /// What an operator limits.
    pub limits: Limits,
}

/// The listener for operators.
#[derive(Debug, Clone, PartialEq)]
pub struct AdminConfig {
    /// The address to listen on. With port 0 the system chooses one.
    pub listen: SocketAddr,
    /// The token that operators present. There always is one if the address is not loopback.
    pub token: Option<SecretString>,
}

/// A policy's index in [`Config::policies`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PolicyId(pub usize);

/// Where and how the log is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Whether no log is written.
    pub disabled: bool,
    /// The lowest level that is written.
    pub level: LogLevel,
    /// Where it is written.
    pub output: LogOutput,
    /// Whether lines begin with the time.
    pub timestamp: bool,
    /// The format; `None` means text on a terminal and JSON elsewhere.
    pub format: Option<LogFormat>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            disabled: false,
            level: LogLevel::Info,
            output: LogOutput::Stderr,
            timestamp: true,
            format: None,
        }
    }
}

/// Where the log is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error, the default.
    Stderr,
    /// Standard output, if the configuration says `stdout`.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}

/// A service: a listener, the credentials behind it, and the users in front of it.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// The service's name, unique.
    pub tag: String,
    /// Where it listens, and how.
    pub listen: ListenConfig,
    /// The proxies whose statements about a client's address are believed.
    pub trusted_proxies: TrustedProxies,
    /// TLS towards clients, if they speak it.
    pub tls: Option<TlsConfig>,
    /// The users. An empty list lets in everyone who can connect.
    pub users: Vec<UserConfig>,
    /// The credentials, in the order of the file.
    pub credentials: Vec<CredentialConfig>,
    /// The pools that users can have: each credential as a pool with itself as the only member, in
    /// the same order, then the configured pools.
    pub pools: Vec<PoolConfig>,
    /// The pool of requests without a user, as an index into `pools`: the first entry of the
    /// configured list.
    pub default_pool: usize,
    /// The base URLs of upstream.
    pub endpoints: UpstreamEndpoints,
    /// The policy that prices the service's usage.
    pub pricer: PolicyId,
    /// The rewriting policies, in order.
    pub rewriters: Vec<PolicyId>,
}

/// A user of a service.
#[derive(Debug, Clone)]
pub struct UserConfig {
    /// The user's name in the ledger and the log. It may be empty, and users may share it.
    pub name: String,
    /// The token that the user's clients present, unique in the service.
    pub token: SecretString,
    /// The user's pool, as an index into [`ServiceConfig::pools`].
    pub pool: usize,
    /// Whether credentials of type `external` may be used for the user.
    pub allow_external_usage: bool,
    /// The external credential that is left out of the user's status.
    pub external_credential: Option<String>,
}

/// A credential of a service.
#[derive(Debug, Clone)]
pub struct CredentialConfig {
    /// The credential's name, unique in the service.
    pub tag: String,
    /// Where its tokens come from.
    pub source: CredentialSource,
    /// How its connections to upstream are made.
    pub route: UpstreamRoute,
    /// Its usage file, if it has one.
    pub usages_path: Option<PathBuf>,
    /// How far its windows may be used.
    pub caps: WindowCaps,
    /// How often upstream is polled for its usage; `None` if never.
    pub poll_interval: Option<Duration>,
}

/// Where a credential's tokens come from.
#[derive(Debug, Clone, PartialEq)]
pub enum CredentialSource {
    /// The path of an auth.json.
    File(PathBuf),
    /// Another gateway that speaks this protocol.
    External {
        /// Where the other gateway listens, without a slash at the end. `None` if it can be used
        /// only over a reverse connection that it makes.
        url: Option<Uri>,
        /// Where to connect in place of the host of `url`.
        target: DialTarget,
        /// The token of one of its users, and of the reverse connection.
        token: SecretString,
        /// Which side makes a reverse connection.
        reverse: ReverseRole,
    },
}

/// How far a credential's windows may be used before the credential pauses, in percent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WindowCaps {
    /// The cap of the 5-hour window.
    pub five_hour: f64,
    /// The cap of the weekly window.
    pub weekly: f64,
}

/// A pool of credentials.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// The pool's name; that of the credential if it is a single one.
    pub tag: String,
    /// Its members, as indices into [`ServiceConfig::credentials`].
    pub members: Vec<usize>,
    /// The list of its members in the file; the root for a single credential.
    pub members_path: ConfigPath,
    /// The policy that chooses among them.
    pub balancer: PolicyId,
    /// Whether it is a single credential, which may be an API key.
    pub single: bool,
    /// Whether all its members are other gateways.
    pub only_external: bool,
}

/// The base URLs of upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamEndpoints {
    /// The backend of ChatGPT, without a slash at the end.
    pub chatgpt: Uri,
    /// The API, without a slash at the end.
    pub api: Uri,
    /// The URL that refresh tokens are presented to.
    pub token: Uri,
}

/// A policy and the limits that it runs under.
#[derive(Debug, Clone)]
pub struct PolicyConfig {
    /// The policy's name in the log and in errors.
    pub tag: String,
    /// The policy's entry in the file; `None` for a shipped policy that the file does not name.
    pub entry_path: Option<ConfigPath>,
    /// What it decides. A file's component must export the same world.
    pub kind: PolicyKind,
    /// Where its component is.
    pub source: PolicySource,
    /// The configuration that it is given.
    pub config: Value,
    /// The time that one call may take.
    pub timeout: Duration,
    /// The memory that an instance may have, in bytes.
    pub memory: usize,
    /// What happens to a request if the policy fails; only a rewriter has a choice.
    pub on_failure: OnFailure,
    /// A component that is run with the same arguments for comparison, if there is one.
    pub shadow: Option<PathBuf>,
    /// The file in which its calls are recorded, if they are.
    pub record: Option<PathBuf>,
}

impl PolicyConfig {
    /// Creates the shipped `policy` under its own name, with every other field at its default.
    pub fn shipped(policy: ShippedPolicy, config: Value) -> Self {
        let source = PolicySource::Shipped(policy);
        Self::standalone(policy.name(), policy.kind(), source, config)
    }

    /// Creates a policy that no configuration file names, with every other field at its default.
    pub fn standalone(
        tag: impl Into<String>,
        kind: PolicyKind,
        source: PolicySource,
        config: Value,
    ) -> Self {
        Self {
            tag: tag.into(),
            entry_path: None,
            kind,
            source,
            config,
            timeout: POLICY_TIMEOUT,
            memory: POLICY_MEMORY,
            on_failure: OnFailure::Refuse,
            shadow: None,
            record: None,
        }
    }

    /// Returns whether both make the same decisions in the same way: they may differ in tag and
    /// place.
    pub fn is_equivalent(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.source == other.source
            && self.config == other.config
            && self.timeout == other.timeout
            && self.memory == other.memory
            && self.on_failure == other.on_failure
            && self.shadow == other.shadow
            && self.record == other.record
    }
}

/// Where a policy's component is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicySource {
    /// The component is part of the binary.
    Shipped(ShippedPolicy),
    /// The component is in this file, which is watched for changes.
    File(PathBuf),
}
