//! Inspect: the body is read as far as it can be kept, and what it asks for is read on the side.
//!
//! Where it goes depends on what it asks for, so this comes before the choice; a body that is larger than what is kept
//! is chosen for by its beginning and streams on from there.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap};
use http::request::Parts;
use hyper::body::Incoming;

use super::admit::Admitted;
use super::receive::discard;
use crate::meter::RequestScan;
use crate::pipeline::refusal::Refusal;
use crate::pipeline::service::Service;
use crate::pipeline::settle::OpenRow;
use crate::upstream::{ClientBody, RequestBody, RequestBodyError};
use crate::values::exchange::End;
use crate::values::headers::strip_request;
use crate::values::limits::Limits;

/// A request of which is known what it asks for.
pub(crate) struct Inspected {
    pub(crate) open: Box<OpenRow>,
    pub(crate) head: Parts,
    pub(crate) body: Body,
}

impl Inspected {
    /// A handshake.
    pub(crate) fn without_body(open: Box<OpenRow>, head: Parts) -> Self {
        Self {
            open,
            head,
            body: Body {
                kept: Arc::from([]),
                rest: None,
                length: None,
            },
        }
    }
}

/// A request's body, as far as it is kept.
pub(crate) struct Body {
    kept: Arc<[Bytes]>,
    rest: Option<ClientBody>,
    length: Option<u64>,
}

impl Body {
    /// Whether it can be sent more than once.
    pub(crate) fn can_be_sent_again(&self) -> bool {
        self.rest.is_none()
    }

    /// The body to send. One that streams can be taken once.
    pub(crate) fn take(&mut self) -> RequestBody {
        match self.rest.take() {
            None => RequestBody::kept(Arc::clone(&self.kept)),
            Some(rest) => RequestBody::streamed(Arc::clone(&self.kept), rest, self.length),
        }
    }
}

/// # Errors
/// The body is too large, too slow or broken off.
pub(crate) async fn inspect(
    service: &Service,
    admitted: Admitted,
    body: Incoming,
) -> Result<Inspected, Refusal> {
    let Admitted { mut open, mut head } = admitted;
    let limits = &service.parts.limits;
    let length = declared_length(&head.headers);
    let read = match length {
        Some(length) if length > limits.request_body_bytes => {
            discard(body, limits);
            Err(RequestBodyError::TooLarge)
        }
        _ => {
            let body = ClientBody::new(body, limits.request_body_bytes, limits.body_timeout);
            read(body, &head.headers, length, limits, &mut open).await
        }
    };
    match read {
        Ok(body) => {
            strip_request(&mut head.headers);
            Ok(Inspected { open, head, body })
        }
        Err(RequestBodyError::Broken) => {
            let refusal = Refusal::body(RequestBodyError::Broken);
            Err(open.refuse_as(End::ClientGone, refusal).await)
        }
        Err(error) => Err(open.refuse(Refusal::body(error)).await),
    }
}

async fn read(
    mut body: ClientBody,
    headers: &HeaderMap,
    length: Option<u64>,
    limits: &Limits,
    open: &mut OpenRow,
) -> Result<Body, RequestBodyError> {
    let encoding = headers
        .get(CONTENT_ENCODING)
        .and_then(|value| value.to_str().ok());
    let mut scan = RequestScan::new(encoding, limits.decoded_bytes);
    let mut kept = Vec::new();
    let mut size = 0;
    let mut rest = None;
    if !body.is_empty() {
        loop {
            let Some(part) = body.part().await else { break };
            let part = part?;
            scan.feed(&part);
            size += part.len() as u64;
            kept.push(part);
            if size > limits.replay_bytes {
                rest = Some(body);
                break;
            }
        }
    }
    open.asks(scan.asked().clone());
    Ok(Body {
        kept: kept.into(),
        rest,
        length,
    })
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
