//! Answer: upstream's response goes to the client as it comes, and is metered on the side. Its last byte waits for its
//! row's commit, and nothing else waits for anything.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::attempt::Answered;
use super::attempt::rewrite::TURN_STATE;
use super::refusal::Refusal;
use super::service::Service;
use super::settle::OpenRow;
use crate::config::OnFailure;
use crate::ledger::Commit;
use crate::meter::{Meter, Signal};
use crate::sessions::opaque_key;
use crate::upstream::ResponseBody;
use crate::values::clock::Timestamp;
use crate::values::exchange::End;
use crate::values::headers::strip_response;

/// A response's body.
pub enum AnswerBody {
    /// One that the gateway made.
    Whole(Option<Bytes>),
    /// One that comes from upstream.
    Streaming(Box<Streaming>),
}

impl AnswerBody {
    /// None.
    pub(crate) fn nothing() -> Self {
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

/// A response that broke off. The client sees its connection cut: what it has is not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cut {
    /// Upstream broke it off.
    #[error("upstream broke off")]
    Upstream,
    /// Nothing came from upstream for `limits.upstream_idle_timeout`.
    #[error("upstream fell silent")]
    Idle,
    /// The row was not committed within `limits.commit_timeout`.
    #[error("the ledger did not take the response's row in time")]
    NotRecorded,
}

/// # Errors
/// The response has no body, and its row could not be committed.
pub(crate) async fn answer(
    service: &Service,
    answered: Answered,
    mut open: Box<OpenRow>,
) -> Result<Response<AnswerBody>, Refusal> {
    let (mut head, body) = answered.response.into_parts();
    strip_response(&mut head.headers);
    remember_turn_state(service, &open, answered.credential, &head.headers);
    if let Err(refusal) = rewrite(
        service,
        &open,
        answered.credential,
        head.status,
        &mut head.headers,
    )
    .await
    {
        return Err(open.refuse(refusal).await);
    }
    open.answered(head.status);
    let meter = Meter::new(&head.headers, service.parts.limits.decoded_bytes);
    let read: VecDeque<Bytes> = answered.read.into();
    let left: Option<u64> = head
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let has_no_body = open.is_head()
        || matches!(
            head.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
    if has_no_body || (read.is_empty() && (body.is_end_stream() || left == Some(0))) {
        return empty(service, head, meter, open).await;
    }
    if answered.broken {
        return Err(open
            .refuse_as(End::UpstreamGone, Refusal::upstream_broke())
            .await);
    }
    let (read, body) = match arrived(read, body, left) {
        Arrived::Whole(bytes) => return whole(service, head, bytes, meter, open).await,
        Arrived::Broken => {
            return Err(open
                .refuse_as(End::UpstreamGone, Refusal::upstream_broke())
                .await);
        }
        Arrived::InPart(read, body) => (read, body),
    };
    let streaming = Streaming {
        body,
        read,
        left,
        status: head.status,
        meter,
        open,
        state: State::Flowing,
        idle_limit: service.parts.limits.upstream_idle_timeout,
        commit_limit: service.parts.limits.commit_timeout,
        quiet_since: None,
        timer: None,
    };
    Ok(Response::from_parts(
        head,
        AnswerBody::Streaming(Box::new(streaming)),
    ))
}

/// A response's body as it is there together with its head.
enum Arrived {
    /// All of it.
    Whole(Bytes),
    /// Some of it, or nothing; the rest is to come.
    InPart(VecDeque<Bytes>, ResponseBody),
    /// It broke off before its first byte.
    Broken,
}

/// Codex sends a turn's state back with the turn's further requests: it belongs to the account that issued it.
pub(crate) fn remember_turn_state(
    service: &Service,
    open: &OpenRow,
    credential: usize,
    headers: &HeaderMap,
) {
    if let Some(state) = headers.get(TURN_STATE) {
        let credential = service.parts.credentials[credential].name();
        service.sessions().made(
            open.owner(),
            &opaque_key(state.as_bytes()),
            credential,
            Timestamp::now(),
        );
    }
}

/// Looks whether a short body has arrived together with its head, without waiting for anything.
fn arrived(mut read: VecDeque<Bytes>, mut body: ResponseBody, length: Option<u64>) -> Arrived {
    let Some(length) = length.filter(|_| read.is_empty()) else {
        return Arrived::InPart(read, body);
    };
    let mut cx = Context::from_waker(Waker::noop());
    match Pin::new(&mut body).poll_frame(&mut cx) {
        Poll::Ready(Some(Ok(frame))) => {
            if let Ok(data) = frame.into_data() {
                if data.len() as u64 == length {
                    return Arrived::Whole(data);
                }
                read.push_back(data);
            }
        }
        Poll::Ready(Some(Err(_)) | None) => return Arrived::Broken,
        Poll::Pending => {}
    }
    Arrived::InPart(read, body)
}

/// A short response goes out in one piece with its head, when its row is committed.
async fn whole(
    service: &Service,
    head: http::response::Parts,
    body: Bytes,
    mut meter: Meter,
    open: Box<OpenRow>,
) -> Result<Response<AnswerBody>, Refusal> {
    meter.feed(&body);
    let end = meter.finish();
    recorded(service, head, AnswerBody::whole(body), end, meter, open).await
}

/// A response without a body is whole with its head.
async fn empty(
    service: &Service,
    head: http::response::Parts,
    meter: Meter,
    open: Box<OpenRow>,
) -> Result<Response<AnswerBody>, Refusal> {
    recorded(
        service,
        head,
        AnswerBody::Whole(None),
        End::Complete,
        meter,
        open,
    )
    .await
}

/// Waits for the row, then answers.
async fn recorded(
    service: &Service,
    head: http::response::Parts,
    body: AnswerBody,
    end: End,
    meter: Meter,
    mut open: Box<OpenRow>,
) -> Result<Response<AnswerBody>, Refusal> {
    let Some(commit) = open.close(end_of(head.status, end), meter.metered()) else {
        unreachable!("the row is closed here and nowhere before");
    };
    match timeout(service.parts.limits.commit_timeout, commit).await {
        Ok(true) => Ok(Response::from_parts(head, body)),
        Ok(false) | Err(_) => Err(Refusal::not_recorded()),
    }
}

/// Policies edit the response's head.
///
/// # Errors
/// One failed, and its configuration says that then the response is refused.
pub(crate) async fn rewrite(
    service: &Service,
    open: &OpenRow,
    credential: usize,
    status: StatusCode,
    headers: &mut HeaderMap,
) -> Result<(), Refusal> {
    let facts = open.facts(
        Timestamp::now(),
        service.parts.credentials[credential].tag(),
    );
    for rewriter in &service.parts.rewriters {
        match (
            rewriter.response(&facts, status, headers).await,
            rewriter.on_failure(),
        ) {
            (Ok(()), _) => {}
            (Err(fault), OnFailure::Skip) if fault.is_news() => {
                tracing::warn!(%fault, "its edits are left out")
            }
            (Err(fault), OnFailure::Skip) => tracing::debug!(%fault, "its edits are left out"),
            (Err(fault), OnFailure::Refuse) => {
                tracing::error!(%fault, "the response is refused");
                return Err(Refusal::by_fault(&fault));
            }
        }
    }
    Ok(())
}

/// A response that says that it failed did not end well, however whole it came.
fn end_of(status: StatusCode, end: End) -> End {
    if status.is_client_error() || status.is_server_error() {
        End::Failed
    } else {
        end
    }
}

/// A response on its way from upstream to the client.
pub struct Streaming {
    body: ResponseBody,
    /// What was read of the body already.
    read: VecDeque<Bytes>,
    /// What is still to come, where upstream told the length.
    left: Option<u64>,
    status: StatusCode,
    meter: Meter,
    open: Box<OpenRow>,
    state: State,
    idle_limit: Duration,
    commit_limit: Duration,
    quiet_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

enum State {
    /// Parts go through as they come.
    Flowing,
    /// The response is whole with what is held here, which waits for the row.
    Committing { commit: Commit, held: Option<Bytes> },
    /// The row is committed; what upstream still sends goes through.
    Recorded,
    /// Nothing more.
    Over,
}

type FramePoll = Poll<Option<Result<Frame<Bytes>, Cut>>>;

impl Streaming {
    fn poll(&mut self, cx: &mut Context<'_>) -> FramePoll {
        loop {
            match &mut self.state {
                State::Flowing => match ready!(self.poll_flowing(cx)) {
                    Some(frame) => return Poll::Ready(Some(frame)),
                    None => continue,
                },
                State::Committing { .. } => return self.poll_committing(cx),
                State::Recorded => {
                    let frame = ready!(self.poll_upstream(cx));
                    if !matches!(frame, Some(Ok(_))) {
                        self.state = State::Over;
                    }
                    return Poll::Ready(frame);
                }
                State::Over => return Poll::Ready(None),
            }
        }
    }

    /// The next frame that may go out; none where the state has changed.
    fn poll_flowing(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let frame = match ready!(self.poll_upstream(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(cut)) => {
                drop(self.open.close(End::UpstreamGone, self.meter.metered()));
                self.state = State::Over;
                return Poll::Ready(Some(Err(cut)));
            }
            None => {
                let end = self.meter.finish();
                self.settle(end, None);
                return Poll::Ready(None);
            }
        };
        let Ok(data) = frame.into_data() else {
            unreachable!("only data comes this far")
        };
        let signal = self.meter.feed(&data);
        if signal == Signal::Whole || self.left == Some(0) {
            let end = match self.meter.ended() {
                Some(end) => end,
                None => self.meter.finish(),
            };
            self.settle(end, Some(data));
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn settle(&mut self, end: End, held: Option<Bytes>) {
        self.timer = None;
        self.state = match self
            .open
            .close(end_of(self.status, end), self.meter.metered())
        {
            Some(commit) => State::Committing { commit, held },
            None => State::Recorded,
        };
    }

    fn poll_committing(&mut self, cx: &mut Context<'_>) -> FramePoll {
        let State::Committing { commit, held } = &mut self.state else {
            unreachable!("called in this state only");
        };
        match Pin::new(commit).poll(cx) {
            Poll::Ready(true) => {
                let held = held.take();
                self.timer = None;
                // With all of its length the response is whole: the client does not wait until upstream says so, too.
                self.state = if held.is_some() && self.left != Some(0) {
                    State::Recorded
                } else {
                    State::Over
                };
                Poll::Ready(held.map(|data| Ok(Frame::data(data))))
            }
            Poll::Ready(false) => self.cut(Cut::NotRecorded),
            Poll::Pending => {
                let limit = self.commit_limit;
                let timer = self
                    .timer
                    .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
                ready!(timer.as_mut().poll(cx));
                self.cut(Cut::NotRecorded)
            }
        }
    }

    fn cut(&mut self, cut: Cut) -> FramePoll {
        self.state = State::Over;
        Poll::Ready(Some(Err(cut)))
    }

    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> FramePoll {
        if let Some(data) = self.read.pop_front() {
            self.passed(&data);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.quiet_since = None;
                if let Some(Ok(frame)) = &frame {
                    // Trailers are the last frame. They belong to the connection, as the field that announces them.
                    let Some(data) = frame.data_ref() else {
                        return Poll::Ready(None);
                    };
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                }
                Poll::Ready(frame.map(|frame| frame.map_err(|_| Cut::Upstream)))
            }
            Poll::Pending => self.poll_idle(cx),
        }
    }

    fn passed(&mut self, data: &Bytes) {
        self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
    }

    /// Waits for upstream, but not for ever. One timer serves a whole stream: it is set anew only when it runs out.
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
                return Poll::Ready(Some(Err(Cut::Idle)));
            }
            timer.as_mut().reset(quiet_since + limit);
        }
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        // A client that leaves before its response is whole: the rest would be generated for nothing.
        if matches!(self.state, State::Flowing) {
            self.body.cancel();
        }
        // Its row is written with what is known, and nobody waits for it.
        let metered = self.meter.metered();
        drop(self.open.close(End::ClientGone, metered));
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> FramePoll {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Streaming(streaming) => streaming.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Streaming(streaming) => matches!(streaming.state, State::Over),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Streaming(streaming) => streaming.size_hint(),
        }
    }
}

impl Streaming {
    fn size_hint(&self) -> SizeHint {
        let held = match &self.state {
            State::Committing {
                held: Some(held), ..
            } => held.len() as u64,
            _ => 0,
        };
        self.left
            .map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + held))
    }
}
