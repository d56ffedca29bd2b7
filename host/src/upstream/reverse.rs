//! Requests over a reverse connection: each connection of a client is a stream of it.

use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tower_service::Service;

use super::body::RequestBody;
use crate::reverse::{MuxStream, ReverseError, ReverseSlot};
use crate::values::limits::Limits;

/// The most idle streams of one credential. The other gateway closes those that it does not want to
/// keep.
const IDLE_STREAMS_MAX: usize = 64;

/// Sends requests over the reverse connection of a credential.
#[derive(Clone)]
pub(super) struct ReverseClient {
    client: Client<StreamConnector, RequestBody>,
    /// Pools no connection: each becomes a WebSocket.
    handshakes: Client<StreamConnector, RequestBody>,
}

impl ReverseClient {
    pub(super) fn new(slot: &Arc<ReverseSlot>, limits: &Limits) -> Self {
        let connector = StreamConnector(Arc::clone(slot));
        Self {
            client: Client::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(limits.upstream_keep_alive)
                .pool_max_idle_per_host(IDLE_STREAMS_MAX)
                .build(connector.clone()),
            handshakes: Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(0)
                .build(connector),
        }
    }

    pub(super) fn request(&self, request: http::Request<RequestBody>) -> ResponseFuture {
        self.client.request(request)
    }

    pub(super) fn handshake(&self, request: http::Request<RequestBody>) -> ResponseFuture {
        self.handshakes.request(request)
    }
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
