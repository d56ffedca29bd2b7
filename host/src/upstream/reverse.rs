//! Requests over a reverse connection: each connection of a client is a stream of it.
//!
//! Owns the idle streams. Does not know why a session ends. Invariant: a request uses no stream of a
//! session that was replaced before it.

use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tower_service::Service;

use super::body::RequestBody;
use crate::reverse::{MuxSession, MuxStream, ReverseError, ReverseSlot};
use crate::values::limits::Limits;

/// The most idle streams of one credential. The other gateway closes those that it does not want to
/// keep.
const IDLE_STREAMS_MAX: usize = 64;

/// Sends requests over the reverse connection of a credential.
#[derive(Clone)]
pub(super) struct ReverseClient {
    slot: Arc<ReverseSlot>,
    idle_timeout: Duration,
    pool: Arc<Mutex<Option<SessionPool>>>,
    /// Pools no stream: each becomes a WebSocket.
    handshakes: Client<StreamConnector, RequestBody>,
}

/// The idle streams of one session. Those of an earlier one are never used again.
struct SessionPool {
    session: MuxSession,
    client: Client<StreamConnector, RequestBody>,
}

impl ReverseClient {
    pub(super) fn new(slot: &Arc<ReverseSlot>, limits: &Limits) -> Self {
        Self {
            slot: Arc::clone(slot),
            idle_timeout: limits.upstream_keep_alive,
            pool: Arc::default(),
            handshakes: Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(0)
                .build(StreamConnector(Arc::clone(slot))),
        }
    }

    pub(super) fn request(&self, request: http::Request<RequestBody>) -> ResponseFuture {
        self.client().request(request)
    }

    pub(super) fn handshake(&self, request: http::Request<RequestBody>) -> ResponseFuture {
        self.handshakes.request(request)
    }

    /// Returns the client with the idle streams of the current session.
    fn client(&self) -> Client<StreamConnector, RequestBody> {
        let Some(session) = self.slot.current() else {
            // It fails, because there is no connection.
            return self.handshakes.clone();
        };
        let mut pool = lock(&self.pool);
        if let Some(known) = pool.as_ref()
            && known.session.is_same(&session)
        {
            return known.client.clone();
        }
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(self.idle_timeout)
            .pool_max_idle_per_host(IDLE_STREAMS_MAX)
            .build(StreamConnector(Arc::clone(&self.slot)));
        *pool = Some(SessionPool {
            session: session.clone(),
            client: client.clone(),
        });
        drop(pool);
        tokio::spawn(close_idle_streams(Arc::downgrade(&self.pool), session));
        client
    }
}

/// Drops the pool of a session that opens no more streams. Its idle streams end, and with the last
/// stream the session.
async fn close_idle_streams(pool: Weak<Mutex<Option<SessionPool>>>, session: MuxSession) {
    session.until_closing().await;
    if let Some(pool) = pool.upgrade() {
        let mut pool = lock(&pool);
        let closing = pool.take_if(|known| known.session.is_same(&session));
        drop(pool);
        drop(closing);
    }
}

fn lock(pool: &Mutex<Option<SessionPool>>) -> MutexGuard<'_, Option<SessionPool>> {
    // A panic elsewhere cannot leave a client half-written.
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a stream for each connection.
#[derive(Clone)]
struct StreamConnector(Arc<ReverseSlot>);

impl Service<Uri> for StreamConnector {
    type Response = ReverseStream;
    type Error = ReverseError;
    type Future = Ready<Result<ReverseStream, ReverseError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ReverseError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let opened = self.0.open();
        ready(opened.map(|stream| ReverseStream(TokioIo::new(stream))))
    }
}

/// A stream of a reverse connection, as hyper's client uses it.
struct ReverseStream(TokioIo<MuxStream>);

impl Connection for ReverseStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for ReverseStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Write for ReverseStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
