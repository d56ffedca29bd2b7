//! The protocol between the gateway and the scripted upstream, and scenarios that run over either
//! one.

use http::Version;
use scripted_upstream::TlsOptions;
use serde_json::{Value, json};

use crate::clients::authority::UPSTREAM_TLS;

/// A protocol between the gateway and upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 in clear, without TLS.
    Http1,
    /// HTTP/2 over TLS, as the real upstream speaks it.
    Http2,
}

tokio::task_local! {
    static PROTOCOL: Protocol;
}

impl Protocol {
    /// Runs a scenario whose rigs speak this protocol.
    pub async fn run(self, scenario: impl Future<Output = ()>) {
        PROTOCOL.scope(self, scenario).await;
    }

    /// Returns the protocol of the scenario that runs in this task: HTTP/1.1 outside of
    /// [`Protocol::run`].
    pub fn current() -> Self {
        PROTOCOL
            .try_with(|protocol| *protocol)
            .unwrap_or(Self::Http1)
    }

    /// Returns the version of the requests that upstream sees.
    pub fn version(self) -> Version {
        match self {
            Self::Http1 => Version::HTTP_11,
            Self::Http2 => Version::HTTP_2,
        }
    }

    /// Returns the field `tls` of a service that speaks this protocol alone with another gateway.
    /// The gateway of a rig trusts its certificate.
    pub fn service_tls(self) -> Value {
        let certificate = &UPSTREAM_TLS.certificate;
        match self {
            Self::Http1 => json!({ "enabled": false }),
            Self::Http2 => json!({
                "enabled": true,
                "certificate": certificate.pem,
                "key": certificate.key,
                "alpn": "h2",
            }),
        }
    }

    /// Returns the scheme of its URLs.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Http1 => "http",
            Self::Http2 => "https",
        }
    }

    pub(crate) fn tls(self) -> Option<TlsOptions> {
        match self {
            Self::Http1 => None,
            Self::Http2 => Some(TlsOptions::new(UPSTREAM_TLS.server.clone())),
        }
    }
}

/// Makes two tests of a scenario, which is an `async fn` without parameters: `NAME::over_http1` and
/// `NAME::over_http2`. The scenario's rigs speak that protocol with upstream.
#[macro_export]
macro_rules! over_both {
    ($scenario:ident) => {
        mod $scenario {
            #[tokio::test(flavor = "multi_thread")]
            async fn over_http1() {
                $crate::Protocol::Http1.run(super::$scenario()).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn over_http2() {
                $crate::Protocol::Http2.run(super::$scenario()).await;
            }
        }
    };
}
