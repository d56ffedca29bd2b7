//! Connections: from an accepted one to requests. Each lives in a task of its own, handshake included.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::listener::{Connection, Listener};
use crate::pipeline::{AnswerBody, LiveService, SocketUpgrade, handle, is_upgrade};
use crate::tls::{Tls, is_http2};
use crate::values::limits::Limits;
use crate::values::phase::Phase;

/// How a client that speaks HTTP/2 by prior knowledge begins (RFC 9113, section 3.4): so much tells it from any
/// method of HTTP/1.1.
const HTTP2_PREFACE: &[u8] = b"PRI ";

/// The wait for the rest of a preface that arrives in pieces.
const PREFACE_PIECE: Duration = Duration::from_millis(1);

/// An HTTP/2 client that is quiet is asked for a sign of life so often.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(60);

/// Header fields of one request.
const FIELDS: usize = 256;

/// What accepting needs to know.
#[derive(Clone)]
pub(super) struct Accepting {
    pub(super) live: LiveService,
    pub(super) tls: watch::Receiver<Option<Tls>>,
    pub(super) phases: watch::Receiver<Phase>,
}

impl Accepting {
    /// The bounds that a connection begins with.
    fn limits(&self) -> Arc<Limits> {
        Arc::clone(self.live.now().limits())
    }
}

/// Accepts until the gateway drains.
pub(super) async fn accept(listener: Listener, accepting: Accepting) {
    let mut phases = accepting.phases.clone();
    loop {
        tokio::select! {
            connection = listener.accept() => {
                tokio::spawn(serve(connection, accepting.clone()));
            }
            _ = phases.changed() => return,
        }
    }
}

