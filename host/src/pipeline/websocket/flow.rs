//! One direction of a socket: bytes are forwarded as they arrive, and read on the side.
//!
//! Knows nothing of credentials or rows: an observer reads the messages and returns the commit that
//! the last byte of a response waits for. Invariant: nothing more is read before everything read so
//! far has been written.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use super::side::SocketSide;
use crate::frames::{
    BrokenInput, FramePart, FrameReader, FrameSender, MessageKind, ProtocolViolation, ReadControl,
};
use crate::ledger::RowCommit;

/// How much is read at once. The buffer belongs to the thread, so that an idle socket holds none.
const READ_BYTES: usize = 32 * 1024;

/// A sender that broke the protocol and sends nothing for this long has read the reason.
const QUIET: Duration = Duration::from_millis(200);

thread_local! {
    static BUFFER: RefCell<Box<[u8; READ_BYTES]>> = RefCell::new(Box::new([0; READ_BYTES]));
}

/// How a direction ends.
#[derive(Debug)]
pub(super) enum FlowEnd {
    /// The sender sent its close frame, and the frame was forwarded.
    Closed,
    /// The sender disconnected without a close frame.
    SenderGone,
    ReceiverGone,
    /// The sender violated the protocol or a limit.
    Violation(ProtocolViolation),
    /// A row could not be committed.
    NotRecorded,
}

/// Reads the frames of a direction on the side.
pub(super) trait FlowWatcher {
    /// # Errors
    /// Returns the violation if a limit is exceeded.
    fn begin(&mut self, kind: MessageKind) -> Result<(), ProtocolViolation>;
    fn data(&mut self, piece: &[u8]);
    /// Called when a message is complete. Its last byte waits for the returned commit.
    fn end(&mut self) -> Option<RowCommit>;
    /// Called for each frame that belongs to no message.
    fn control(&mut self);
}

pub(super) struct SocketFlow {
    frames: FrameReader,
    /// Bytes to write, from `written` on.
    pending: Vec<u8>,
    written: usize,
    /// Bytes were written and are still to be flushed.
    unflushed: bool,
    /// The end of a response, and the commit that it waits for.
    held: Option<(RowCommit, Vec<u8>)>,
    /// Bytes read after the end of that response.
    unread: Vec<u8>,
    /// Frames that the gateway itself sends.
    own: Vec<u8>,
    /// The receiver has received part of a frame.
    cut: bool,
    /// The receiver had no room at the last write.
    stuck: bool,
    /// The receiver has accepted bytes since it was last asked whether it had.
    progress: bool,
}

impl SocketFlow {
    pub(super) fn new(sender: FrameSender, message_bytes_max: u64) -> Self {
        Self {
            frames: FrameReader::new(sender, message_bytes_max),
            pending: Vec::new(),
            written: 0,
            unflushed: false,
            held: None,
            unread: Vec::new(),
            own: Vec::new(),
            cut: false,
            stuck: false,
            progress: false,
        }
    }

