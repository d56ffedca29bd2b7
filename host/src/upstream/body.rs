//! A request's body on its way to upstream: what was kept of it, then what the client still sends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};

/// Why a client's body does not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestBodyError {
    /// It is larger than `limits.request_body_bytes`.
    #[error("too large")]
    TooLarge,
    /// Nothing came for `limits.body_timeout`.
    #[error("timed out")]
    TimedOut,
    /// The client broke it off.
    #[error("broken off by the client")]
    Broken,
}

/// A client's body, under its bounds.
#[derive(Debug)]
pub struct ClientBody {
    inner: Incoming,
    /// Bytes that may still come.
    left: u64,
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

/// A part of a client's body.
pub type BodyPart = Option<Result<Bytes, RequestBodyError>>;

impl ClientBody {
    /// `inner`, of at most `bytes_max`, with at most `limit` between its parts.
    pub fn new(inner: Incoming, bytes_max: u64, limit: Duration) -> Self {
        Self {
            inner,
            left: bytes_max,
            limit,
            timer: None,
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.inner.is_end_stream()
    }

    /// Accepts at most `bytes_max` of what is still to come.
    pub fn limit_rest(&mut self, bytes_max: u64) {
        self.left = bytes_max;
    }

    /// The next part; none at the end. Trailers are left out.
    pub async fn part(&mut self) -> BodyPart {
        std::future::poll_fn(|cx| self.poll_part(cx)).await
    }

    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<BodyPart> {
        loop {
            let frame = match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => return self.poll_timer(cx),
            };
            self.timer = None;
            let Some(frame) = frame else {
                return Poll::Ready(None);
            };
            let Ok(frame) = frame else {
                return Poll::Ready(Some(Err(RequestBodyError::Broken)));
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let Some(left) = self.left.checked_sub(data.len() as u64) else {
                return Poll::Ready(Some(Err(RequestBodyError::TooLarge)));
            };
            self.left = left;
            return Poll::Ready(Some(Ok(data)));
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<BodyPart> {
        let limit = self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(RequestBodyError::TimedOut)))
    }
}

/// A request's body as it goes to upstream.
#[derive(Debug)]
pub struct RequestBody {
    kept: Arc<[Bytes]>,
    next: usize,
    kept_left: u64,
    rest: Option<ClientBody>,
    /// The length of the whole, where the client told it or all of it is kept.
    left: Option<u64>,
}

impl RequestBody {
    /// A body that is kept whole: it can be sent again.
    pub fn kept(parts: Arc<[Bytes]>) -> Self {
        let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
        Self {
            kept: parts,
            next: 0,
            kept_left: length,
            rest: None,
            left: Some(length),
        }
    }

    /// A body of which only the beginning was kept, and whose length is `length` where it is known.
    pub fn streamed(parts: Arc<[Bytes]>, rest: ClientBody, length: Option<u64>) -> Self {
        let kept_left = parts.iter().map(|part| part.len() as u64).sum();
        Self {
            kept: parts,
            next: 0,
            kept_left,
            rest: Some(rest),
            left: length,
        }
    }

    fn passed(&mut self, data: &Bytes) {
        self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        if let Some(part) = self.kept.get(self.next).cloned() {
            self.next += 1;
            self.kept_left -= part.remaining() as u64;
            self.passed(&part);
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        let Some(rest) = &mut self.rest else {
            return Poll::Ready(None);
        };
        let part = ready!(rest.poll_part(cx));
        if let Some(Ok(data)) = &part {
            self.passed(data);
        } else {
            self.rest = None;
        }
        Poll::Ready(part.map(|part| part.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.kept_left == 0 && self.rest.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
