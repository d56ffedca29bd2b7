//! Answer: upstream's response is sent to the client as it comes, and is metered on the side.
//!
//! Owns the response's head and the choice between a complete body and a streaming one.
//! Invariant: the last byte of a response waits for the commit of its row, and nothing else on the
//! way to the client waits.

pub(super) mod settle;
mod stream;

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::response::Parts;
use http::{Response, StatusCode};
use http_body::Body;

use super::affinity;
use super::attempt::Answered;
use super::attempt::judge::UpstreamAnswer;
use super::exchange::{Exchange, RefusedRequest};
use super::refusal::Refusal;
use super::rewriters::{EditedHead, edit_head};
use crate::meter::Meter;
use crate::upstream::ResponseBody;
use crate::values::exchange::ExchangeEnd;
use crate::values::headers::strip_response;

pub(crate) use stream::AnswerBody;

use settle::{is_committed, settle};
use stream::{StreamingBody, end_of};

/// Returns the response that the client gets.
///
/// # Errors
/// A policy failed, upstream's connection broke before the first byte, or the response is complete
/// with its head and its row could not be committed.
pub(crate) async fn answer(answered: Answered) -> Result<Response<AnswerBody>, RefusedRequest> {
    let Answered {
        mut exchange,
        answer:
            UpstreamAnswer {
                credential,
                response,
                read,
                is_broken,
                ..
            },
    } = answered;
    let (mut head, body) = response.into_parts();
    strip_response(&mut head.headers);
    affinity::record_turn_state(&exchange, &head.headers, &credential);
    let edited = EditedHead::Response(head.status);
    if let Err(refusal) = edit_head(&exchange, &credential, edited, &mut head.headers).await {
        return Err(exchange.refuse(refusal));
    }
    exchange.set_status(head.status);
    let mut meter = Meter::new(&head.headers, exchange.service().limits().decoded_bytes);
    let length = declared_length(&head);
    let read = VecDeque::from(read);
    // A body that broke has ended, too, but its response is not complete.
    let is_empty = read.is_empty() && !is_broken && (body.is_end_stream() || length == Some(0));
    if has_no_body(&exchange, &head) || is_empty {
        return record(
            exchange,
            head,
            AnswerBody::empty(),
            ExchangeEnd::Complete,
            &meter,
        )
        .await;
    }
    if is_broken {
        return Err(exchange.refuse(Refusal::upstream_broken()));
    }
    match poll_arrived(read, body, length) {
        ArrivedBody::Whole(bytes) => {
            meter.feed(&bytes);
            let end = meter.finish();
            record(exchange, head, AnswerBody::whole(bytes), end, &meter).await
        }
        ArrivedBody::Broken => Err(exchange.refuse(Refusal::upstream_broken())),
        ArrivedBody::Partial(read, body) => {
            let streaming = StreamingBody::new(body, read, length, head.status, meter, exchange);
            let body = AnswerBody::Streaming(Box::new(streaming));
            Ok(Response::from_parts(head, body))
        }
    }
}

fn declared_length(head: &Parts) -> Option<u64> {
    head.headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok())
}

fn has_no_body(exchange: &Exchange, head: &Parts) -> bool {
    exchange.is_head()
        || matches!(
            head.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        )
}

/// What has arrived of a body together with its head.
enum ArrivedBody {
    Whole(Bytes),
    /// Some of it, or nothing.
    Partial(VecDeque<Bytes>, ResponseBody),
    /// It broke off before its first byte.
    Broken,
}

/// Looks whether a short body has arrived together with its head, without waiting.
fn poll_arrived(
    mut read: VecDeque<Bytes>,
    mut body: ResponseBody,
    length: Option<u64>,
) -> ArrivedBody {
    let Some(length) = length.filter(|_| read.is_empty()) else {
        return ArrivedBody::Partial(read, body);
    };
    let mut cx = Context::from_waker(Waker::noop());
    match Pin::new(&mut body).poll_frame(&mut cx) {
        Poll::Ready(Some(Ok(frame))) => {
            if let Ok(data) = frame.into_data() {
                if data.len() as u64 == length {
                    return ArrivedBody::Whole(data);
                }
                read.push_back(data);
            }
        }
        Poll::Ready(Some(Err(_)) | None) => return ArrivedBody::Broken,
        Poll::Pending => {}
    }
    ArrivedBody::Partial(read, body)
}

/// Settles a response that is complete with its head, and waits for the commit of its row.
async fn record(
    mut exchange: Box<Exchange>,
    head: Parts,
    body: AnswerBody,
    end: ExchangeEnd,
    meter: &Meter,
) -> Result<Response<AnswerBody>, RefusedRequest> {
    let Some(commit) = settle(&mut exchange, end_of(head.status, end), meter.metered()) else {
        unreachable!("the exchange is settled here and nowhere before");
    };
    if is_committed(exchange.service(), commit).await {
        Ok(Response::from_parts(head, body))
    } else {
        Err(Refusal::not_recorded().into())
    }
}
