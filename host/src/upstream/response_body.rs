//! A response's body on its way from upstream.
//!
//! Owns reading a body to its end after its reader has what it wants. Knows nothing of what the
//! body says. Invariant: a body that is dropped unread is drained in the background, within bounds,
//! and only [`ResponseBody::cancel`] resets its stream.
//!
//! Over HTTP/2 the last byte of a body and the end of its stream are two events: a server may
//! announce the end in an empty DATA frame that arrives later. Dropping the body in between is a
//! RST_STREAM. The h2 library remembers only so many of the streams that it reset; a frame for any
//! other counts as an error, and enough of these end the whole connection with all its requests.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::values::limits::{RESPONSE_DRAIN_BYTES, RESPONSE_DRAIN_TIMEOUT, RESPONSE_DRAINS};

/// The room for bodies that are drained at the same time. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct DrainPermits(Arc<Semaphore>);

impl DrainPermits {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(RESPONSE_DRAINS)))
    }
}

/// A response's body, as upstream sends it.
pub struct ResponseBody {
    /// `None` once the body has ended, failed or was cancelled: there is nothing left to drain.
    inner: Option<Incoming>,
    room: DrainPermits,
}

impl ResponseBody {
    pub(super) fn new(inner: Incoming, room: DrainPermits) -> Self {
        Self {
            inner: Some(inner),
            room,
        }
    }

    /// Stops reading: the stream is reset, so that upstream sends no more.
    pub fn cancel(&mut self) {
        self.inner = None;
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        let frame = Pin::new(inner).poll_frame(cx);
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            this.inner = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take().filter(|inner| !inner.is_end_stream()) else {
            return;
        };
        // Beyond the room, and outside of a runtime, the stream is reset. That is correct, but
        // upstream counts it.
        let (Ok(permit), Ok(runtime)) = (
            Arc::clone(&self.room.0).try_acquire_owned(),
            Handle::try_current(),
        ) else {
            return;
        };
        runtime.spawn(async move {
            // Whether the end came or a bound was reached, dropping the body does what is right.
            let _ = timeout(RESPONSE_DRAIN_TIMEOUT, drain(inner)).await;
            drop(permit);
        });
    }
}

/// Reads `body` to its end, or until more than [`RESPONSE_DRAIN_BYTES`] have come.
async fn drain(mut body: Incoming) {
    let mut bytes = 0;
    while bytes <= RESPONSE_DRAIN_BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
}
