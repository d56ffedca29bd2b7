//! A connector with one timeout for name resolution, connect and TLS handshake together.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower_service::Service;

use crate::config::DialTarget;

type TcpConnector = HttpsConnector<TargetedConnector>;
pub(super) type ConnectError = Box<dyn Error + Send + Sync>;

/// A connection to upstream, with TLS or without.
pub type UpstreamConnection = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Returns the TCP stream of a connection without TLS.
///
/// # Errors
/// Returns a connection with TLS unchanged.
pub fn without_tls(connection: UpstreamConnection) -> Result<TcpStream, Box<UpstreamConnection>> {
    match connection {
        MaybeHttpsStream::Http(stream) => Ok(stream.into_inner()),
        connection => Err(Box::new(connection)),
    }
}

/// A connector that connects to another host or port than a URI names. The name that TLS checks
/// stays the URI's.
#[derive(Clone)]
pub(super) struct TargetedConnector {
    inner: HttpConnector,
    target: DialTarget,
}

impl TargetedConnector {
    pub(super) fn new(inner: HttpConnector, target: &DialTarget) -> Self {
        Self {
            inner,
            target: target.clone(),
        }
    }
}

impl Service<Uri> for TargetedConnector {
    type Response = <HttpConnector as Service<Uri>>::Response;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = <HttpConnector as Service<Uri>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let target = self.target.of(&uri);
        self.inner.call(target.unwrap_or(uri))
    }
}

/// A connector that gives up after `limit`.
#[derive(Clone)]
pub(super) struct TimedConnector {
    inner: TcpConnector,
    limit: Duration,
}

impl TimedConnector {
    pub(super) fn new(inner: TcpConnector, limit: Duration) -> Self {
        Self { inner, limit }
    }
}

impl Service<Uri> for TimedConnector {
    type Response = <TcpConnector as Service<Uri>>::Response;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.inner.call(uri);
        let limit = self.limit;
        // One box per connection, not per request.
        Box::pin(async move {
            match timeout(limit, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err(format!("timed out after {} s", limit.as_secs_f64()).into()),
            }
        })
    }
}
