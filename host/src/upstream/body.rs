//! A request's body on its way to upstream: the parts that were read already, then the parts that
//! the client still sends.
//!
//! Owns the bounds of a client's body. Does not know what a body contains. Invariant: the bytes are
//! passed on unchanged and in order.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};

/// Why a client's body ended early. The client must act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestBodyError {
    /// The body is larger than `limits.request_body_bytes`.
    #[error("too large")]
    TooLarge,
    /// The client sent nothing for `limits.body_timeout`.
    #[error("timed out")]
    TimedOut,
    /// The client's connection or stream broke.
    #[error("aborted by the client")]
    Broken,
}

/// A client's body, bounded in size and in the time between its parts.
#[derive(Debug)]
pub struct ClientBody {
    inner: Incoming,
    /// The bytes that are still accepted.
    left: u64,
    part_timeout: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

/// A part of a client's body; `None` at its end.
pub type BodyPart = Option<Result<Bytes, RequestBodyError>>;

impl ClientBody {
    /// Creates a body of at most `bytes_max`, with at most `part_timeout` between its parts.
    pub fn new(inner: Incoming, bytes_max: u64, part_timeout: Duration) -> Self {
        Self {
            inner,
            left: bytes_max,
            part_timeout,
            timer: None,
        }
    }

    /// Whether nothing is left to read.
    pub fn is_empty(&self) -> bool {
        self.inner.is_end_stream()
    }

    /// Accepts at most `bytes_max` of what is still to come.
    pub fn limit_rest(&mut self, bytes_max: u64) {
        self.left = bytes_max;
    }

    /// Returns the next part; `None` at the end. Trailers are left out.
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
        let part_timeout = self.part_timeout;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep(part_timeout)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(RequestBodyError::TimedOut)))
    }
}

/// A request's body as it is sent to upstream.
#[derive(Debug)]
pub struct RequestBody {
    /// The parts that were read already.
    buffered: Arc<[Bytes]>,
    /// The index of the next of them.
    next: usize,
    buffered_left: u64,
    /// What the client still sends.
    rest: Option<ClientBody>,
    /// The bytes that are still to be sent, if the length is known.
    left: Option<u64>,
    failure: BodyFailure,
}

/// Why a request's body did not come to its end. It can be read after hyper has consumed the body:
/// over HTTP/2, hyper resets the stream and reports only that.
#[derive(Clone, Debug, Default)]
pub(super) struct BodyFailure(Option<Arc<OnceLock<RequestBodyError>>>);

impl BodyFailure {
    pub(super) fn error(&self) -> Option<RequestBodyError> {
        self.0.as_ref()?.get().copied()
    }
}

impl RequestBody {
    pub(super) fn failure(&self) -> BodyFailure {
        self.failure.clone()
    }

    /// Creates a body that was read to its end: it can be sent again.
    pub fn buffered(parts: Arc<[Bytes]>) -> Self {
        let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
        Self {
            buffered: parts,
            next: 0,
            buffered_left: length,
            rest: None,
            left: Some(length),
            failure: BodyFailure::default(),
        }
    }

    /// Creates a body of which only the beginning was read, and whose length is `length` if it is
    /// known.
    pub fn streamed(parts: Arc<[Bytes]>, rest: ClientBody, length: Option<u64>) -> Self {
        let buffered_left = parts.iter().map(|part| part.len() as u64).sum();
        Self {
            buffered: parts,
            next: 0,
            buffered_left,
            rest: Some(rest),
            left: length,
            failure: BodyFailure(Some(Arc::default())),
        }
    }

    fn count_sent(&mut self, data: &Bytes) {
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
        if let Some(part) = self.buffered.get(self.next).cloned() {
            self.next += 1;
            self.buffered_left -= part.remaining() as u64;
            self.count_sent(&part);
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        let Some(rest) = &mut self.rest else {
            return Poll::Ready(None);
        };
        let part = ready!(rest.poll_part(cx));
        if let Some(Ok(data)) = &part {
            self.count_sent(data);
        } else {
            self.rest = None;
        }
        if let (Some(Err(error)), Some(failure)) = (&part, &self.failure.0) {
            // It fails once: nothing is read after that.
            let _ = failure.set(*error);
        }
        Poll::Ready(part.map(|part| part.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.buffered_left == 0 && self.rest.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
