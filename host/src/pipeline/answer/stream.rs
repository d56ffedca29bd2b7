//! The body of a response on its way to the client.
//!
//! Owns how upstream's body is passed on, metered and timed; does not know how a row is made.
//! Invariant: bytes pass unchanged and at once, but the last of them wait for the commit of the
//! response's row.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until};

use super::settle::settle;
use crate::ledger::RowCommit;
use crate::meter::{BodyProgress, Meter};
use crate::pipeline::exchange::Exchange;
use crate::upstream::ResponseBody;
use crate::values::exchange::ExchangeEnd;

pub(crate) enum AnswerBody {
    /// A body that is complete, or none.
    Whole(Option<Bytes>),
    /// Lines that the gateway sends as they come.
    Lines(mpsc::Receiver<Bytes>),
    /// A body that upstream is still sending.
    Streaming(Box<StreamingBody>),
}

impl AnswerBody {
    pub(crate) fn empty() -> Self {
        Self::Whole(None)
    }

    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self::Whole((!bytes.is_empty()).then_some(bytes))
    }
}

impl fmt::Debug for AnswerBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnswerBody")
    }
}

/// Why a response is cut off. The client sees its connection closed: what it has is incomplete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AnswerError {
    #[error("upstream closed the connection before the response was complete")]
    UpstreamBroken,
    /// Nothing came from upstream for `limits.upstream_idle_timeout`.
    #[error("upstream timed out: nothing was received for limits.upstream_idle_timeout")]
    UpstreamIdle,
    /// The row was not committed within `limits.commit_timeout`.
    #[error("the response's row was not committed within limits.commit_timeout")]
    NotRecorded,
}

