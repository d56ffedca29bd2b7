//! A client's body on its way through the stages.
//!
//! Owns the guard that drains what no stage reads, and the part of a body that is kept to be sent
//! again. Invariant: a body that is dropped before its end is drained within bounds, because a
//! client that is still sending when its connection is closed may never see the response.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::upstream::{BodyPart, ClientBody, RequestBody, RequestBodyError};
use crate::values::limits::Limits;

/// A client's body that no stage has read to its end yet.
#[derive(Debug)]
pub(crate) struct GuardedBody {
    /// `None` once it was handed on.
    body: Option<ClientBody>,
    limits: Arc<Limits>,
}

impl GuardedBody {
    pub(crate) fn new(body: Incoming, limits: &Arc<Limits>) -> Self {
        let body = ClientBody::new(body, limits.request_body_bytes, limits.body_timeout);
        Self {
            body: (!body.is_empty()).then_some(body),
            limits: Arc::clone(limits),
        }
    }

    /// Returns the next part, or `None` at the end.
    pub(crate) async fn part(&mut self) -> BodyPart {
        let part = self.body.as_mut()?.part().await;
        match part {
            Some(Ok(_) | Err(RequestBodyError::TooLarge)) => {}
            // Nothing more can be read, so there is nothing to drain.
            None | Some(Err(RequestBodyError::TimedOut | RequestBodyError::Broken)) => {
                self.body = None;
            }
        }
        part
    }

    /// Hands the rest of the body on. It is not drained any more.
    fn hand_on(mut self) -> Option<ClientBody> {
        self.body.take()
    }
}

impl Drop for GuardedBody {
    /// Reads on in the background, at most `limits.discard_bytes` and for `limits.discard_timeout`.
    fn drop(&mut self) {
        let (Some(mut body), Ok(runtime)) = (self.body.take(), Handle::try_current()) else {
            return;
        };
        if body.is_empty() {
            return;
        }
        body.limit_rest(self.limits.discard_bytes);
        let draining = async move { while let Some(Ok(_)) = body.part().await {} };
        runtime.spawn(timeout(self.limits.discard_timeout, draining));
    }
}

/// A request's body, as far as it is kept.
#[derive(Debug)]
pub(crate) struct KeptBody {
    kept: Arc<[Bytes]>,
    /// What follows, until it is taken, if the body is larger than what is kept.
    rest: Option<GuardedBody>,
    is_whole: bool,
    /// The length that the client declared.
    length: Option<u64>,
}

impl KeptBody {
    pub(crate) fn new(kept: Vec<Bytes>, rest: Option<GuardedBody>, length: Option<u64>) -> Self {
        Self {
            kept: kept.into(),
            is_whole: rest.is_none(),
            rest,
            length,
        }
    }

    pub(crate) fn empty() -> Self {
        Self::new(Vec::new(), None, None)
    }

    /// Returns whether it can be sent more than once, because all of it is kept.
    pub(crate) fn can_be_sent_again(&self) -> bool {
        self.is_whole
    }

    /// Returns the body to send. A body that is not kept whole can be taken once.
    pub(crate) fn begin_send(&mut self) -> RequestBody {
        match self.rest.take().and_then(GuardedBody::hand_on) {
            None => RequestBody::buffered(Arc::clone(&self.kept)),
            Some(rest) => RequestBody::streamed(Arc::clone(&self.kept), rest, self.length),
        }
    }
}
