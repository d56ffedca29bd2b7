//! Serves client connections: from the accepted socket to its requests.
//!
//! Owns TLS and HTTP on a connection, and its end when the gateway drains. Does not know what
//! happens to a request. Invariant: each connection runs in its own task, handshake included, so
//! that none delays another.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::config::ProxyProtocol;
use crate::listener::{
    AcceptedConnection, ClientListener, ClientStream, ProxyHeaderError, read_proxy_header,
};
use crate::pipeline::{AnswerBody, LiveService, SocketUpgrade, handle, is_upgrade};
use crate::tls::{TlsServer, is_http2};
use crate::values::exchange::client_address::ClientAddress;
use crate::values::limits::Limits;
use crate::values::phase::GatewayPhase;

/// How a client that speaks HTTP/2 by prior knowledge starts (RFC 9113, section 3.4). No method of
/// HTTP/1.1 starts so.
const HTTP2_PREFACE: &[u8] = b"PRI ";

/// The pause before the rest of a preface that arrives in pieces is read.
const PREFACE_PIECE: Duration = Duration::from_millis(1);

/// How often a silent HTTP/2 client is pinged.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(60);

/// How often a peer that is not a trusted proxy is logged, for each service.
const UNTRUSTED_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Header fields of one request.
const HEADER_FIELDS: usize = 256;

/// What the connections of one listener share.
#[derive(Clone)]
pub(super) struct ConnectionContext {
    pub(super) live: LiveService,
    pub(super) proxy_protocol: ProxyProtocol,
    /// When a peer that is not a trusted proxy was last logged.
    pub(super) untrusted_logged: Arc<Mutex<Option<Instant>>>,
    pub(super) tls: watch::Receiver<Option<TlsServer>>,
    pub(super) phases: watch::Receiver<GatewayPhase>,
}

impl ConnectionContext {
    /// Logs a peer that is not a trusted proxy, unless another one was logged shortly before.
    fn log_untrusted(&self, peer: ClientAddress) {
        let mut logged = self
            .untrusted_logged
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|last| last.elapsed() >= UNTRUSTED_LOG_INTERVAL) {
            *logged = Some(Instant::now());
            tracing::warn!(%peer, "connection closed: it is not from one of trusted_proxies");
        }
    }

    /// The limits in effect when a connection starts.
    pub(super) fn limits(&self) -> Arc<Limits> {
        Arc::clone(self.live.now().limits())
    }
}

/// Accepts connections until the gateway drains.
pub(super) async fn accept(listener: ClientListener, context: ConnectionContext) {
    let mut phases = context.phases.clone();
    loop {
        tokio::select! {
            connection = listener.accept() => {
                tokio::spawn(serve(connection, context.clone()));
            }
            _ = phases.changed() => break,
        }
    }
    if *phases.borrow() == GatewayPhase::Retiring {
        listener.leave_to_successor();
    }
}

