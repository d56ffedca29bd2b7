//! A connection to upstream: the route's stream and, for an `https` URL, TLS on it. One timeout
//! covers name resolution, proxies and handshakes together.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::dial::{DialDeadline, DialError, DialFailure, Dialer, OutboundStream};
use super::trust::TrustRoots;
use crate::config::DialTarget;
use crate::files::io_reason;

/// The versions of HTTP that are offered to upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HttpVersions {
    All,
    OnlyHttp1,
}

impl HttpVersions {
    /// Returns the protocols for ALPN, the preferred one first. Without one, HTTP/1.1 is spoken.
    fn alpn(self) -> Vec<Vec<u8>> {
        match self {
            Self::All => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Self::OnlyHttp1 => Vec::new(),
        }
    }
}

/// Makes the connections of one upstream client.
#[derive(Clone)]
pub(super) struct UpstreamConnector {
    dialer: Dialer,
    target: DialTarget,
    tls: TlsConnector,
    limit: Duration,
}

impl UpstreamConnector {
    /// Creates a connector to `target` in place of a URI's host, which gives up after `limit`.
    pub(super) fn new(
        dialer: &Dialer,
        target: &DialTarget,
        trust: &TrustRoots,
        versions: HttpVersions,
        limit: Duration,
    ) -> Self {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            // The provider supports TLS 1.2 and 1.3, which are the defaults.
            .unwrap_or_else(|error| unreachable!("ring has the default versions: {error}"))
            .with_root_certificates(Arc::clone(trust.roots()))
            .with_no_client_auth();
        config.alpn_protocols = versions.alpn();
        Self {
            dialer: dialer.clone(),
            target: target.clone(),
            tls: TlsConnector::from(Arc::new(config)),
            limit,
        }
    }

    pub(super) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// Connects to the host of `uri`, or to the target in its place. TLS checks the name in `uri`.
    ///
    /// # Errors
    /// There is no connection.
    pub(super) async fn connect(&self, uri: &Uri) -> Result<UpstreamConnection, DialError> {
        let deadline = DialDeadline::after(self.limit);
        let target = self.target.of(uri);
        let stream = self
            .dialer
            .dial(target.as_ref().unwrap_or(uri), deadline)
            .await?;
        if uri.scheme_str() != Some("https") {
            return Ok(UpstreamConnection::Clear(stream));
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let step = format!("TLS with {host}");
        deadline
            .bound(&step, self.handshake(host, stream))
            .await
            .map_err(DialFailure::without_outbound)
    }

    async fn handshake(
        &self,
        host: &str,
        stream: OutboundStream,
    ) -> Result<UpstreamConnection, DialFailure> {
        let failed = |reason: String| DialFailure::Tls {
            host: host.to_owned(),
            reason,
        };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| failed("expected a host name or an IP address".to_owned()))?;
        let connected = self.tls.connect(name, stream).await;
        let stream = connected.map_err(|error| failed(io_reason(&error)))?;
        Ok(UpstreamConnection::Tls(Box::new(stream)))
    }
}

impl Service<Uri> for UpstreamConnector {
    type Response = TokioIo<UpstreamConnection>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        // One box per connection, not per request.
        Box::pin(async move { connector.connect(&uri).await.map(TokioIo::new) })
    }
}

/// A connection to upstream, with TLS or without.
#[derive(Debug)]
pub enum UpstreamConnection {
    /// For an `http` URL.
    Clear(OutboundStream),
    /// For an `https` URL.
    Tls(Box<TlsStream<OutboundStream>>),
}

impl Connection for UpstreamConnection {
    fn connected(&self) -> Connected {
        match self {
            Self::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                Connected::new().negotiated_h2()
            }
            Self::Clear(_) | Self::Tls(_) => Connected::new(),
        }
    }
}

/// Runs the same expression on the stream of either kind.
macro_rules! with {
    ($connection:expr, $io:ident => $what:expr) => {
        match $connection.get_mut() {
            UpstreamConnection::Clear($io) => $what,
            UpstreamConnection::Tls($io) => $what,
        }
    };
}

impl AsyncRead for UpstreamConnection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        with!(self, io => Pin::new(io).poll_read(cx, buffer))
    }
}

impl AsyncWrite for UpstreamConnection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        with!(self, io => Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with!(self, io => Pin::new(io).poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Clear(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}

/// Returns the TCP stream of a connection without TLS.
///
/// # Errors
/// Returns a connection with TLS, to upstream or to a proxy, unchanged.
pub fn without_tls(connection: UpstreamConnection) -> Result<TcpStream, UpstreamConnection> {
    match connection {
        UpstreamConnection::Clear(stream) => stream.into_tcp().map_err(UpstreamConnection::Clear),
        connection @ UpstreamConnection::Tls(_) => Err(connection),
    }
}
