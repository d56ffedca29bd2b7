//! A connector under one time-out: name look-up, connect and TLS handshake together.

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

type Https = HttpsConnector<HttpConnector>;
type Failure = Box<dyn Error + Send + Sync>;

/// A connection to upstream, with TLS or without.
pub type UpstreamConnection = MaybeHttpsStream<TokioIo<TcpStream>>;

/// What `connection` goes over, where it has no TLS.
///
/// # Errors
/// The connection, where it has.
pub fn without_tls(connection: UpstreamConnection) -> Result<TcpStream, Box<UpstreamConnection>> {
    match connection {
        MaybeHttpsStream::Http(stream) => Ok(stream.into_inner()),
        connection => Err(Box::new(connection)),
    }
}

/// The connector.
#[derive(Clone)]
pub(super) struct TimedConnector {
    inner: Https,
    limit: Duration,
}

impl TimedConnector {
    pub(super) fn new(inner: Https, limit: Duration) -> Self {
        Self { inner, limit }
    }
}

impl Service<Uri> for TimedConnector {
    type Response = <Https as Service<Uri>>::Response;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.inner.call(uri);
        let limit = self.limit;
        // Boxed once a connection, not once a request.
        Box::pin(async move {
            match timeout(limit, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err(format!("timed out after {} s", limit.as_secs_f64()).into()),
            }
        })
    }
}
