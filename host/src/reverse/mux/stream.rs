//! A stream of a session, as a connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::state::MuxShared;
use super::stream_state::{ReceiveDirection, SendDirection};

/// The peer did not accept a stream, and has processed nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the other gateway did not accept the stream")]
pub struct StreamRefused;

fn refused() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, StreamRefused)
}

/// A stream. Dropping it aborts it, unless its sending side was shut down.
#[derive(Debug)]
pub struct MuxStream {
    shared: Arc<MuxShared>,
    id: u32,
}

impl MuxStream {
    pub(super) fn new(shared: &Arc<MuxShared>, id: u32) -> Self {
        Self {
            shared: Arc::clone(shared),
            id,
        }
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        let Some(stream) = state.stream(self.id) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let length = stream.read_into(buffer.initialize_unfilled());
        if length == 0 {
            return match stream.receiving {
                ReceiveDirection::Open => {
                    stream.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
                ReceiveDirection::Ended => Poll::Ready(Ok(())),
                ReceiveDirection::Reset => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                ReceiveDirection::Refused => Poll::Ready(Err(refused())),
            };
        }
        buffer.advance(length);
        let owes_credit = state.queue_credit(self.id);
        drop(state);
        if owes_credit {
            self.shared.output.notify_one();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.shared.lock();
        let stream = match state.stream(self.id) {
            Some(stream) if stream.sending == SendDirection::Open => stream,
            Some(stream) if stream.receiving == ReceiveDirection::Refused => {
                return Poll::Ready(Err(refused()));
            }
            Some(_) | None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        let length = stream.write(bytes);
        if length == 0 && !bytes.is_empty() {
            stream.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.queue_output(self.id);
        drop(state);
        self.shared.output.notify_one();
        Poll::Ready(Ok(length))
    }

    /// The driver sends what is written without being asked.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        if let Some(stream) = state.stream(self.id)
            && stream.sending == SendDirection::Open
        {
            stream.sending = SendDirection::Ending;
            state.queue_output(self.id);
            drop(state);
            self.shared.output.notify_one();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        self.shared.lock().drop_handle(self.id, Instant::now());
        self.shared.output.notify_one();
        self.shared.publish_count();
    }
}
