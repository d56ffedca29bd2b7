//! A client's connection over TCP or a Unix socket.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A client's connection, before TLS.
#[derive(Debug)]
pub(crate) enum ClientStream {
    /// A connection over TCP.
    Tcp(TcpStream),
    /// A connection over a Unix socket.
    Unix(UnixStream),
}

impl ClientStream {
    /// Sets the options of a connection that was just accepted.
    pub(super) fn prepare(&self, stall_limit: Duration) {
        let Self::Tcp(stream) = self else { return };
        // Each part of a response is written as a whole: Nagle's algorithm would only add latency.
        let _ = stream.set_nodelay(true);
        set_stall_limit(stream, stall_limit);
    }

    /// Reads what has arrived into `buffer` and leaves it in the socket. Waits until something has
    /// arrived. Returns 0 at the end of the stream.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.peek(buffer).await,
            Self::Unix(stream) => {
                let mut peek = || {
                    let (length, _) = rustix::net::recv(stream, &mut *buffer, RecvFlags::PEEK)?;
                    Ok(length)
                };
                stream.async_io(Interest::READABLE, &mut peek).await
            }
        }
    }
}

/// RFC 5482: ends the connection if data stays unacknowledged or the window closed for this long.
#[cfg(target_os = "linux")]
fn set_stall_limit(stream: &TcpStream, limit: Duration) {
    let limit_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, limit_ms);
}

#[cfg(not(target_os = "linux"))]
fn set_stall_limit(_: &TcpStream, _: Duration) {}

/// Runs the same expression on the stream of either kind.
macro_rules! with {
    ($stream:expr, $io:ident => $what:expr) => {
        match $stream {
            ClientStream::Tcp($io) => $what,
            ClientStream::Unix($io) => $what,
        }
    };
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        with!(self.get_mut(), io => Pin::new(io).poll_read(cx, buffer))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        with!(self.get_mut(), io => Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with!(self.get_mut(), io => Pin::new(io).poll_write_vectored(cx, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        with!(self, io => io.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self.get_mut(), io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self.get_mut(), io => Pin::new(io).poll_shutdown(cx))
    }
}
