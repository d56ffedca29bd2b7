//! The HTTP/2 side of a connection: frames of the client that hyper does not show, frames of
//! `http2_side.rs` that hyper would not write, and one task for the connection and its streams.
//!
//! Knows nothing of replies. Invariant: what is written past hyper is written between two of its
//! frames.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use h2::Reason;
use hyper::rt::Executor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::transport::wire::Wire;

const PREFACE_BYTES: usize = 24;
const FRAME_HEAD_BYTES: usize = 9;
const RST_STREAM: u8 = 3;
/// Of a RST_STREAM: the head, and the code that is its payload.
const RST_STREAM_BYTES: usize = FRAME_HEAD_BYTES + 4;

/// The streams of one connection, polled by the task that polls the connection: when a stream has
/// handed over its bytes, the connection's next poll writes and flushes them, and no other thread
/// comes in between.
#[derive(Clone, Default)]
pub(crate) struct StreamTasks(Arc<Mutex<Vec<StreamTask>>>);

type StreamTask = Pin<Box<dyn Future<Output = ()> + Send>>;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for StreamTasks {
    fn execute(&self, stream: F) {
        self.tasks().push(Box::pin(stream));
    }
}

impl StreamTasks {
    /// Moves the streams that were opened since the last call to `running`. Returns whether there
    /// were any.
    pub(crate) fn start(&self, running: &mut Vec<StreamTask>) -> bool {
        let mut opened = self.tasks();
        let any = !opened.is_empty();
        running.append(&mut opened);
        any
    }

    fn tasks(&self) -> MutexGuard<'_, Vec<StreamTask>> {
        self.0.lock().expect("no holder of the streams panics")
    }
}

/// Polls each stream once and removes those that have ended.
pub(crate) fn poll_streams(streams: &mut Vec<StreamTask>, cx: &mut Context<'_>) {
    streams.retain_mut(|stream| stream.as_mut().poll(cx).is_pending());
}

/// A connection between hyper and TLS.
pub(crate) struct FrameIo<S> {
    io: S,
    wire: Arc<Wire>,
    seen: FrameScan,
    on_reset: Box<dyn Fn(Reason) + Send>,
}

impl<S> FrameIo<S> {
    /// `on_reset` is called for each RST_STREAM of the client.
    pub(crate) fn new(io: S, wire: Arc<Wire>, on_reset: impl Fn(Reason) + Send + 'static) -> Self {
        FrameIo {
            io,
            wire,
            seen: FrameScan::default(),
            on_reset: Box::new(on_reset),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FrameIo<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        this.seen.feed(&buf.filled()[before..], &this.on_reset);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FrameIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// hyper flushes when all of its frames are written: here, bytes of our own come between two of
    /// them.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let FrameIo { io, wire, .. } = self.get_mut();
        if let Some(side) = wire.http2() {
            ready!(side.poll_write_bare(io, cx))?;
        }
        Pin::new(io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Finds the RST_STREAMs among the frames of a client.
struct FrameScan {
    /// Bytes that do not matter.
    skip: usize,
    /// What has come of a frame's head, or of a whole RST_STREAM.
    frame: Vec<u8>,
}

impl Default for FrameScan {
    fn default() -> Self {
        FrameScan {
            skip: PREFACE_BYTES,
            frame: Vec::with_capacity(RST_STREAM_BYTES),
        }
    }
}

impl FrameScan {
    fn feed(&mut self, mut bytes: &[u8], on_reset: &dyn Fn(Reason)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (self.wanted() - self.frame.len()).min(bytes.len());
            self.frame.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.frame.len() == self.wanted() {
                self.finish_frame(on_reset);
            }
        }
    }

    fn wanted(&self) -> usize {
        match self.frame.get(3) {
            Some(&RST_STREAM) => RST_STREAM_BYTES,
            Some(_) | None => FRAME_HEAD_BYTES,
        }
    }

    fn finish_frame(&mut self, on_reset: &dyn Fn(Reason)) {
        if let [.., a, b, c, d] = self.frame[FRAME_HEAD_BYTES..] {
            on_reset(u32::from_be_bytes([a, b, c, d]).into());
        } else {
            let length = [0, self.frame[0], self.frame[1], self.frame[2]];
            self.skip = u32::from_be_bytes(length) as usize;
        }
        self.frame.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn resets_are_found_however_the_bytes_arrive() {
        let mut bytes = vec![b'*'; PREFACE_BYTES];
        bytes.extend([
            0, 0, 3, 0, 0, 0, 0, 0, 1, RST_STREAM, RST_STREAM, RST_STREAM,
        ]);
        bytes.extend([0, 0, 4, RST_STREAM, 0, 0, 0, 0, 1, 0, 0, 0, 8]);
        bytes.extend([0, 0, 0, 4, 1, 0, 0, 0, 0]);
        bytes.extend([0, 0, 4, RST_STREAM, 0, 0, 0, 0, 3, 0, 0, 0, 7]);
        for size in 1..=bytes.len() {
            let found = RefCell::new(Vec::new());
            let mut scan = FrameScan::default();
            for part in bytes.chunks(size) {
                scan.feed(part, &|reason| found.borrow_mut().push(reason));
            }
            assert_eq!(
                *found.borrow(),
                [Reason::CANCEL, Reason::REFUSED_STREAM],
                "in parts of {size} bytes"
            );
        }
    }
}
