//! What is connected to, and until when.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use http::Uri;
use tokio::time::{Instant, timeout_at};

use super::error::DialFailure;
use crate::config::ProxyAddress;

/// What is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialAddress {
    /// A name or an IP address, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl DialAddress {
    /// Creates a target from a name or an IP address, with or without brackets.
    pub fn new(host: &str, port: u16) -> Self {
        let inner = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        Self {
            host: inner.unwrap_or(host).to_owned(),
            port,
        }
    }

    /// Returns the target of an `http` or `https` URL, or `None` if it has no host.
    pub fn of_uri(uri: &Uri) -> Option<Self> {
        let default_port = if uri.scheme_str() == Some("https") {
            443
        } else {
            80
        };
        Some(Self::new(
            uri.host()?,
            uri.port_u16().unwrap_or(default_port),
        ))
    }

    pub(super) fn of_proxy(address: &ProxyAddress) -> Self {
        Self::new(&address.host, address.port)
    }
}

/// `host:port`, with brackets around an IPv6 address.
impl fmt::Display for DialAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = (&self.host, self.port);
        if host.contains(':') {
            write!(f, "[{host}]:{port}")
        } else {
            write!(f, "{host}:{port}")
        }
    }
}

/// The time until which a connection must be made.
#[derive(Debug, Clone, Copy)]
pub struct DialDeadline {
    at: Instant,
    limit: Duration,
}

impl DialDeadline {
    /// Creates the deadline that is `limit` from now.
    pub fn after(limit: Duration) -> Self {
        Self {
            at: Instant::now() + limit,
            limit,
        }
    }

    pub(super) fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Waits for `step`, whose name completes "… timed out".
    pub(in crate::upstream) async fn bound<T>(
        self,
        name: &str,
        step: impl Future<Output = Result<T, DialFailure>>,
    ) -> Result<T, DialFailure> {
        match timeout_at(self.at, step).await {
            Ok(done) => done,
            Err(_) => Err(DialFailure::TimedOut {
                step: name.to_owned(),
                limit: self.limit,
            }),
        }
    }
}