    /// Adds bytes that were read from the sender before the relay began.
    pub(super) fn push_unread(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// Returns whether a receiver that had no room has accepted bytes since the last call: it is
    /// alive, however slowly it reads.
    pub(super) fn made_progress(&mut self) -> bool {
        std::mem::take(&mut self.progress)
    }

    /// Returns whether the direction is idle: no partial message, and nothing to write.
    pub(super) fn is_at_rest(&self) -> bool {
        self.frames.is_between_frames()
            && !self.frames.is_in_message()
            && self.held.is_none()
            && self.unread.is_empty()
    }

    /// Returns whether bytes wait for the commit of a row.
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Sends a frame of the gateway once no other frame is partly sent.
    pub(super) fn send_own(&mut self, frame: &[u8]) {
        self.own.extend_from_slice(frame);
    }

    /// Writes what is pending, then `frame`, the gateway's last one. A receiver in the middle of a
    /// frame does not get it, because it could not tell the two apart.
    pub(super) async fn finish(&mut self, to: &mut SocketSide, frame: &[u8]) -> io::Result<()> {
        if self.cut {
            return Ok(());
        }
        to.write_all(&self.pending[self.written..]).await?;
        to.write_all(frame).await?;
        to.flush().await
    }

    /// Reads up to the sender's close frame or the end of its stream, and discards it. If bytes
    /// stayed unread, the system could reset the connection and lose what was sent last.
    pub(super) async fn drain(&mut self, from: &mut SocketSide) {
        let mut buffer = [0; 1024];
        while !self.frames.is_closed() {
            // After a protocol violation, frames are no longer recognised.
            let limit = if self.frames.is_broken() {
                QUIET
            } else {
                Duration::MAX
            };
            let read = match timeout(limit, from.read(&mut buffer)).await {
                Ok(Ok(read)) if read > 0 => read,
                _ => return,
            };
            // After a protocol violation, bytes are read without being parsed.
            let _ = self.frames.read(&buffer[..read], |_| ReadControl::Continue);
        }
    }

    /// Forwards as much as possible without waiting.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut from: Pin<&mut SocketSide>,
        mut to: Pin<&mut SocketSide>,
        watcher: &mut impl FlowWatcher,
    ) -> Poll<FlowEnd> {
        loop {
            match self.poll_pending(cx, to.as_mut()) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(FlowEnd::ReceiverGone),
                Poll::Pending => return Poll::Pending,
            }
            if let Some((commit, _)) = &mut self.held {
                let committed = ready!(Pin::new(commit).poll(cx));
                let Some((_, bytes)) = self.held.take() else {
                    continue;
                };
                if !committed {
                    return Poll::Ready(FlowEnd::NotRecorded);
                }
                self.pending = bytes;
                self.cut = false;
                continue;
            }
            if !self.own.is_empty() && self.frames.is_between_frames() {
                self.pending = std::mem::take(&mut self.own);
                continue;
            }
            if self.frames.is_closed() {
                return Poll::Ready(FlowEnd::Closed);
            }
            if !self.unread.is_empty() {
                let unread = std::mem::take(&mut self.unread);
                if let Err(violation) = self.read_and_forward(cx, &unread, to.as_mut(), watcher) {
                    return Poll::Ready(FlowEnd::Violation(violation));
                }
                continue;
            }
            match ready!(self.poll_read(cx, from.as_mut(), to.as_mut(), watcher)) {
                Ok(0) => return Poll::Ready(FlowEnd::SenderGone),
                Ok(_) => {}
                Err(ReadFailure::Gone) => return Poll::Ready(FlowEnd::SenderGone),
                Err(ReadFailure::Violation(violation)) => {
                    return Poll::Ready(FlowEnd::Violation(violation));
                }
            }
        }
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        from: Pin<&mut SocketSide>,
        to: Pin<&mut SocketSide>,
        watcher: &mut impl FlowWatcher,
    ) -> Poll<Result<usize, ReadFailure>> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(&mut buffer[..]);
            if ready!(from.poll_read(cx, &mut read)).is_err() {
                return Poll::Ready(Err(ReadFailure::Gone));
            }
            let input = read.filled();
            let length = input.len();
            Poll::Ready(
                self.read_and_forward(cx, input, to, watcher)
                    .map(|()| length)
                    .map_err(ReadFailure::Violation),
            )
        })
    }

    /// Reads `input` on the side and forwards it, up to the end of a response that waits for its
    /// row.
    fn read_and_forward(
        &mut self,
        cx: &mut Context<'_>,
        input: &[u8],
        to: Pin<&mut SocketSide>,
        watcher: &mut impl FlowWatcher,
    ) -> Result<(), ProtocolViolation> {
        let mut commit = None;
        let mut broken = None;
        let read = self.frames.read(input, |part| {
            match part {
                FramePart::Begin(kind) => broken = watcher.begin(kind).err(),
                FramePart::Data(piece) => watcher.data(piece),
                FramePart::End => commit = watcher.end(),
                FramePart::Ping | FramePart::Pong | FramePart::Close { .. } => watcher.control(),
            }
            if commit.is_some() || broken.is_some() {
                ReadControl::Pause
            } else {
                ReadControl::Continue
            }
        });
        let read = match read {
            Ok(read) => read,
            Err(BrokenInput {
                valid_bytes,
                violation,
            }) => {
                self.forward_whole(cx, &input[..valid_bytes], to);
                return Err(violation);
            }
        };
        if let Some(violation) = broken {
            self.forward_whole(cx, &input[..read.message_at], to);
            return Err(violation);
        }
        let Some(commit) = commit else {
            self.forward(cx, &input[..read.read], to);
            self.cut = !self.frames.is_between_frames();
            return Ok(());
        };
        let (before, ending) = input[..read.read].split_at(read.message_at);
        self.forward_whole(cx, before, to);
        self.held = Some((commit, ending.to_vec()));
        self.unread = input[read.read..].to_vec();
        Ok(())
    }

    /// Forwards the bytes that end a frame, if there are any.
    fn forward_whole(&mut self, cx: &mut Context<'_>, bytes: &[u8], to: Pin<&mut SocketSide>) {
        if !bytes.is_empty() {
            self.forward(cx, bytes, to);
            self.cut = false;
        }
    }

    /// Writes what can be written at once. The rest stays pending, and nothing is read before it is
    /// written.
    fn forward(&mut self, cx: &mut Context<'_>, mut bytes: &[u8], mut to: Pin<&mut SocketSide>) {
        while !bytes.is_empty() && self.pending.is_empty() {
            match to.as_mut().poll_write(cx, bytes) {
                Poll::Ready(Ok(written)) if written > 0 => {
                    bytes = &bytes[written..];
                    self.unflushed = true;
                }
                // The receiver is gone or full: the next write of the pending bytes tells which.
                _ => break,
            }
        }
        self.pending.extend_from_slice(bytes);
    }

    fn poll_pending(
        &mut self,
        cx: &mut Context<'_>,
        mut to: Pin<&mut SocketSide>,
    ) -> Poll<io::Result<()>> {
        while self.written < self.pending.len() {
            let Poll::Ready(written) = to.as_mut().poll_write(cx, &self.pending[self.written..])
            else {
                self.stuck = true;
                return Poll::Pending;
            };
            let written = written?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
            self.unflushed = true;
            self.progress |= std::mem::take(&mut self.stuck);
        }
        if !self.pending.is_empty() {
            self.pending = Vec::new();
            self.written = 0;
        }
        if self.unflushed {
            // Over HTTP/2, the flush is what waits for the receiver.
            let Poll::Ready(flushed) = to.poll_flush(cx) else {
                self.stuck = true;
                return Poll::Pending;
            };
            flushed?;
            self.unflushed = false;
            self.progress |= std::mem::take(&mut self.stuck);
        }
        Poll::Ready(Ok(()))
    }
}

enum ReadFailure {
    Gone,
    Violation(ProtocolViolation),
}
