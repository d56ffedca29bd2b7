//! The connection's socket, shared between hyper and a reply that needs it bare: to write what is
//! no HTTP, to learn that all written bytes are out, or to break the connection. Invariant: the
//! socket closes when its last holder is dropped.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::transport::http2_side::Http2Side;

#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) number: u64,
    stream: TcpStream,
    flushed: Notify,
    flush_wanted: AtomicBool,
    /// Set when the connection turns out to speak HTTP/2.
    http2: OnceLock<Http2Side>,
}

impl Wire {
    pub(crate) fn new(number: u64, stream: TcpStream) -> Self {
        // Without it a test would wait for Nagle; failing to set it changes no byte.
        let _ = stream.set_nodelay(true);
        Wire {
            number,
            stream,
            flushed: Notify::new(),
            flush_wanted: AtomicBool::new(false),
            http2: OnceLock::new(),
        }
    }

    /// The connection speaks HTTP/2 from here on.
    pub(crate) fn speaks_http2(&self) -> &Http2Side {
        self.http2.get_or_init(Http2Side::default)
    }

    /// What upstream does beside hyper, on a connection that speaks HTTP/2.
    pub(crate) fn http2(&self) -> Option<&Http2Side> {
        self.http2.get()
    }

    /// Writes past hyper: for a reply after which the connection ends, or on a socket between its
    /// frames.
    pub(crate) async fn write_bare(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for hyper's next flush, which it does when all bytes handed to it are written.
    pub(crate) async fn wait_for_flush(self: Arc<Self>) {
        let mut flushed = pin!(self.flushed.notified());
        flushed.as_mut().enable();
        self.flush_wanted.store(true, Ordering::SeqCst);
        flushed.await;
    }

    /// Sends FIN; what the peer sends is still read.
    pub(crate) fn finish(&self) {
        // It fails where the peer is gone, which has ended the connection.
        let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write);
    }

    /// Closing will send RST and not FIN.
    pub(crate) fn reset_on_close(&self) {
        // If it fails the peer sees FIN, and the test that wanted RST says so.
        let _ = self.stream.set_zero_linger();
    }
}

/// The side of a [`Wire`] that hyper reads and writes.
#[derive(Debug)]
pub(crate) struct WireIo(pub(crate) Arc<Wire>);

impl AsyncRead for WireIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.stream.poll_read_ready(cx))?;
            match self.0.stream.try_read_buf(buf) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl WireIo {
    fn poll_try(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.stream.poll_write_ready(cx))?;
            match write(&self.0.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl AsyncWrite for WireIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_try(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_try(cx, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.flush_wanted.swap(false, Ordering::SeqCst) {
            self.0.flushed.notify_waiters();
        }
        Poll::Ready(Ok(()))
    }

    /// The socket is closed by dropping it, which follows at once.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
