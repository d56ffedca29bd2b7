//! Connections to upstream, pooled per credential, and the bodies that are sent over them.
//!
//! Owns the client's rustls settings, connecting (`dial`), and the bodies of requests and responses.
//! Does not know what a request asks for. Invariant: two credentials never share a connection.

mod body;
mod connect;
pub mod dial;
mod response_body;
mod reverse;
mod trust;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Limited};
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

pub use body::{BodyPart, ClientBody, RequestBody, RequestBodyError};
pub use connect::{UpstreamConnection, without_tls};
pub use response_body::ResponseBody;
pub use trust::{ConfiguredTrust, TrustRoots};

use crate::config::{DialTarget, UpstreamRoute};
use crate::reverse::{ReverseSlot, StreamRefused, is_over_reverse};
use crate::values::limits::{Limits, RESET_STREAMS};

use body::BodyFailure;
use connect::{HttpVersions, UpstreamConnector};
use dial::{DialError, DialFailure, Dialer};
use response_body::DrainPermits;
use reverse::ReverseClient;

/// The most idle connections of one credential.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection could be made: the request was not sent.
    #[error("cannot connect: {0}")]
    Unreachable(DialError),
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

/// The connections of one credential.
#[derive(Clone)]
pub struct UpstreamClient {
    client: Client<UpstreamConnector, RequestBody>,
    /// Speaks only HTTP/1.1 and pools no connection: each becomes a WebSocket.
    handshakes: Client<UpstreamConnector, RequestBody>,
    /// Makes connections that speak HTTP/1.1 and offer no other protocol.
    connector: UpstreamConnector,
    reverse: Option<ReverseClient>,
    drains: DrainPermits,
}

impl std::fmt::Debug for UpstreamClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamClient").finish_non_exhaustive()
    }
}

impl UpstreamClient {
    /// Creates a client without connections, which makes them over `route`.
    pub fn new(trust: &TrustRoots, limits: &Limits, route: &UpstreamRoute) -> Self {
        Self::to_gateway(trust, limits, route, &DialTarget::default(), None)
    }

    /// Creates a client that connects to `target` in place of a URI's host, and sends requests for
    /// [`reverse_base`](crate::reverse::reverse_base) over the connection in `slot`.
    pub fn to_gateway(
        trust: &TrustRoots,
        limits: &Limits,
        route: &UpstreamRoute,
        target: &DialTarget,
        slot: Option<&Arc<ReverseSlot>>,
    ) -> Self {
        let dialer = Dialer::new(route, trust);
        let limit = limits.connect_timeout;
        let connector = |versions| UpstreamConnector::new(&dialer, target, trust, versions, limit);
        let connector_1 = connector(HttpVersions::OnlyHttp1);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(limits.upstream_keep_alive)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .http2_max_concurrent_reset_streams(RESET_STREAMS)
            .build(connector(HttpVersions::All));
        let handshakes = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(connector_1.clone());
        Self {
            client,
            handshakes,
            connector: connector_1,
            reverse: slot.map(|slot| ReverseClient::new(slot, limits)),
            drains: DrainPermits::new(),
        }
    }

    /// Returns what makes its connections.
    pub fn dialer(&self) -> &Dialer {
        self.connector.dialer()
    }

    /// Connects to the host of `uri`, with TLS for an `https` URL. No protocol is offered inside of
    /// TLS.
    ///
    /// # Errors
    /// There is no connection.
    pub async fn connect(&self, uri: &Uri) -> Result<UpstreamConnection, DialError> {
        self.connector.connect(uri).await
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
    if let Some(refused) = refused_stream(&error) {
        let failure = DialFailure::Other(refused.to_string());
        return UpstreamError::Unreachable(failure.without_outbound());
    }
    if !error.is_connect() {
        return UpstreamError::Broken(error.into());
    }
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<DialError>() {
            return UpstreamError::Unreachable(error.clone());
        }
        cause = error.source();
    }
    let failure = DialFailure::Other(root_cause(&error));
    UpstreamError::Unreachable(failure.without_outbound())
}

/// Returns how the other gateway refused the stream of a request, if it did: the request was not
/// processed.
fn refused_stream(error: &(dyn std::error::Error + 'static)) -> Option<StreamRefused> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return error.get_ref()?.downcast_ref().copied();
        }
        cause = error.source();
    }
    None
}

/// Returns the text of the innermost cause.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
