//! Inspect: the body is read as far as it is kept, and what it asks for is read on the side.
//!
//! Owns how far a body is read before a credential is chosen, which depends on what the body asks
//! for. A body that is larger than `limits.replay_bytes` is judged by its beginning, and its rest
//! streams to upstream. Invariant: the body is not changed.

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap};
use http::request::Parts;

use super::admit::Admitted;
use super::body::{GuardedBody, KeptBody};
use crate::meter::RequestScan;
use crate::pipeline::exchange::{Exchange, RefusedRequest};
use crate::pipeline::refusal::Refusal;
use crate::upstream::RequestBodyError;
use crate::values::headers::strip_request;

/// A request whose wishes are known, as far as its body was read.
pub(crate) struct Inspected {
    pub(crate) exchange: Box<Exchange>,
    pub(crate) head: Parts,
    pub(crate) body: KeptBody,
}

/// # Errors
/// The body is too large, too slow or incomplete.
pub(crate) async fn inspect(admitted: Admitted) -> Result<Inspected, RefusedRequest> {
    let Admitted {
        mut exchange,
        mut head,
        body,
    } = admitted;
    match read(&mut exchange, &head.headers, body).await {
        Ok(body) => {
            strip_request(&mut head.headers);
            Ok(Inspected {
                exchange,
                head,
                body,
            })
        }
        Err(error) => Err(exchange.refuse(Refusal::request_body(error))),
    }
}

async fn read(
    exchange: &mut Exchange,
    headers: &HeaderMap,
    mut body: GuardedBody,
) -> Result<KeptBody, RequestBodyError> {
    let (body_bytes_max, replay_bytes, decoded_bytes) = {
        let limits = exchange.service().limits();
        (
            limits.request_body_bytes,
            limits.replay_bytes,
            limits.decoded_bytes,
        )
    };
    let length = declared_length(headers);
    if length.is_some_and(|length| length > body_bytes_max) {
        return Err(RequestBodyError::TooLarge);
    }
    let encoding = headers
        .get(CONTENT_ENCODING)
        .and_then(|value| value.to_str().ok());
    let mut scan = RequestScan::new(encoding, decoded_bytes);
    let mut kept = Vec::new();
    let mut size = 0;
    let mut rest = None;
    while let Some(part) = body.part().await {
        let part = part?;
        scan.feed(&part);
        size += part.len() as u64;
        kept.push(part);
        if size > replay_bytes {
            rest = Some(body);
            break;
        }
    }
    exchange.set_requested(scan.fields().clone());
    Ok(KeptBody::new(kept, rest, length))
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
