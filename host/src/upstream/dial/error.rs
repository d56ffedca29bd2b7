//! Why there is no connection. The operator must act: on an outbound, or on the network.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::files::io_reason;

/// A connection that could not be made, and the outbound that failed.
#[derive(Debug, Clone)]
pub struct DialError {
    /// `None` if the failure is upstream's or the network's.
    outbound: Option<Arc<str>>,
    failure: DialFailure,
}

impl DialError {
    /// Returns the tag of the outbound that failed.
    pub fn outbound(&self) -> Option<&str> {
        self.outbound.as_deref()
    }

    /// Returns how it failed, without addresses, names and settings: for clients.
    pub fn public_reason(&self) -> Cow<'_, str> {
        match &self.failure {
            DialFailure::Resolve { .. } => "a name cannot be resolved".into(),
            DialFailure::Connect { reason, .. } => reason.into(),
            DialFailure::TimedOut { .. } => "timed out".into(),
            DialFailure::Tls { .. } => "the TLS handshake failed".into(),
            DialFailure::Socks { reason, .. } => reason.into(),
            DialFailure::ConnectRefused { status, hint, .. } => {
                format!("the HTTP proxy answered {status}{hint}").into()
            }
            DialFailure::NotHttp { .. } => "the HTTP proxy answered something else".into(),
            DialFailure::ProxyClosed => "the proxy closed the connection".into(),
            DialFailure::NoHost
            | DialFailure::SocketOption { .. }
            | DialFailure::TlsSettings(_)
            | DialFailure::Other(_) => "its configuration cannot be used".into(),
        }
    }
}

impl std::fmt::Display for DialError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.outbound {
            Some(tag) => write!(f, "outbound {tag:?}: {}", self.failure),
            None => self.failure.fmt(f),
        }
    }
}

impl std::error::Error for DialError {}

/// How an outbound failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialFailure {
    /// The URL has no host.
    #[error("the URL has no host")]
    NoHost,
    /// A name has no address.
    #[error("cannot resolve {host}: {reason}")]
    Resolve {
        /// The name that was looked up.
        host: String,
        /// What the system says.
        reason: String,
    },
    /// A socket option was rejected.
    #[error("{field}: {reason}")]
    SocketOption {
        /// The field of the configuration that asks for it.
        field: &'static str,
        /// What the system says.
        reason: String,
    },
    /// No address accepted a connection.
    #[error("{target}: {reason}")]
    Connect {
        /// The host and port.
        target: String,
        /// What the system says.
        reason: String,
    },
    /// A step took too long.
    #[error("{step} timed out after {} s", limit.as_secs_f64())]
    TimedOut {
        /// What was waited for.
        step: String,
        /// The time for the whole connection.
        limit: Duration,
    },
    /// A TLS handshake failed.
    #[error("TLS with {host}: {reason}")]
    Tls {
        /// Whose certificate was expected.
        host: String,
        /// What the TLS library says.
        reason: String,
    },
    /// The TLS settings cannot be used.
    #[error("{0}")]
    TlsSettings(#[from] ProxyTlsError),
    /// A SOCKS proxy refused, or does not speak the protocol.
    #[error("the SOCKS proxy did not connect to {target}: {reason}")]
    Socks {
        /// The host and port that it was to connect to.
        target: String,
        /// What the proxy replied.
        reason: String,
    },
    /// An HTTP proxy refused.
    #[error("the HTTP proxy answered CONNECT {target} with {status}{hint}")]
    ConnectRefused {
        /// The host and port that it was to connect to.
        target: String,
        /// The status of its response.
        status: u16,
        /// What the operator can do.
        hint: &'static str,
    },
    /// A proxy does not speak HTTP.
    #[error("the HTTP proxy answered CONNECT {target} with something else than HTTP: {reason}")]
    NotHttp {
        /// The host and port that it was to connect to.
        target: String,
        /// What was expected or found.
        reason: String,
    },
    /// A proxy ended the connection.
    #[error("the proxy closed the connection before its reply was complete")]
    ProxyClosed,
    /// A failure of another kind.
    #[error("{0}")]
    Other(String),
}

/// TLS settings of a proxy that cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProxyTlsError {
    /// A PEM text has no certificate, or an unreadable one.
    #[error("tls.{field}: expected certificates in PEM, found {found}")]
    Certificates {
        /// The field without `_path`.
        field: &'static str,
        /// What the field contains.
        found: &'static str,
    },
    /// A PEM text has no private key.
    #[error("tls.client_key: expected a private key in PEM, found none")]
    NoKey,
    /// The certificate and the key do not belong together.
    #[error(
        "tls.client_key: expected the private key of client_certificate, found that of another"
    )]
    KeyOfAnother,
    /// The certificate and the key cannot be used for TLS.
    #[error("tls.client_certificate: cannot be used with client_key: {0}")]
    ClientCertificate(String),
    /// A certificate cannot be checked for this name.
    #[error("tls.server_name: expected a host name or an IP address")]
    ServerName,
}

impl DialFailure {
    /// Names the outbound that failed, if there is one.
    pub(super) fn at(self, outbound: Option<&Arc<str>>) -> DialError {
        DialError {
            outbound: outbound.cloned(),
            failure: self,
        }
    }

    /// Returns the error of a connection without an outbound.
    pub(in crate::upstream) fn without_outbound(self) -> DialError {
        self.at(None)
    }

    pub(super) fn option(field: &'static str, error: &std::io::Error) -> Self {
        Self::SocketOption {
            field,
            reason: io_reason(error),
        }
    }
}
