//! A stream whose other end is upstream, whatever is in between.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A connection to upstream. Over a proxy without TLS it is the proxy's TCP connection itself.
pub struct OutboundStream(Transport);

enum Transport {
    Tcp(TcpStream),
    /// TLS with a proxy.
    Tls(Box<TlsStream<OutboundStream>>),
    /// A stream of which some bytes were read already.
    Early(Box<OutboundStream>, Bytes),
}

impl OutboundStream {
    pub(super) fn over_tls(stream: TlsStream<Self>) -> Self {
        Self(Transport::Tls(Box::new(stream)))
    }

    /// Returns a stream from which `early` is read first.
    pub(super) fn with_early(self, early: Bytes) -> Self {
        if early.is_empty() {
            self
        } else {
            Self(Transport::Early(Box::new(self), early))
        }
    }

    /// Returns the TCP connection, if there is nothing else between.
    ///
    /// # Errors
    /// Returns the stream itself if there is.
    pub fn into_tcp(self) -> Result<TcpStream, Self> {
        match self.0 {
            Transport::Tcp(stream) => Ok(stream),
            transport => Err(Self(transport)),
        }
    }
}

impl From<TcpStream> for OutboundStream {
    fn from(stream: TcpStream) -> Self {
        Self(Transport::Tcp(stream))
    }
}

impl std::fmt::Debug for OutboundStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutboundStream").finish_non_exhaustive()
    }
}

/// Runs the same expression on the stream of any kind.
macro_rules! with {
    ($stream:expr, $io:ident => $what:expr) => {
        match &mut $stream.get_mut().0 {
            Transport::Tcp($io) => $what,
            Transport::Tls($io) => $what,
            Transport::Early($io, _) => $what,
        }
    };
}

impl AsyncRead for OutboundStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Transport::Early(_, early) = &mut self.0
            && !early.is_empty()
        {
            let count = early.len().min(buffer.remaining());
            buffer.put_slice(&early[..count]);
            early.advance(count);
            return Poll::Ready(Ok(()));
        }
        with!(self, io => Pin::new(io).poll_read(cx, buffer))
    }
}

impl AsyncWrite for OutboundStream {
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
        match &self.0 {
            Transport::Tcp(io) => io.is_write_vectored(),
            Transport::Tls(io) => io.is_write_vectored(),
            Transport::Early(io, _) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