async fn serve(connection: Connection, accepting: Accepting) {
    let Connection {
        stream,
        peer,
        place,
    } = connection;
    // A connection that becomes a WebSocket keeps its place beyond this task.
    let client = Client {
        peer,
        place: Arc::new(place),
    };
    let tls = accepting.tls.borrow().clone();
    let served = match &tls {
        Some(tls) => serve_tls(tls, stream, &client, &accepting).await,
        None => serve_clear(stream, &client, &accepting).await,
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// Who is at the other end of a connection, and its place among `limits.connections`.
struct Client {
    peer: SocketAddr,
    place: Arc<OwnedSemaphorePermit>,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn serve_tls(
    tls: &Tls,
    stream: TcpStream,
    client: &Client,
    accepting: &Accepting,
) -> Result<(), Failure> {
    let Some(stream) = before_draining(accepting, tls.accept(stream)).await else {
        return Ok(());
    };
    let stream = stream?;
    if is_http2(&stream) {
        serve_http2(TokioIo::new(stream), client, accepting).await
    } else {
        serve_http1(TokioIo::new(stream), client, accepting).await
    }
}

async fn serve_clear(
    stream: TcpStream,
    client: &Client,
    accepting: &Accepting,
) -> Result<(), Failure> {
    let beginning = timeout(accepting.limits().head_timeout, begins_http2(&stream));
    let Some(begun) = before_draining(accepting, beginning).await else {
        return Ok(());
    };
    if begun.map_err(|_| "no request in time")?? {
        serve_http2(TokioIo::new(stream), client, accepting).await
    } else {
        serve_http1(TokioIo::new(stream), client, accepting).await
    }
}

/// Waits for what comes before a connection's first request, but not once the gateway drains.
async fn before_draining<T>(accepting: &Accepting, waiting: impl Future<Output = T>) -> Option<T> {
    let mut phases = accepting.phases.clone();
    tokio::select! {
        done = waiting => Some(done),
        _ = phases.wait_for(|phase| *phase != Phase::Serving) => None,
    }
}

/// Whether the client begins with HTTP/2's preface. What it sent stays where it is.
async fn begins_http2(stream: &TcpStream) -> std::io::Result<bool> {
    let mut begun = [0; HTTP2_PREFACE.len()];
    loop {
        let length = stream.peek(&mut begun).await?;
        if length == 0 || !HTTP2_PREFACE.starts_with(&begun[..length]) {
            return Ok(false);
        }
        if length == HTTP2_PREFACE.len() {
            return Ok(true);
        }
        sleep(PREFACE_PIECE).await;
    }
}

async fn serve_http1<I>(io: I, client: &Client, accepting: &Accepting) -> Result<(), Failure>
where
    I: Read + Write + Unpin + Send + 'static,
{
    let limits = accepting.limits();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(usize::try_from(limits.request_head_bytes).unwrap_or(usize::MAX))
        .max_headers(FIELDS)
        .serve_connection(io, requests(accepting, client, Arc::default()))
        .with_upgrades();
    drive(
        connection,
        |connection| connection.graceful_shutdown(),
        accepting,
        std::future::pending(),
    )
    .await
}

async fn serve_http2<I>(io: I, client: &Client, accepting: &Accepting) -> Result<(), Failure>
where
    I: Read + Write + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity::default());
    let limits = accepting.limits();
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.http2_streams)
        .max_header_list_size(u32::try_from(limits.request_head_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        // RFC 8441: a WebSocket over a stream.
        .enable_connect_protocol()
        .serve_connection(io, requests(accepting, client, Arc::clone(&activity)));
    // HTTP/1.1 has a time-out for heads of its own; here a silent client would keep its place for ever.
    let idle = idle(activity, limits.head_timeout);
    drive(
        connection,
        |connection| connection.graceful_shutdown(),
        accepting,
        idle,
    )
    .await
}

/// The requests of a connection.
fn requests(
    accepting: &Accepting,
    client: &Client,
    activity: Arc<Activity>,
) -> impl Service<
    Request<Incoming>,
    Response = Response<Tracked>,
    Error = Infallible,
    Future: Send + 'static,
> + use<> {
    let live = accepting.live.clone();
    let (address, place) = (client.peer.ip(), Arc::clone(&client.place));
    service_fn(move |mut request| {
        let live = live.clone();
        let open = Activity::begin(&activity);
        let websocket = is_upgrade(&request).then(|| {
            let keeps = (Arc::clone(&place), Activity::begin(&activity));
            SocketUpgrade::new(&mut request, Box::new(keeps))
        });
        async move {
            let response = handle(&live, request, address, websocket).await;
            Ok(response.map(|body| Tracked { body, _open: open }))
        }
    })
}

/// What happens on a connection: how many requests are open, and when the last one ended.
#[derive(Default)]
struct Activity {
    open: AtomicUsize,
    changed: Mutex<Option<Instant>>,
}

/// An open request of a connection.
struct Open(Arc<Activity>);

impl Activity {
    fn begin(activity: &Arc<Self>) -> Open {
        activity.open.fetch_add(1, Ordering::AcqRel);
        Open(Arc::clone(activity))
    }

    /// Since when nothing is open; `since` where nothing ever was.
    fn idle_since(&self, since: Instant) -> Option<Instant> {
        if self.open.load(Ordering::Acquire) > 0 {
            return None;
        }
        Some(
            self.changed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .unwrap_or(since),
        )
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        *self
            .0
            .changed
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Ends when nothing has been open for `limit`.
async fn idle(activity: Arc<Activity>, limit: Duration) {
    let begun = Instant::now();
    loop {
        let wake = match activity.idle_since(begun) {
            Some(since) if since.elapsed() >= limit => return,
            Some(since) => since + limit,
            None => Instant::now() + limit,
        };
        sleep_until(wake).await;
    }
}

/// A response's body, which counts as open for as long as it is there.
struct Tracked {
    body: AnswerBody,
    _open: Open,
}

impl Body for Tracked {
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

/// Serves a connection to its end: by itself, as the gateway's phases say, or when `idle` ends.
async fn drive<C, E>(
    connection: C,
    shut_down: impl Fn(Pin<&mut C>),
    accepting: &Accepting,
    idle: impl Future<Output = ()>,
) -> Result<(), Failure>
where
    C: Future<Output = Result<(), E>>,
    E: Into<Failure>,
{
    let mut connection = pin!(connection);
    let mut idle = pin!(idle);
    let mut phases = accepting.phases.clone();
    loop {
        let phase = *phases.borrow_and_update();
        match phase {
            Phase::Serving => {}
            Phase::Draining => shut_down(connection.as_mut()),
            Phase::Ending => return Ok(()),
        }
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(Into::into),
            () = idle.as_mut() => return Err("no request in time".into()),
            changed = phases.changed() => {
                if changed.is_err() {
                    // The gateway was dropped without a stop.
                    return Ok(());
                }
            }
        }
    }
}