async fn serve(connection: AcceptedConnection, context: ConnectionContext) {
    let AcceptedConnection {
        stream,
        peer,
        permit,
    } = connection;
    // A connection that becomes a WebSocket holds its permit beyond this task.
    let client = ConnectedClient {
        peer,
        permit: Arc::new(permit),
    };
    if let Err(error) = serve_stream(stream, client, &context).await {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// The peer of a connection, and the connection's permit among `limits.connections`, or that of a
/// stream among `limits.reverse_streams`.
pub(super) struct ConnectedClient {
    pub(super) peer: ClientAddress,
    pub(super) permit: Arc<OwnedSemaphorePermit>,
}

pub(super) type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

async fn serve_stream(
    mut stream: ClientStream,
    mut client: ConnectedClient,
    context: &ConnectionContext,
) -> Result<(), ConnectionError> {
    if context.proxy_protocol == ProxyProtocol::Required {
        let header = read_client_address(&mut stream, client.peer, context);
        let Some(address) = before_draining(context, header).await else {
            return Ok(());
        };
        client.peer = address?;
    }
    let tls = context.tls.borrow().clone();
    match &tls {
        Some(tls) => serve_tls(tls, stream, &client, context).await,
        None => serve_clear(stream, &client, context).await,
    }
}

/// Returns the address in the PROXY protocol header that `stream` begins with. If it has none, the
/// client is unknown: the proxy's address would be trusted, and a client could then write any into
/// `X-Forwarded-For`.
async fn read_client_address(
    stream: &mut ClientStream,
    proxy: ClientAddress,
    context: &ConnectionContext,
) -> Result<ClientAddress, ConnectionError> {
    if !context.live.now().trusted_proxies().contains(proxy) {
        context.log_untrusted(proxy);
        return Err(ProxyHeaderError::Untrusted.into());
    }
    let header = timeout(context.limits().head_timeout, read_proxy_header(stream)).await;
    let address = header.map_err(|_| "timed out waiting for a PROXY protocol header")??;
    Ok(address.unwrap_or(ClientAddress::Unknown))
}

async fn serve_tls(
    tls: &TlsServer,
    stream: ClientStream,
    client: &ConnectedClient,
    context: &ConnectionContext,
) -> Result<(), ConnectionError> {
    let Some(stream) = before_draining(context, tls.accept(stream)).await else {
        return Ok(());
    };
    let stream = stream?;
    if is_http2(&stream) {
        serve_http2(TokioIo::new(stream), client, context).await
    } else {
        let head_timeout = context.limits().head_timeout;
        serve_http1(TokioIo::new(stream), client, context, head_timeout).await
    }
}

async fn serve_clear(
    stream: ClientStream,
    client: &ConnectedClient,
    context: &ConnectionContext,
) -> Result<(), ConnectionError> {
    let preface = timeout(context.limits().head_timeout, begins_http2(&stream));
    let Some(is_http2) = before_draining(context, preface).await else {
        return Ok(());
    };
    if is_http2.map_err(|_| "timed out waiting for a request")?? {
        serve_http2(TokioIo::new(stream), client, context).await
    } else {
        let head_timeout = context.limits().head_timeout;
        serve_http1(TokioIo::new(stream), client, context, head_timeout).await
    }
}

fn is_draining(phase: GatewayPhase) -> bool {
    matches!(phase, GatewayPhase::Draining | GatewayPhase::Stopping)
}

/// Waits for what comes before a connection's first request, or returns `None` once the gateway
/// drains.
async fn before_draining<T>(
    context: &ConnectionContext,
    waiting: impl Future<Output = T>,
) -> Option<T> {
    let mut phases = context.phases.clone();
    tokio::select! {
        done = waiting => Some(done),
        _ = phases.wait_for(|phase| is_draining(*phase)) => None,
    }
}

/// Whether the client starts with HTTP/2's preface. The bytes stay in the socket.
async fn begins_http2(stream: &ClientStream) -> std::io::Result<bool> {
    let mut start = [0; HTTP2_PREFACE.len()];
    loop {
        let length = stream.peek(&mut start).await?;
        if length == 0 || !HTTP2_PREFACE.starts_with(&start[..length]) {
            return Ok(false);
        }
        if length == HTTP2_PREFACE.len() {
            return Ok(true);
        }
        sleep(PREFACE_PIECE).await;
    }
}

/// Serves a connection of HTTP/1.1, which ends if no head is complete after `head_timeout`.
pub(super) async fn serve_http1<I>(
    io: I,
    client: &ConnectedClient,
    context: &ConnectionContext,
    head_timeout: Duration,
) -> Result<(), ConnectionError>
where
    I: Read + Write + Unpin + Send + 'static,
{
    let limits = context.limits();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(usize::try_from(limits.request_head_bytes).unwrap_or(usize::MAX))
        .max_headers(HEADER_FIELDS)
        .serve_connection(io, requests(context, client, Arc::default()))
        .with_upgrades();
    drive(
        connection,
        |phase, connection| match phase {
            // An idle client may be sending a request right now. It is answered, with
            // `Connection: close`.
            GatewayPhase::Running | GatewayPhase::Retiring => {}
            GatewayPhase::Draining | GatewayPhase::Stopping => connection.graceful_shutdown(),
        },
        context,
        std::future::pending(),
    )
    .await
}

async fn serve_http2<I>(
    io: I,
    client: &ConnectedClient,
    context: &ConnectionContext,
) -> Result<(), ConnectionError>
where
    I: Read + Write + Unpin + Send + 'static,
{
    let activity = Arc::new(ConnectionActivity::default());
    let limits = context.limits();
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.http2_streams)
        .max_header_list_size(u32::try_from(limits.request_head_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        // RFC 8441: a WebSocket over a stream.
        .enable_connect_protocol()
        .serve_connection(io, requests(context, client, Arc::clone(&activity)));
    // `header_read_timeout` exists for HTTP/1.1 only; without this, a silent client would hold its
    // permit for ever.
    let idle = idle(activity, limits.head_timeout);
    drive(
        connection,
        // The client is asked to connect again for further requests, and none is lost (RFC 9113,
        // section 6.8).
        |_, connection| connection.graceful_shutdown(),
        context,
        idle,
    )
    .await
}

/// Returns the service that handles a connection's requests.
fn requests(
    context: &ConnectionContext,
    client: &ConnectedClient,
    activity: Arc<ConnectionActivity>,
) -> impl Service<
    Request<Incoming>,
    Response = Response<TrackedBody>,
    Error = Infallible,
    Future: Send + 'static,
> + use<> {
    let (live, phases) = (context.live.clone(), context.phases.clone());
    let (peer, permit) = (client.peer, Arc::clone(&client.permit));
    service_fn(move |mut request| {
        let (live, phases) = (live.clone(), phases.clone());
        let version = request.version();
        let open = ConnectionActivity::begin(&activity);
        let websocket = is_upgrade(&request).then(|| {
            let keeps = (Arc::clone(&permit), ConnectionActivity::begin(&activity));
            SocketUpgrade::new(&mut request, Box::new(keeps))
        });
        async move {
            let mut response = handle(&live, request, peer, websocket).await;
            if *phases.borrow() == GatewayPhase::Retiring && is_kept_open(version, &response) {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            Ok(response.map(|body| TrackedBody { body, _open: open }))
        }
    })
}

/// Returns whether a connection of HTTP/1.1 is kept open after `response`.
fn is_kept_open(version: Version, response: &Response<AnswerBody>) -> bool {
    version <= Version::HTTP_11 && response.status() != StatusCode::SWITCHING_PROTOCOLS
}

/// How many requests of a connection are open, and when the last one ended.
#[derive(Default)]
struct ConnectionActivity {
    open: AtomicUsize,
    last_end: Mutex<Option<Instant>>,
}

/// An open request, which ends when this is dropped.
struct OpenRequest(Arc<ConnectionActivity>);

impl ConnectionActivity {
    fn begin(activity: &Arc<Self>) -> OpenRequest {
        activity.open.fetch_add(1, Ordering::AcqRel);
        OpenRequest(Arc::clone(activity))
    }

    /// When the connection became idle, `None` if a request is open. A connection without any
    /// request is idle since `start`.
    fn idle_since(&self, start: Instant) -> Option<Instant> {
        if self.open.load(Ordering::Acquire) > 0 {
            return None;
        }
        Some(
            self.last_end
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .unwrap_or(start),
        )
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        *self
            .0
            .last_end
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Returns when no request has been open for `limit`.
async fn idle(activity: Arc<ConnectionActivity>, limit: Duration) {
    let start = Instant::now();
    loop {
        let wake = match activity.idle_since(start) {
            Some(since) if since.elapsed() >= limit => return,
            Some(since) => since + limit,
            None => Instant::now() + limit,
        };
        sleep_until(wake).await;
    }
}

/// A response's body. The request stays open until the body is dropped.
struct TrackedBody {
    body: AnswerBody,
    _open: OpenRequest,
}

impl Body for TrackedBody {
    type Data = <AnswerBody as Body>::Data;
    type Error = <AnswerBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Serves a connection until it ends by itself, the gateway has drained, or `idle` returns.
async fn drive<C, E>(
    connection: C,
    shut_down: impl Fn(GatewayPhase, Pin<&mut C>),
    context: &ConnectionContext,
    idle: impl Future<Output = ()>,
) -> Result<(), ConnectionError>
where
    C: Future<Output = Result<(), E>>,
    E: Into<ConnectionError>,
{
    let mut connection = pin!(connection);
    let mut idle = pin!(idle);
    let mut phases = context.phases.clone();
    loop {
        let phase = *phases.borrow_and_update();
        match phase {
            GatewayPhase::Running => {}
            GatewayPhase::Retiring | GatewayPhase::Draining => {
                shut_down(phase, connection.as_mut());
            }
            GatewayPhase::Stopping => return Ok(()),
        }
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(Into::into),
            () = idle.as_mut() => return Err("timed out waiting for a request".into()),
            changed = phases.changed() => {
                if changed.is_err() {
                    // The gateway was dropped without shutting down.
                    return Ok(());
                }
            }
        }
    }
}