/// The body of upstream's response on its way to the client.
pub(crate) struct StreamingBody {
    body: ResponseBody,
    /// What was read of the body already.
    read: VecDeque<Bytes>,
    /// The bytes that are still to come, if upstream declared the length.
    left: Option<u64>,
    status: StatusCode,
    meter: Meter,
    exchange: Box<Exchange>,
    state: StreamState,
    idle_limit: Duration,
    commit_limit: Duration,
    quiet_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

enum StreamState {
    /// Parts pass as they come.
    Flowing,
    /// The response is complete with what is held here, which waits for the commit of the row.
    Committing {
        commit: RowCommit,
        held: Option<Bytes>,
    },
    /// The row is committed; what upstream still sends passes.
    Recorded,
    /// The body has ended, in order or not.
    Over,
}

type FramePoll = Poll<Option<Result<Frame<Bytes>, AnswerError>>>;

impl StreamingBody {
    /// A body of which `read` was read already, and of which `left` bytes remain including those.
    pub(super) fn new(
        body: ResponseBody,
        read: VecDeque<Bytes>,
        left: Option<u64>,
        status: StatusCode,
        meter: Meter,
        exchange: Box<Exchange>,
    ) -> Self {
        let limits = exchange.service().limits();
        Self {
            idle_limit: limits.upstream_idle_timeout,
            commit_limit: limits.commit_timeout,
            body,
            read,
            left,
            status,
            meter,
            exchange,
            state: StreamState::Flowing,
            quiet_since: None,
            timer: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> FramePoll {
        loop {
            match &mut self.state {
                StreamState::Flowing => match ready!(self.poll_flowing(cx)) {
                    Some(frame) => return Poll::Ready(Some(frame)),
                    None => continue,
                },
                StreamState::Committing { .. } => return self.poll_committing(cx),
                StreamState::Recorded => {
                    let frame = ready!(self.poll_upstream(cx));
                    if !matches!(frame, Some(Ok(_))) {
                        self.state = StreamState::Over;
                    }
                    return Poll::Ready(frame);
                }
                StreamState::Over => return Poll::Ready(None),
            }
        }
    }

    /// Returns the next frame that may be sent, or `None` if the state changed.
    fn poll_flowing(&mut self, cx: &mut Context<'_>) -> FramePoll {
        let frame = match ready!(self.poll_upstream(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                drop(settle(
                    &mut self.exchange,
                    ExchangeEnd::UpstreamGone,
                    self.meter.metered(),
                ));
                self.state = StreamState::Over;
                return Poll::Ready(Some(Err(error)));
            }
            None => {
                let end = self.meter.finish();
                self.complete(end, None);
                return Poll::Ready(None);
            }
        };
        let Ok(data) = frame.into_data() else {
            unreachable!("`poll_upstream` returns data frames only")
        };
        let signal = self.meter.feed(&data);
        if signal == BodyProgress::Complete || self.left == Some(0) {
            let end = match self.meter.ended() {
                Some(end) => end,
                None => self.meter.finish(),
            };
            self.complete(end, Some(data));
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    /// The response is complete with `held`: its row is made.
    fn complete(&mut self, end: ExchangeEnd, held: Option<Bytes>) {
        self.timer = None;
        let end = end_of(self.status, end);
        let commit = settle(&mut self.exchange, end, self.meter.metered());
        self.state = match commit {
            Some(commit) => StreamState::Committing { commit, held },
            None => StreamState::Recorded,
        };
    }

    fn poll_committing(&mut self, cx: &mut Context<'_>) -> FramePoll {
        let StreamState::Committing { commit, held } = &mut self.state else {
            unreachable!("called in this state only");
        };
        match Pin::new(commit).poll(cx) {
            Poll::Ready(true) => {
                let held = held.take();
                self.timer = None;
                // With all of its declared length the response is complete: the client does not
                // wait for upstream to end the stream, too.
                self.state = if held.is_some() && self.left != Some(0) {
                    StreamState::Recorded
                } else {
                    StreamState::Over
                };
                Poll::Ready(held.map(|data| Ok(Frame::data(data))))
            }
            Poll::Ready(false) => self.cut_off(AnswerError::NotRecorded),
            Poll::Pending => {
                let limit = self.commit_limit;
                let timer = self
                    .timer
                    .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
                ready!(timer.as_mut().poll(cx));
                self.cut_off(AnswerError::NotRecorded)
            }
        }
    }

    fn cut_off(&mut self, error: AnswerError) -> FramePoll {
        self.state = StreamState::Over;
        Poll::Ready(Some(Err(error)))
    }

    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> FramePoll {
        if let Some(data) = self.read.pop_front() {
            self.count(&data);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.quiet_since = None;
                if let Some(Ok(frame)) = &frame {
                    // Trailers are the last frame. They belong to the connection, as does the field
                    // that announces them.
                    let Some(data) = frame.data_ref() else {
                        return Poll::Ready(None);
                    };
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                }
                Poll::Ready(frame.map(|frame| frame.map_err(|_| AnswerError::UpstreamBroken)))
            }
            Poll::Pending => self.poll_idle(cx),
        }
    }

    fn count(&mut self, data: &Bytes) {
        self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
    }

    /// Waits for upstream, at most for the idle limit. A stream has one timer, which is reset only
    /// when it runs out.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> FramePoll {
        let limit = self.idle_limit;
        let quiet_since = *self.quiet_since.get_or_insert_with(Instant::now);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(quiet_since + limit)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if quiet_since.elapsed() >= limit {
                self.body.cancel();
                return Poll::Ready(Some(Err(AnswerError::UpstreamIdle)));
            }
            timer.as_mut().reset(quiet_since + limit);
        }
    }

    fn size_hint(&self) -> SizeHint {
        let held = match &self.state {
            StreamState::Committing {
                held: Some(held), ..
            } => held.len() as u64,
            StreamState::Committing { held: None, .. }
            | StreamState::Flowing
            | StreamState::Recorded
            | StreamState::Over => 0,
        };
        self.left
            .map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + held))
    }
}

/// Returns how a response ended that came to `end`: a response whose status says that it failed did
/// not end well, however complete it is.
pub(super) fn end_of(status: StatusCode, end: ExchangeEnd) -> ExchangeEnd {
    if status.is_client_error() || status.is_server_error() {
        ExchangeEnd::Failed
    } else {
        end
    }
}

impl Drop for StreamingBody {
    /// The client left, unless the row is made already: it is made of what is known, and nothing
    /// waits for its commit.
    fn drop(&mut self) {
        // The rest of an incomplete response would be generated for no one.
        if matches!(self.state, StreamState::Flowing) {
            self.body.cancel();
        }
        let metered = self.meter.metered();
        drop(settle(&mut self.exchange, ExchangeEnd::ClientGone, metered));
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> FramePoll {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Lines(lines) => lines
                .poll_recv(cx)
                .map(|line| line.map(|line| Ok(Frame::data(line)))),
            Self::Streaming(streaming) => streaming.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Lines(_) => false,
            Self::Streaming(streaming) => matches!(streaming.state, StreamState::Over),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Lines(_) => SizeHint::default(),
            Self::Streaming(streaming) => streaming.size_hint(),
        }
    }
}
