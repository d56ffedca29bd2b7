//! A client's connection over TCP or a Unix socket.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use crate::platform::{self, UnixStream};

/// A client's connection, before TLS.
#[derive(Debug)]
pub(crate) struct ClientStream {
    socket: ClientSocket,
    /// Where the kernel does not end the connection of a client that stops reading.
    stall: Option<StallTimer>,
}

#[derive(Debug)]
enum ClientSocket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Measures how long a client has not read what waits for it.
#[derive(Debug)]
struct StallTimer {
    limit: Duration,
    /// While something waits to be read.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl StallTimer {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            waiting: None,
        }
    }

    /// Returns the result of a write, or an error if writes have waited for too long.
    fn check<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let limit = self.limit;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(limit)));
        waiting
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl ClientStream {
    /// Takes a connection that was just accepted. It ends if the client does not read for
    /// `stall_limit` while data waits for it.
    pub(super) fn tcp(stream: TcpStream, stall_limit: Duration) -> Self {
        // Each part of a response is written as a whole: Nagle's algorithm would only add latency.
        let _ = stream.set_nodelay(true);
        // Multipath TCP has no such option.
        let stall = set_stall_limit(&stream, stall_limit).is_err();
        Self {
            socket: ClientSocket::Tcp(stream),
            stall: stall.then(|| StallTimer::new(stall_limit)),
        }
    }

    /// As [`ClientStream::tcp`], for a Unix socket.
    pub(super) fn unix(stream: UnixStream, stall_limit: Duration) -> Self {
        Self {
            socket: ClientSocket::Unix(stream),
            stall: Some(StallTimer::new(stall_limit)),
        }
    }

    fn checked<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut self.stall {
            Some(stall) => stall.check(cx, written),
            None => written,
        }
    }

    /// Reads what has arrived into `buffer` and leaves it in the socket. Waits until something has
    /// arrived. Returns 0 at the end of the stream.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.socket {
            ClientSocket::Tcp(stream) => stream.peek(buffer).await,
            ClientSocket::Unix(stream) => platform::peek(stream, buffer).await,
        }
    }
}

/// RFC 5482: ends the connection if data stays unacknowledged or the window closed for this long.
#[cfg(target_os = "linux")]
fn set_stall_limit(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    let limit_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    Ok(rustix::net::sockopt::set_tcp_user_timeout(
        stream, limit_ms,
    )?)
}

#[cfg(not(target_os = "linux"))]
fn set_stall_limit(_: &TcpStream, _: Duration) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Runs the same expression on the stream of either kind.
macro_rules! with {
    ($stream:expr, $io:ident => $what:expr) => {
        match $stream {
            ClientSocket::Tcp($io) => $what,
            ClientSocket::Unix($io) => $what,
        }
    };
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        with!(&mut self.get_mut().socket, io => Pin::new(io).poll_read(cx, buffer))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = with!(&mut this.socket, io => Pin::new(io).poll_write(cx, bytes));
        this.checked(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = with!(&mut this.socket, io => Pin::new(io).poll_write_vectored(cx, pieces));
        this.checked(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        with!(&self.socket, io => io.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(&mut self.get_mut().socket, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(&mut self.get_mut().socket, io => Pin::new(io).poll_shutdown(cx))
    }
}
