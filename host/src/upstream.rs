//! Upstream: connections to OpenAI, pooled per credential, and what goes over them.
//!
//! Owns the client's rustls settings, connecting and the body that a request is sent with; refuses to know what is
//! asked. Invariant: two credentials never share a connection.

mod body;
mod connect;
mod response_body;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

pub use body::{BodyPart, ClientBody, RequestBody, RequestBodyError};
pub use connect::{UpstreamConnection, without_tls};
pub use response_body::ResponseBody;

use crate::values::limits::{Limits, RESET_STREAMS};

use connect::TimedConnector;
use response_body::DrainRoom;

/// Idle connections that are kept for one credential.
const IDLE_CONNECTIONS: usize = 64;

/// No answer from upstream.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection came about: the request was not sent.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// The response did not come in time.
    #[error("no response in time")]
    TimedOut,
    /// The client's body broke off while it was being sent.
    #[error("the request's body: {0}")]
    RequestBody(RequestBodyError),
    /// The connection broke, or what came over it was no HTTP.
    #[error("{0}")]
    Broken(String),
}

/// The certificates that upstream's are checked against: the platform's, or those of `SSL_CERT_FILE`.
#[derive(Clone)]
pub struct TrustRoots {
    config: ClientConfig,
    roots: usize,
}

impl std::fmt::Debug for TrustRoots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrustRoots")
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

impl TrustRoots {
    /// Reads the platform's certificates. One that cannot be read is left out.
    pub fn from_platform() -> Self {
        Self::new(rustls_native_certs::load_native_certs().certs)
    }

    /// Trusts only the certificates in `pem`. Certificates that cannot be parsed are left out.
    pub fn from_pem(pem: &[u8]) -> Self {
        Self::new(CertificateDer::pem_slice_iter(pem).flatten())
    }

    fn new(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates);
        let count = roots.len();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap_or_else(|error| unreachable!("ring has the default versions: {error}"))
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            config,
            roots: count,
        }
    }

    /// Whether there is no certificate to check against: every `https` upstream will be refused.
    pub fn is_empty(&self) -> bool {
        self.roots == 0
    }
}

/// The connections of one credential.
#[derive(Clone)]
pub struct UpstreamClient {
    client: Client<TimedConnector, RequestBody>,
    /// Speaks HTTP/1.1 alone, and keeps no connection: each becomes a WebSocket.
    sockets: Client<TimedConnector, RequestBody>,
    drains: DrainRoom,
}

impl std::fmt::Debug for UpstreamClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").finish_non_exhaustive()
    }
}

impl UpstreamClient {
    /// No connections yet.
    pub fn new(trust: &TrustRoots, limits: &Limits) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let https = || {
            HttpsConnectorBuilder::new()
                .with_tls_config(trust.config.clone())
                .https_or_http()
        };
        let for_sockets = https().enable_http1().wrap_connector(tcp.clone());
        let https = https().enable_all_versions().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(limits.upstream_keep_alive)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .http2_max_concurrent_reset_streams(RESET_STREAMS)
            .build(TimedConnector::new(https, limits.connect_timeout));
        let sockets = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(TimedConnector::new(for_sockets, limits.connect_timeout));
        Self {
            client,
            sockets,
            drains: DrainRoom::new(),
        }
    }

    /// Sends a request and waits for the response's head, at most for `limit`.
    ///
    /// # Errors
    /// There is none.
    pub async fn send(
        &self,
        request: Request<RequestBody>,
        limit: Duration,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        self.head(self.client.request(request), limit).await
    }

    /// Sends a WebSocket's handshake and waits for its answer, at most for `limit`. An answer of 101 can be upgraded.
    ///
    /// # Errors
    /// There is none.
    pub async fn handshake(
        &self,
        request: Request<RequestBody>,
        limit: Duration,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        self.head(self.sockets.request(request), limit).await
    }

    /// Sends a request and reads the whole of its answer, of at most `bytes_max`, within `limit`.
    ///
    /// # Errors
    /// There is none, or it is larger.
    pub async fn fetch(
        &self,
        request: Request<RequestBody>,
        bytes_max: usize,
        limit: Duration,
    ) -> Result<Response<Bytes>, UpstreamError> {
        let exchange = async {
            let (head, body) = self.send(request, limit).await?.into_parts();
            let broken = |error: Box<dyn std::error::Error + Send + Sync>| {
                UpstreamError::Broken(cause(&*error))
            };
            let body = Limited::new(body, bytes_max)
                .collect()
                .await
                .map_err(broken)?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        timeout(limit, exchange)
            .await
            .unwrap_or(Err(UpstreamError::TimedOut))
    }

    async fn head(
        &self,
        response: ResponseFuture,
        limit: Duration,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        match timeout(limit, response).await {
            Ok(Ok(response)) => {
                Ok(response.map(|body| ResponseBody::new(body, self.drains.clone())))
            }
            Ok(Err(error)) => Err(classify(&error)),
            Err(_) => Err(UpstreamError::TimedOut),
        }
    }
}

fn classify(error: &hyper_util::client::legacy::Error) -> UpstreamError {
    if let Some(body) = find::<RequestBodyError>(error) {
        return UpstreamError::RequestBody(*body);
    }
    if error.is_connect() {
        UpstreamError::Unreachable(cause(error))
    } else {
        UpstreamError::Broken(cause(error))
    }
}

/// The innermost cause's words.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn find<'a, E: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
