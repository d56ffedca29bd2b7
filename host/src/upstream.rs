//! Connections to upstream, pooled per credential, and the bodies that are sent over them.
//!
//! Owns the client's rustls settings, connecting, and the bodies of requests and responses. Does
//! not know what a request asks for. Invariant: two credentials never share a connection.

mod body;
mod connect;
mod response_body;
mod reverse;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
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
use tower_service::Service;

pub use body::{BodyPart, ClientBody, RequestBody, RequestBodyError};
pub use connect::{UpstreamConnection, without_tls};
pub use response_body::ResponseBody;

use crate::config::DialTarget;
use crate::reverse::{ReverseSlot, is_over_reverse};
use crate::values::limits::{Limits, RESET_STREAMS};

use body::BodyFailure;
use connect::{ConnectError, TargetedConnector, TimedConnector};
use response_body::DrainPermits;
use reverse::ReverseClient;

/// The most idle connections of one credential.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection could be made: the request was not sent.
    #[error("cannot connect: {}", root_cause(.0))]
    Unreachable(hyper_util::client::legacy::Error),
    /// The response did not come in time.
    #[error("no response in time")]
    TimedOut,
    /// The client's body failed while it was being sent.
    #[error("request body: {0}")]
    RequestBody(RequestBodyError),
    /// The connection broke, or upstream did not speak HTTP.
    #[error("{}", root_cause(&**.0))]
    Broken(Box<dyn std::error::Error + Send + Sync>),
}

/// Why no connection to another gateway could be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect: {}", root_cause(&**.0))]
pub struct ReverseDialError(ConnectError);

/// The root certificates that verify upstream's: the platform's, or those of `SSL_CERT_FILE`.
#[derive(Clone)]
pub struct TrustRoots {
    config: ClientConfig,
    count: usize,
}

impl std::fmt::Debug for TrustRoots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrustRoots")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl TrustRoots {
    /// Loads the platform's certificates. Unreadable ones are left out.
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
            // The provider supports TLS 1.2 and 1.3, which are the defaults.
            .unwrap_or_else(|error| unreachable!("ring has the default versions: {error}"))
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { config, count }
    }

    /// Whether there is no root certificate: every `https` upstream fails.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// The connections of one credential.
#[derive(Clone)]
pub struct UpstreamClient {
    client: Client<TimedConnector, RequestBody>,
    /// Speaks only HTTP/1.1 and pools no connection: each becomes a WebSocket.
    handshakes: Client<TimedConnector, RequestBody>,
    /// Makes connections that speak HTTP/1.1 and offer no other protocol.
    connector: TimedConnector,
    reverse: Option<ReverseClient>,
    drains: DrainPermits,
}

impl std::fmt::Debug for UpstreamClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamClient").finish_non_exhaustive()
    }
}

impl UpstreamClient {
    /// Creates a client without connections.
    pub fn new(trust: &TrustRoots, limits: &Limits) -> Self {
        Self::to_gateway(trust, limits, &DialTarget::default(), None)
    }

    /// Creates a client that connects to `target` in place of a URI's host, and sends requests for
    /// [`reverse_base`](crate::reverse::reverse_base) over the connection in `slot`.
    pub fn to_gateway(
        trust: &TrustRoots,
        limits: &Limits,
        target: &DialTarget,
        slot: Option<&Arc<ReverseSlot>>,
    ) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let tcp = TargetedConnector::new(tcp, target);
        let https = || {
            HttpsConnectorBuilder::new()
                .with_tls_config(trust.config.clone())
                .https_or_http()
        };
        let https_1 = https().enable_http1().wrap_connector(tcp.clone());
        let https = https().enable_all_versions().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(limits.upstream_keep_alive)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .http2_max_concurrent_reset_streams(RESET_STREAMS)
            .build(TimedConnector::new(https, limits.connect_timeout));
        let connector = TimedConnector::new(https_1, limits.connect_timeout);
        let handshakes = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(connector.clone());
        Self {
            client,
            handshakes,
            connector,
            reverse: slot.map(|slot| ReverseClient::new(slot, limits)),
            drains: DrainPermits::new(),
        }
    }

    /// Sends a request and waits for the response's head, for at most `limit`.
    ///
    /// # Errors
    /// There is no response.
    pub async fn send(
        &self,
        request: Request<RequestBody>,
        limit: Duration,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let failure = request.body().failure();
        let response = match self.reverse_for(&request) {
            Some(reverse) => reverse.request(request),
            None => self.client.request(request),
        };
        self.wait_for_head(response, limit, &failure).await
    }

    /// Sends a WebSocket handshake and waits for the response's head, for at most `limit`. A
    /// connection whose response is 101 can be upgraded.
    ///
    /// # Errors
    /// There is no response.
    pub async fn handshake(
        &self,
        request: Request<RequestBody>,
        limit: Duration,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let failure = request.body().failure();
        let response = match self.reverse_for(&request) {
            Some(reverse) => reverse.handshake(request),
            None => self.handshakes.request(request),
        };
        self.wait_for_head(response, limit, &failure).await
    }

    /// Connects to the host of `uri`, with TLS if its scheme says so. No protocol is offered inside
    /// of TLS.
    ///
    /// # Errors
    /// There is no connection.
    pub async fn connect(&self, uri: Uri) -> Result<UpstreamConnection, ReverseDialError> {
        let mut connector = self.connector.clone();
        let connecting = async {
            poll_fn(|cx| connector.poll_ready(cx)).await?;
            connector.call(uri).await
        };
        connecting.await.map_err(ReverseDialError)
    }

    fn reverse_for(&self, request: &Request<RequestBody>) -> Option<&ReverseClient> {
        let is_over_reverse = is_over_reverse(request.uri());
        self.reverse.as_ref().filter(|_| is_over_reverse)
    }

    /// Sends a request and reads the whole response, of at most `bytes_max`, within `limit`.
    ///
    /// # Errors
    /// There is no response, or it is larger.
    pub async fn fetch(
        &self,
        request: Request<RequestBody>,
        bytes_max: usize,
        limit: Duration,
    ) -> Result<Response<Bytes>, UpstreamError> {
        let response = async {
            let (head, body) = self.send(request, limit).await?.into_parts();
            let body = Limited::new(body, bytes_max)
                .collect()
                .await
                .map_err(UpstreamError::Broken)?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        timeout(limit, response)
            .await
            .unwrap_or(Err(UpstreamError::TimedOut))
    }

    async fn wait_for_head(
        &self,
        response: ResponseFuture,
        limit: Duration,
        failure: &BodyFailure,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        match timeout(limit, response).await {
            Ok(Ok(response)) => {
                Ok(response.map(|body| ResponseBody::new(body, self.drains.clone())))
            }
            Ok(Err(error)) => Err(failure
                .error()
                .map_or_else(|| classify(error), UpstreamError::RequestBody)),
            Err(_) => Err(UpstreamError::TimedOut),
        }
    }
}

fn classify(error: hyper_util::client::legacy::Error) -> UpstreamError {
    if error.is_connect() {
        UpstreamError::Unreachable(error)
    } else {
        UpstreamError::Broken(error.into())
    }
}

/// Returns the text of the innermost cause.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
