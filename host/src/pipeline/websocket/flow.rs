//! One direction of a socket: bytes go from one side to the other as they come, and are read on the side.

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

/// What is read at once. The buffer is its thread's: a socket that is idle has none.
const READ_BYTES: usize = 32 * 1024;

/// A sender that broke the protocol and sends nothing for so long has read why.
const QUIET: Duration = Duration::from_millis(200);

thread_local! {
    static BUFFER: RefCell<Box<[u8; READ_BYTES]>> = RefCell::new(Box::new([0; READ_BYTES]));
}

/// How a direction ends.
#[derive(Debug)]
pub(super) enum FlowEnd {
    /// The sender said that it sends nothing more, and that went through.
    Closed,
    /// The sender is gone without that.
    SenderGone,
    /// The receiver is.
    ReceiverGone,
    /// The sender broke the protocol, or a bound.
    Violation(ProtocolViolation),
    /// A row could not be committed.
    NotRecorded,
}

/// What reads a direction on the side.
pub(super) trait FlowWatcher {
    /// # Errors
    /// A bound is broken.
    fn begin(&mut self, kind: MessageKind) -> Result<(), ProtocolViolation>;
    fn data(&mut self, piece: &[u8]);
    /// A message is whole. Its last byte waits for the commit, where there is one.
    fn end(&mut self) -> Option<RowCommit>;
    /// A frame passed that belongs to no message.
    fn control(&mut self);
}

/// One direction.
pub(super) struct SocketFlow {
    frames: FrameReader,
    /// What waits to be written, from `written` on.
    pending: Vec<u8>,
    written: usize,
    /// It was written, and is to be flushed.
    unflushed: bool,
    /// The end of a response, and the commit that it waits for.
    held: Option<(RowCommit, Vec<u8>)>,
    /// What was read behind it.
    unread: Vec<u8>,
    /// Frames of the gateway's own.
    own: Vec<u8>,
    /// The receiver is in the middle of a frame.
    cut: bool,
    /// The receiver had no room, and took something again since that was asked.
    stuck: bool,
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

    /// What was read of the sender before this was there.
    pub(super) fn was_read(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// Whether a receiver that had no room took something since this was asked: it is there, however slowly it reads.
    pub(super) fn made_progress(&mut self) -> bool {
        std::mem::take(&mut self.progress)
    }

    /// Whether nothing is under way: no message, and nothing that waits.
    pub(super) fn is_at_rest(&self) -> bool {
        self.frames.is_between_frames()
            && !self.frames.is_in_message()
            && self.held.is_none()
            && self.unread.is_empty()
    }

    /// Whether something waits for its row.
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Sends a frame of the gateway's own, as soon as no other is under way.
    pub(super) fn send_own(&mut self, frame: &[u8]) {
        self.own.extend_from_slice(frame);
    }

    /// Writes what waits and then `frame`, the gateway's own last one. Where the receiver is in the middle of a frame it
    /// gets none: it could not tell it from the frame's rest.
    pub(super) async fn finish(&mut self, to: &mut SocketSide, frame: &[u8]) -> io::Result<()> {
        if self.cut {
            return Ok(());
        }
        to.write_all(&self.pending[self.written..]).await?;
        to.write_all(frame).await?;
        to.flush().await
    }

    /// Reads to the sender's close frame, or to its end: with what is unread, its system could take back what was sent to
    /// it last. What comes goes nowhere.
    pub(super) async fn drain(&mut self, from: &mut SocketSide) {
        let mut buffer = [0; 1024];
        while !self.frames.is_closed() {
            // The close frame of one that broke the protocol is not found any more.
            let limit = if self.frames.is_broken() {
                QUIET
            } else {
                Duration::MAX
            };
            let read = match timeout(limit, from.read(&mut buffer)).await {
                Ok(Ok(read)) if read > 0 => read,
                _ => return,
            };
            // One that broke the protocol is not understood any more, and read all the same.
            let _ = self.frames.read(&buffer[..read], |_| ReadControl::Continue);
        }
    }

    /// Lets go through what can.
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
                if let Err(violation) = self.take(cx, &unread, to.as_mut(), watcher) {
                    return Poll::Ready(FlowEnd::Violation(violation));
                }
                continue;
            }
            match ready!(self.poll_read(cx, from.as_mut(), to.as_mut(), watcher)) {
                Ok(0) => return Poll::Ready(FlowEnd::SenderGone),
                Ok(_) => {}
                Err(ReadStop::Gone) => return Poll::Ready(FlowEnd::SenderGone),
                Err(ReadStop::Violation(violation)) => {
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
    ) -> Poll<Result<usize, ReadStop>> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(&mut buffer[..]);
            if ready!(from.poll_read(cx, &mut read)).is_err() {
                return Poll::Ready(Err(ReadStop::Gone));
            }
            let input = read.filled();
            let length = input.len();
            Poll::Ready(
                self.take(cx, input, to, watcher)
                    .map(|()| length)
                    .map_err(ReadStop::Violation),
            )
        })
    }

    /// Reads `input` on the side and lets it go through, up to the end of a response that waits for its row.
    fn take(
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

    /// Forwards what ends with a frame, where there is something.
    fn forward_whole(&mut self, cx: &mut Context<'_>, bytes: &[u8], to: Pin<&mut SocketSide>) {
        if !bytes.is_empty() {
            self.forward(cx, bytes, to);
            self.cut = false;
        }
    }

    /// Writes what can be written at once. The rest waits: nothing more is read before it is out.
    fn forward(&mut self, cx: &mut Context<'_>, mut bytes: &[u8], mut to: Pin<&mut SocketSide>) {
        while !bytes.is_empty() && self.pending.is_empty() {
            match to.as_mut().poll_write(cx, bytes) {
                Poll::Ready(Ok(written)) if written > 0 => {
                    bytes = &bytes[written..];
                    self.unflushed = true;
                }
                // Gone, or full: what waits is tried again and tells which.
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
            // Over HTTP/2 it is this that waits for the receiver.
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

enum ReadStop {
    Gone,
    Violation(ProtocolViolation),
}
