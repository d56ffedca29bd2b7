//! A side of a socket: the connection that it became of.
//!
//! What hyper hands over reads and writes through whatever it wrapped the connection in. Where the connection itself can be
//! had, it is taken out: each message passes two of them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::upgrade::{Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::{tls, upstream};

/// A side.
pub(super) enum SocketSide {
    /// A connection without TLS.
    Clear(TcpStream),
    /// A client's with TLS.
    FromClient(Box<tls::TlsConnection>),
    /// Upstream's with TLS.
    ToUpstream(TokioIo<Box<upstream::UpstreamConnection>>),
    /// A stream of HTTP/2.
    Stream(TokioIo<Upgraded>),
}

impl SocketSide {
    /// The side that `upgraded` is, and what was read of it already.
    pub(super) fn of(upgraded: Upgraded) -> (Self, Bytes) {
        let upgraded = match upgraded.downcast::<TokioIo<TcpStream>>() {
            Ok(Parts { io, read_buf, .. }) => return (Self::Clear(io.into_inner()), read_buf),
            Err(upgraded) => upgraded,
        };
        let upgraded = match upgraded.downcast::<TokioIo<tls::TlsConnection>>() {
            Ok(Parts { io, read_buf, .. }) => {
                return (Self::FromClient(Box::new(io.into_inner())), read_buf);
            }
            Err(upgraded) => upgraded,
        };
        match upgraded.downcast::<upstream::UpstreamConnection>() {
            Ok(Parts { io, read_buf, .. }) => match upstream::without_tls(io) {
                Ok(stream) => (Self::Clear(stream), read_buf),
                Err(connection) => (Self::ToUpstream(TokioIo::new(connection)), read_buf),
            },
            Err(upgraded) => (Self::Stream(TokioIo::new(upgraded)), Bytes::new()),
        }
    }
}

/// Does the same with whichever it is.
macro_rules! with {
    ($side:expr, $io:ident => $what:expr) => {
        match $side.get_mut() {
            SocketSide::Clear($io) => $what,
            SocketSide::FromClient($io) => $what,
            SocketSide::ToUpstream($io) => $what,
            SocketSide::Stream($io) => $what,
        }
    };
}

impl AsyncRead for SocketSide {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        with!(self, io => Pin::new(io).poll_read(cx, buffer))
    }
}

impl AsyncWrite for SocketSide {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        with!(self, io => Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
