//! Connections: from an accepted one to requests. Each lives in a task of its own, handshake included.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::rt::{Read, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::Phase;
use crate::listener::{Connection, Listener};
use crate::pipeline::{Service, handle};
use crate::tls::{Tls, is_http2};
use crate::values::limits::Limits;

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
    pub(super) service: Arc<Service>,
    pub(super) tls: Option<Tls>,
    pub(super) limits: Arc<Limits>,
    pub(super) phases: watch::Receiver<Phase>,
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
    let Connection { stream, peer, place } = connection;
    let served = match &accepting.tls {
        Some(tls) => serve_tls(tls, stream, peer, &accepting).await,
        None => serve_clear(stream, peer, &accepting).await,
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "connection ended");
    }
    drop(place);
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn serve_tls(
    tls: &Tls,
    stream: TcpStream,
    peer: std::net::SocketAddr,
    accepting: &Accepting,
) -> Result<(), Failure> {
    let Some(stream) = before_draining(accepting, tls.accept(stream)).await else { return Ok(()) };
    let stream = stream?;
    if is_http2(&stream) {
        serve_http2(TokioIo::new(stream), peer, accepting).await
    } else {
        serve_http1(TokioIo::new(stream), peer, accepting).await
    }
}

async fn serve_clear(stream: TcpStream, peer: std::net::SocketAddr, accepting: &Accepting) -> Result<(), Failure> {
    let beginning = timeout(accepting.limits.head_timeout, begins_http2(&stream));
    let Some(begun) = before_draining(accepting, beginning).await else { return Ok(()) };
    if begun.map_err(|_| "no request in time")?? {
        serve_http2(TokioIo::new(stream), peer, accepting).await
    } else {
        serve_http1(TokioIo::new(stream), peer, accepting).await
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

macro_rules! requests_of {
    ($accepting:expr, $peer:expr) => {{
        let service = Arc::clone(&$accepting.service);
        let address = $peer.ip();
        service_fn(move |request| {
            let service = Arc::clone(&service);
            async move { Ok::<_, Infallible>(handle(&service, request, address).await) }
        })
    }};
}

async fn serve_http1<I>(io: I, peer: std::net::SocketAddr, accepting: &Accepting) -> Result<(), Failure>
where
    I: Read + Write + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(accepting.limits.head_timeout)
        .max_buf_size(usize::try_from(accepting.limits.request_head_bytes).unwrap_or(usize::MAX))
        .max_headers(FIELDS)
        .serve_connection(io, requests_of!(accepting, peer));
    drive(connection, accepting).await
}

async fn serve_http2<I>(io: I, peer: std::net::SocketAddr, accepting: &Accepting) -> Result<(), Failure>
where
    I: Read + Write + Unpin + Send + 'static,
{
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(accepting.limits.http2_streams)
        .max_header_list_size(u32::try_from(accepting.limits.request_head_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .serve_connection(io, requests_of!(accepting, peer));
    drive(connection, accepting).await
}

/// Serves a connection to its end: by itself, or as the gateway's phases say.
async fn drive<C>(connection: C, accepting: &Accepting) -> Result<(), Failure>
where
    C: GracefulConnection,
    C::Error: Into<Failure>,
{
    let mut connection = pin!(connection);
    let mut phases = accepting.phases.clone();
    loop {
        let phase = *phases.borrow_and_update();
        match phase {
            Phase::Serving => {}
            Phase::Draining => connection.as_mut().graceful_shutdown(),
            Phase::Ending => return Ok(()),
        }
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(Into::into),
            changed = phases.changed() => {
                if changed.is_err() {
                    // The gateway was dropped without a stop.
                    return Ok(());
                }
            }
        }
    }
}
