//! A side of a socket: the connection that it was upgraded from.
//!
//! The connection that hyper hands over reads and writes through hyper's wrapper. If the connection
//! itself can be recovered, it is: each message passes through two of them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::upgrade::{Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::listener::ClientStream;
use crate::{tls, upstream};

/// One of the two connections of a socket.
pub(in crate::pipeline) enum SocketSide {
    /// A client's connection without TLS.
    FromClient(ClientStream),
    /// A client's connection with TLS.
    FromClientTls(Box<tls::TlsConnection<ClientStream>>),
    /// Upstream's connection without TLS.
    ToUpstreamClear(TcpStream),
    /// Upstream's connection with TLS.
    ToUpstream(Box<upstream::UpstreamConnection>),
    /// A stream of HTTP/2.
    Stream(TokioIo<Upgraded>),
}

impl SocketSide {
    /// Returns the side behind `upgraded`, and what was already read from it.
    pub(super) fn of(upgraded: Upgraded) -> (Self, Bytes) {
        let upgraded = match upgraded.downcast::<TokioIo<ClientStream>>() {
            Ok(Parts { io, read_buf, .. }) => return (Self::FromClient(io.into_inner()), read_buf),
            Err(upgraded) => upgraded,
        };
        let upgraded = match upgraded.downcast::<TokioIo<tls::TlsConnection<ClientStream>>>() {
            Ok(Parts { io, read_buf, .. }) => {
                return (Self::FromClientTls(Box::new(io.into_inner())), read_buf);
            }
            Err(upgraded) => upgraded,
        };
        match upgraded.downcast::<TokioIo<upstream::UpstreamConnection>>() {
            Ok(Parts { io, read_buf, .. }) => match upstream::without_tls(io.into_inner()) {
                Ok(stream) => (Self::ToUpstreamClear(stream), read_buf),
                Err(connection) => (Self::ToUpstream(Box::new(connection)), read_buf),
            },
            Err(upgraded) => (Self::Stream(TokioIo::new(upgraded)), Bytes::new()),
        }
    }
}

/// Runs the same expression on the connection of either kind.
macro_rules! with {
    ($side:expr, $io:ident => $what:expr) => {
        match $side.get_mut() {
            SocketSide::FromClient($io) => $what,
            SocketSide::FromClientTls($io) => $what,
            SocketSide::ToUpstreamClear($io) => $what,
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
