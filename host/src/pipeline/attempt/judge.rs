//! Judge: whether the outcome of an attempt is final, or the request is sent again.
//!
//! Owns what a status, a refusal or a transport failure means for the credential and for this
//! request; does not know how the next credential is chosen. Invariant: only what happened before
//! any byte reached the client is judged.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::forward::{NoResponse, Sent};
use super::reset_hint;
use crate::credentials::{Credential, CredentialKind, UpstreamIdentity};
use crate::meter::decode_body;
use crate::pipeline::exchange::Exchange;
use crate::pipeline::refusal::Refusal;
use crate::upstream::{ResponseBody, UpstreamError};
use crate::values::clock::Timestamp;
use crate::values::credential::windows::{WindowKind, WindowReading};
use crate::values::limits::ERROR_BODY_BYTES;

/// How far the body of a refusal is decoded.
const DECODED_BYTES: usize = 4 * ERROR_BODY_BYTES;

/// How long the body of a refusal is awaited.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether a request can be sent with another credential of its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OtherCredentials {
    /// A usable one was not tried.
    Left,
    /// None is usable, or the time for further attempts is over.
    NoneLeft,
    /// The body was too large to be kept, so it cannot be sent again.
    BodyConsumed,
}

/// Whether this request may still wait for a refresh of refused tokens: it does so once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefreshAllowance {
    /// It may wait at most for `limit`.
    Unused {
        limit: Duration,
    },
    Used,
}

/// A response that is sent to the client, and what was read of its body already.
pub(crate) struct UpstreamAnswer {
    pub(crate) credential: Arc<Credential>,
    /// What was presented to upstream.
    pub(crate) presented: Arc<UpstreamIdentity>,
    pub(crate) response: Response<ResponseBody>,
    pub(crate) read: Vec<Bytes>,
    /// The body broke off while it was read.
    pub(crate) is_broken: bool,
}

/// What the client gets if no further credential answers.
pub(crate) enum FailedAttempt {
    /// What the pool as a whole says: when the first of its credentials is usable again.
    Unusable,
    Refusal(Refusal),
    Answer(UpstreamAnswer),
}

/// What is done about the outcome of an attempt.
pub(crate) enum AttemptVerdict {
    /// The client gets this response.
    Answer(UpstreamAnswer),
    /// The client gets this refusal.
    Refuse(Refusal),
    /// The same credential is tried again, with its new tokens.
    AgainWith(Arc<UpstreamIdentity>),
    /// Another credential is tried.
    Next(FailedAttempt),
    /// Another credential would be tried, but the request cannot be sent again.
    CutOff,
}

/// Judges the outcome of an attempt, and notes what it says of the credential.
pub(crate) async fn judge(
    exchange: &Exchange,
    forwarded: Result<Sent, NoResponse>,
    others: OtherCredentials,
    refresh: RefreshAllowance,
) -> AttemptVerdict {
    match forwarded {
        Ok(sent) => judge_response(exchange, sent, others, refresh).await,
        Err(NoResponse::Withdrawn) => match others {
            OtherCredentials::BodyConsumed => AttemptVerdict::CutOff,
            OtherCredentials::Left | OtherCredentials::NoneLeft => {
                AttemptVerdict::Next(FailedAttempt::Unusable)
            }
        },
        Err(NoResponse::Upstream(error)) => judge_failure(exchange, &error, others),
    }
}

async fn judge_response(
    exchange: &Exchange,
    sent: Sent,
    others: OtherCredentials,
    refresh: RefreshAllowance,
) -> AttemptVerdict {
    match sent.response.status() {
        StatusCode::UNAUTHORIZED => judge_unauthorized(exchange, sent, others, refresh).await,
        // The limits of an API key are of seconds and its own: its client knows what to do, and the
        // key is not paused.
        StatusCode::TOO_MANY_REQUESTS if sent.presented.kind() != CredentialKind::ApiKey => {
            judge_rate_limited(exchange, sent, others).await
        }
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            judge_upstream_failure(exchange, sent, others)
        }
        StatusCode::LOOP_DETECTED if sent.presented.kind() == CredentialKind::External => {
            judge_loop(sent, others)
        }
        _ => AttemptVerdict::Answer(unread(sent)),
    }
}

fn unread(sent: Sent) -> UpstreamAnswer {
    UpstreamAnswer {
        credential: sent.credential,
        presented: sent.presented,
        response: sent.response,
        read: Vec::new(),
        is_broken: false,
    }
}

async fn judge_unauthorized(
    exchange: &Exchange,
    sent: Sent,
    others: OtherCredentials,
    refresh: RefreshAllowance,
) -> AttemptVerdict {
    let credential = &sent.credential;
    tracing::warn!(credential = credential.tag(), "upstream rejected the token");
    let limit = match (others, refresh) {
        // Too late for this request, but not for the next one.
        (OtherCredentials::BodyConsumed, _) | (_, RefreshAllowance::Used) => None,
        (_, RefreshAllowance::Unused { limit }) => Some(limit),
    };
    let replacement = credential
        .replacement_identity(&sent.presented, limit.unwrap_or(Duration::ZERO))
        .await;
    match replacement {
        Some(identity) if limit.is_some() => return AttemptVerdict::AgainWith(identity),
        Some(_) => {}
        None => credential.record_rejected_token(&sent.presented, Timestamp::now()),
    }
    // In a pool this is no matter of the client: its own token is good, and a 401 would make it
    // discard that.
    if exchange.pool().is_single() || !exchange.service().limits().failover.unauthorized {
        return AttemptVerdict::Answer(unread(sent));
    }
    next_or_cut_off(others)
}

async fn judge_rate_limited(
    exchange: &Exchange,
    mut sent: Sent,
    others: OtherCredentials,
) -> AttemptVerdict {
    let (read, is_broken) = read_error(&mut sent.response).await;
    let now = Timestamp::now();
    let headers = sent.response.headers();
    let encoding = headers.get(CONTENT_ENCODING).map(HeaderValue::to_str);
    let encoding = encoding.and_then(Result::ok);
    let until = sent
        .reading
        .refused_until()
        .or_else(|| reset_hint::in_body(&decode_body(encoding, &read, DECODED_BYTES), now))
        .or_else(|| reset_hint::in_headers(headers, now));
    note_rate_limit(&sent.credential, &sent.presented, &sent.reading, until, now);
    if exchange.pool().is_single() || !exchange.service().limits().failover.rate_limited {
        // Upstream's response says when this credential is back: all that there is to know of a
        // single one.
        return AttemptVerdict::Answer(UpstreamAnswer {
            read,
            is_broken,
            ..unread(sent)
        });
    }
    // The pool's own response says when its first credential is back.
    next_or_cut_off(others)
}

/// Notes that upstream refuses a credential by 429, until `until` if that is known.
pub(crate) fn note_rate_limit(
    credential: &Credential,
    presented: &UpstreamIdentity,
    reading: &WindowReading,
    until: Option<Timestamp>,
    now: Timestamp,
) {
    let window: Option<WindowKind> = reading.exhausted();
    let until = credential.record_rate_limit(presented, until, window, now);
    tracing::warn!(
        credential = credential.tag(),
        until = until.rfc3339(),
        "credential rate-limited"
    );
}

fn next_or_cut_off(others: OtherCredentials) -> AttemptVerdict {
    match others {
        OtherCredentials::Left | OtherCredentials::NoneLeft => {
            AttemptVerdict::Next(FailedAttempt::Unusable)
        }
        OtherCredentials::BodyConsumed => AttemptVerdict::CutOff,
    }
}

fn judge_upstream_failure(
    exchange: &Exchange,
    sent: Sent,
    others: OtherCredentials,
) -> AttemptVerdict {
    sent.credential.record_failure(Timestamp::now());
    let switches = &exchange.service().limits().failover;
    let may_continue = match sent.response.status() {
        StatusCode::BAD_GATEWAY => switches.bad_gateway,
        StatusCode::SERVICE_UNAVAILABLE => switches.service_unavailable,
        _ => switches.gateway_timeout,
    };
    let answer = unread(sent);
    if may_continue && others == OtherCredentials::Left {
        AttemptVerdict::Next(FailedAttempt::Answer(answer))
    } else {
        AttemptVerdict::Answer(answer)
    }
}

/// The other gateway would send the request back here. That says nothing of the credential: a
/// request that begins at this gateway may be answered.
fn judge_loop(sent: Sent, others: OtherCredentials) -> AttemptVerdict {
    let answer = unread(sent);
    match others {
        OtherCredentials::Left => AttemptVerdict::Next(FailedAttempt::Answer(answer)),
        OtherCredentials::NoneLeft | OtherCredentials::BodyConsumed => {
            AttemptVerdict::Answer(answer)
        }
    }
}

fn judge_failure(
    exchange: &Exchange,
    error: &UpstreamError,
    others: OtherCredentials,
) -> AttemptVerdict {
    let switches = &exchange.service().limits().failover;
    let (refusal, may_continue) = match error {
        UpstreamError::Unreachable(error) => {
            let refusal = Refusal::upstream_unreachable(error);
            (refusal, switches.unreachable)
        }
        UpstreamError::TimedOut => (Refusal::upstream_timed_out(), switches.timed_out),
        // The request may have been processed.
        UpstreamError::Broken(_) => return AttemptVerdict::Refuse(Refusal::upstream_broken()),
        UpstreamError::RequestBody(error) => {
            return AttemptVerdict::Refuse(Refusal::request_body(*error));
        }
    };
    match others {
        OtherCredentials::Left if may_continue => {
            AttemptVerdict::Next(FailedAttempt::Refusal(refusal))
        }
        OtherCredentials::BodyConsumed if !exchange.pool().is_single() => {
            AttemptVerdict::Refuse(refusal.because_body_not_kept())
        }
        OtherCredentials::Left | OtherCredentials::NoneLeft | OtherCredentials::BodyConsumed => {
            AttemptVerdict::Refuse(refusal)
        }
    }
}

/// Reads the beginning of a refusal's body, which may say how long it holds. Returns whether it
/// broke off, too.
async fn read_error(response: &mut Response<ResponseBody>) -> (Vec<Bytes>, bool) {
    let mut read = Vec::new();
    let mut size = 0;
    let mut is_broken = false;
    let body = response.body_mut();
    let reading = async {
        while size < ERROR_BODY_BYTES {
            match body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        size += data.len();
                        read.push(data);
                    }
                }
                Some(Err(_)) => {
                    is_broken = true;
                    break;
                }
                None => break,
            }
        }
    };
    // What came until the timeout is all that is judged.
    let _ = timeout(ERROR_BODY_TIMEOUT, reading).await;
    (read, is_broken)
}
