//! Failover: attempts with one credential after another, until one answers. Each credential is tried once, or once more
//! after a refresh of its tokens, and none after a byte of an answer has gone to the client.

pub(super) mod forward;
pub(super) mod rewrite;
pub(super) mod select;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, HeaderMap, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::entry::inspect::{Body, Inspected};
use super::refusal::Refusal;
use super::service::Service;
use super::settle::OpenRow;
use crate::credentials::{Identity, IdentityKind};
use crate::meter::decoded;
use crate::upstream::{RequestBodyError, ResponseBody, UpstreamError};
use crate::values::clock::Timestamp;
use crate::values::exchange::End;
use crate::values::json_scan::{Flow, JsonScan, Scalar, Wanted};
use crate::values::limits::ERROR_BODY_BYTES;
use forward::{NoResponse, Sent, forward};
use rewrite::{Template, rewrite};
use select::{Selected, has_other, select};

/// How far the body of a refusal is decoded.
const DECODED_BYTES: usize = 4 * ERROR_BODY_BYTES;

/// For how long the body of a refusal is waited for.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);

const CHAT_COMPLETIONS: &str = "/v1/chat/completions";

/// A response that goes to the client, with what was read of its body already.
pub(crate) struct Answered {
    pub(crate) credential: usize,
    /// What upstream was shown.
    pub(crate) shown: Arc<Identity>,
    pub(crate) response: Response<ResponseBody>,
    pub(crate) read: Vec<Bytes>,
    /// The body broke off while it was read.
    pub(crate) broken: bool,
}

/// What the client gets if no further credential answers.
enum Last {
    /// The pool's own words: who is used up, and until when.
    Nobody,
    /// What came of the last attempt.
    Refusal(Refusal),
    /// What upstream answered to it.
    Answer(Answered),
}

/// # Errors
/// No credential is usable or none answered. The row is closed then.
pub(crate) async fn send(
    service: &Service,
    inspected: Inspected,
) -> Result<(Answered, Box<OpenRow>), Refusal> {
    let Inspected {
        mut open,
        head,
        mut body,
    } = inspected;
    let deadline = Instant::now() + service.parts.limits.failover_timeout;
    // None once they are moved into what no attempt can follow.
    let mut headers = Some(head.headers);
    let mut tried = Vec::new();
    let mut last = Last::Nobody;
    // The credential whose token was refused and that has another now: once a request.
    let mut again = None;
    let mut refreshed = false;
    loop {
        if let Some(refusal) = chat_needs_a_key(service, &open, head.uri.path()) {
            return Err(open.refuse(refusal).await);
        }
        // What would be asked from here on would come too late.
        let is_late = !tried.is_empty() && Instant::now() >= deadline;
        let selected = match again.take() {
            _ if is_late || headers.is_none() => {
                let nobody = cut_off_refusal(service, &open, &tried, deadline).await;
                return give_up(open, last, nobody).await;
            }
            Some(selected) => selected,
            None => {
                match select(service, &open, &mut tried, refresh_limit(service, deadline)).await {
                    Ok(selected) => selected,
                    Err(nobody) => return give_up(open, last, nobody).await,
                }
            }
        };
        if head.uri.path() == CHAT_COMPLETIONS && selected.identity.kind == IdentityKind::OAuth {
            // Its file has turned up since that was looked at.
            return Err(open.refuse(Refusal::api_key_only()).await);
        }
        let now = Timestamp::now();
        let others = others(service, &open, &body, &tried, deadline, now);
        let may_be_sent_again = others == Others::Left || (body.can_be_sent_again() && !refreshed);
        // Moved where no further attempt can need them.
        let fields = if may_be_sent_again {
            headers.clone()
        } else {
            headers.take()
        };
        let template = Template {
            method: head.method.clone(),
            uri: head.uri.clone(),
            headers: fields.unwrap_or_default(),
        };
        let request = match rewrite(service, &open, &selected, template, body.take(), now).await {
            Ok(request) => request,
            Err(refusal) => return Err(open.refuse(refusal).await),
        };
        let limit = head_limit(service, open.attempts(), deadline);
        let verdict = match forward(service, &mut open, selected.credential, request, limit).await {
            Ok(sent) => {
                let refresh = if refreshed {
                    Refresh::Done
                } else {
                    Refresh::Open {
                        limit: refresh_limit(service, deadline),
                    }
                };
                judge(service, &open, sent, others, refresh).await
            }
            Err(NoResponse::Withdrawn) if others == Others::OutOfReach => Verdict::CutOff,
            Err(NoResponse::Withdrawn) => Verdict::Next(Last::Nobody),
            Err(NoResponse::Upstream(error)) => match next_after(service, &error, others) {
                Some(refusal) => Verdict::Next(Last::Refusal(refusal)),
                None => return Err(no_answer(open, &error, others).await),
            },
        };
        match verdict {
            Verdict::Answer(answered) => {
                remember_home(service, &open, &answered, selected.move_home, now);
                return Ok((answered, open));
            }
            Verdict::Again(identity) => {
                refreshed = true;
                again = Some(Selected {
                    identity,
                    ..selected
                });
            }
            // What came of an attempt before counts for more: who was only busy is worth another try.
            Verdict::Next(Last::Nobody) => {}
            Verdict::Next(so_far) => last = so_far,
            Verdict::CutOff => return Err(cut_off(service, open, &tried, deadline).await),
        }
    }
}

/// For how long a refresh of tokens is waited for: as long as one may take, and no longer than the request may.
fn refresh_limit(service: &Service, deadline: Instant) -> Duration {
    service
        .refresh_wait()
        .min(deadline.saturating_duration_since(Instant::now()))
}

/// For how long an attempt waits for its response's head: further ones have what is left.
fn head_limit(service: &Service, attempts: u32, deadline: Instant) -> Duration {
    let limit = service.parts.limits.upstream_head_timeout;
    if attempts == 0 {
        limit
    } else {
        limit.min(deadline.saturating_duration_since(Instant::now()))
    }
}

fn others(
    service: &Service,
    open: &OpenRow,
    body: &Body,
    tried: &[usize],
    deadline: Instant,
    now: Timestamp,
) -> Others {
    if !body.can_be_sent_again() {
        Others::OutOfReach
    } else if Instant::now() < deadline && has_other(service, open, tried, now) {
        Others::Left
    } else {
        Others::NoneLeft
    }
}

/// What the client would get where another credential is asked after this error; none where none is.
fn next_after(service: &Service, error: &UpstreamError, others: Others) -> Option<Refusal> {
    let switches = &service.parts.limits.failover;
    match error {
        _ if others != Others::Left => None,
        UpstreamError::Unreachable(_) if switches.unreachable => {
            Some(Refusal::upstream_unreachable())
        }
        UpstreamError::TimedOut if switches.timed_out => Some(Refusal::upstream_timed_out()),
        UpstreamError::Unreachable(_)
        | UpstreamError::TimedOut
        | UpstreamError::Broken(_)
        | UpstreamError::RequestBody(_) => None,
    }
}

/// No credential is left to be asked.
async fn give_up(
    open: Box<OpenRow>,
    last: Last,
    nobody: Refusal,
) -> Result<(Answered, Box<OpenRow>), Refusal> {
    match last {
        Last::Answer(answered) => Ok((answered, open)),
        Last::Refusal(refusal) => Err(open.refuse_as(End::UpstreamGone, refusal).await),
        Last::Nobody => Err(open.refuse(nobody).await),
    }
}

/// The credential is used up, and the request cannot go to another: where one has room, its client should try again.
async fn cut_off(
    service: &Service,
    open: Box<OpenRow>,
    tried: &[usize],
    deadline: Instant,
) -> Refusal {
    let refusal = cut_off_refusal(service, &open, tried, deadline).await;
    open.refuse(refusal).await
}

async fn cut_off_refusal(
    service: &Service,
    open: &OpenRow,
    tried: &[usize],
    deadline: Instant,
) -> Refusal {
    let mut tried = tried.to_vec();
    match select(service, open, &mut tried, refresh_limit(service, deadline)).await {
        Ok(_) => Refusal::cut_off(),
        Err(nobody) => nobody,
    }
}

/// Whether a request can go to another credential of its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    /// There are usable ones that were not tried.
    Left,
    /// There are none, or the time is over.
    NoneLeft,
    /// The body is gone: it was too large to be kept.
    OutOfReach,
}

/// Whether this request has had its one refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refresh {
    /// Not yet; one may take so long.
    Open {
        limit: Duration,
    },
    Done,
}

enum Verdict {
    /// The client gets this.
    Answer(Answered),
    /// The same credential is asked again, with this.
    Again(Arc<Identity>),
    /// Another credential is asked; where there is none, the client gets this.
    Next(Last),
    /// The request would go to another credential, but its body is gone.
    CutOff,
}

/// Whether a response goes to the client, or upstream is asked again.
async fn judge(
    service: &Service,
    open: &OpenRow,
    sent: Sent,
    others: Others,
    refresh: Refresh,
) -> Verdict {
    let Sent {
        credential,
        shown,
        mut response,
        reading,
    } = sent;
    let account = &service.parts.credentials[credential];
    let switches = &service.parts.limits.failover;
    let answered = |response| Answered {
        credential,
        shown: Arc::clone(&shown),
        response,
        read: Vec::new(),
        broken: false,
    };
    let status = response.status();
    match status {
        StatusCode::UNAUTHORIZED => {
            tracing::warn!(
                credential = account.tag(),
                "upstream refused the credential's token"
            );
            let limit = match (others, refresh) {
                // Too late for this request; not for the next.
                (Others::OutOfReach, _) | (_, Refresh::Done) => Duration::ZERO,
                (_, Refresh::Open { limit }) => limit,
            };
            match account.instead_of(&shown, limit).await {
                Some(identity) if others != Others::OutOfReach && refresh != Refresh::Done => {
                    return Verdict::Again(identity);
                }
                Some(_) => {}
                None => account.token_refused(&shown, Timestamp::now()),
            }
            // In a pool this is not the client's business: its own token is good, and it would throw that away.
            match others {
                _ if open.pool().single || !switches.unauthorized => {
                    Verdict::Answer(answered(response))
                }
                Others::OutOfReach => Verdict::CutOff,
                Others::Left | Others::NoneLeft => Verdict::Next(Last::Nobody),
            }
        }
        // A key's limits are of seconds and of its own: its client knows what to do, and the key is not paused.
        StatusCode::TOO_MANY_REQUESTS if !is_api_key(&shown) => {
            let (read, broken) = read_error(&mut response).await;
            let now = Timestamp::now();
            let encoding = response
                .headers()
                .get(CONTENT_ENCODING)
                .and_then(|value| value.to_str().ok());
            let told = reading
                .refused_until()
                .or_else(|| told_in_body(&decoded(encoding, &read, DECODED_BYTES), now));
            let told = told.or_else(|| retry_after(response.headers(), now));
            let until = account.refused(&shown, told, reading.exhausted(), now);
            tracing::warn!(
                credential = account.tag(),
                until = until.rfc3339(),
                "upstream refuses the credential"
            );
            match others {
                // Upstream's answer tells when this credential is back: all that there is to know of one alone.
                _ if open.pool().single || !switches.rate_limited => Verdict::Answer(Answered {
                    read,
                    broken,
                    ..answered(response)
                }),
                // The pool's answer tells when its first one is.
                Others::Left | Others::NoneLeft => Verdict::Next(Last::Nobody),
                Others::OutOfReach => Verdict::CutOff,
            }
        }
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            account.failed(Timestamp::now());
            let goes_on = match status {
                StatusCode::BAD_GATEWAY => switches.bad_gateway,
                StatusCode::SERVICE_UNAVAILABLE => switches.service_unavailable,
                _ => switches.gateway_timeout,
            };
            let answered = answered(response);
            if goes_on && others == Others::Left {
                Verdict::Next(Last::Answer(answered))
            } else {
                Verdict::Answer(answered)
            }
        }
        _ => Verdict::Answer(answered(response)),
    }
}

fn is_api_key(shown: &Identity) -> bool {
    shown.kind == IdentityKind::ApiKey
}

/// Chat completions exist only where an API key is used.
fn chat_needs_a_key(service: &Service, open: &OpenRow, path: &str) -> Option<Refusal> {
    if path != CHAT_COMPLETIONS {
        return None;
    }
    let mut identities = open
        .pool()
        .members
        .iter()
        .filter_map(|member| service.parts.credentials[*member].identity());
    identities
        .any(|identity| identity.kind == IdentityKind::OAuth)
        .then(Refusal::api_key_only)
}

fn remember_home(
    service: &Service,
    open: &OpenRow,
    answered: &Answered,
    move_home: bool,
    now: Timestamp,
) {
    if move_home
        && !answered.response.status().is_server_error()
        && let Some(session) = open.session()
    {
        let credential = service.parts.credentials[answered.credential].name();
        service
            .sessions()
            .settle_on(open.owner(), session, credential, now);
    }
}

async fn no_answer(open: Box<OpenRow>, error: &UpstreamError, others: Others) -> Refusal {
    let with_reason = |refusal: Refusal| match others {
        Others::OutOfReach if !open.pool().single => refusal.of_one_not_kept(),
        _ => refusal,
    };
    match error {
        UpstreamError::Unreachable(_) => {
            let refusal = with_reason(Refusal::upstream_unreachable());
            open.refuse_as(End::UpstreamGone, refusal).await
        }
        UpstreamError::Broken(_) => {
            open.refuse_as(End::UpstreamGone, Refusal::upstream_broke())
                .await
        }
        UpstreamError::TimedOut => {
            let refusal = with_reason(Refusal::upstream_timed_out());
            open.refuse_as(End::UpstreamGone, refusal).await
        }
        UpstreamError::RequestBody(RequestBodyError::Broken) => {
            open.refuse_as(End::ClientGone, Refusal::body(RequestBodyError::Broken))
                .await
        }
        UpstreamError::RequestBody(error) => open.refuse(Refusal::body(*error)).await,
    }
}

/// Reads the beginning of a refusal's body: it may tell until when it holds. Answers whether it broke off, too.
async fn read_error(response: &mut Response<ResponseBody>) -> (Vec<Bytes>, bool) {
    let mut read = Vec::new();
    let mut size = 0;
    let mut broken = false;
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
                    broken = true;
                    break;
                }
                None => break,
            }
        }
    };
    // What came until then is what there is to know.
    let _ = timeout(ERROR_BODY_TIMEOUT, reading).await;
    (read, broken)
}

const RESETS_AT: u8 = 0;
const RESETS_IN: u8 = 1;
const KEYS: &[Wanted] = &[
    Wanted::within(
        "error",
        &[
            Wanted::scalar("resets_at", RESETS_AT),
            Wanted::scalar("resets_in_seconds", RESETS_IN),
        ],
    ),
    Wanted::scalar("resets_at", RESETS_AT),
    Wanted::scalar("resets_in_seconds", RESETS_IN),
];

/// When a refusal ends, as its body tells.
fn told_in_body(body: &[u8], now: Timestamp) -> Option<Timestamp> {
    let (mut at, mut within) = (None, None);
    let mut scan = JsonScan::new(KEYS);
    scan.feed(body, |name, scalar: Scalar<'_>| {
        match name {
            RESETS_AT => at = scalar.number(),
            _ => within = scalar.number(),
        }
        Flow::Continue
    });
    let positive = |number: &f64| *number > 0.0 && *number < 1e12;
    let at = at
        .filter(positive)
        .map(|seconds| Timestamp((seconds * 1e3) as u64));
    at.or_else(|| {
        within
            .filter(positive)
            .map(|seconds| now.after(Duration::from_secs_f64(seconds)))
    })
}

/// When a refusal ends, as `Retry-After` tells (RFC 9110, section 10.2.3): seconds or a date.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Timestamp> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(now.after(Duration::from_secs(u64::from(seconds))));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    let since = date.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(Timestamp(u64::try_from(since.as_millis()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    #[track_caller]
    fn check_body(body: &str, expected: Option<u64>) {
        assert_eq!(
            told_in_body(body.as_bytes(), NOW),
            expected.map(Timestamp),
            "{body}"
        );
    }

    #[test]
    fn the_body_tells_a_time_or_a_span() {
        check_body(
            r#"{"error": {"type": "usage_limit_reached", "resets_at": 2000}}"#,
            Some(2_000_000),
        );
        check_body(r#"{"error": {"resets_in_seconds": 60}}"#, Some(1_060_000));
        check_body(r#"{"resets_in_seconds": 60}"#, Some(1_060_000));
        check_body(
            r#"{"error": {"resets_at": 2000, "resets_in_seconds": 60}}"#,
            Some(2_000_000),
        );
        check_body(r#"{"error": {"resets_at": "soon"}}"#, None);
        check_body(r#"{"error": {"resets_at": -5}}"#, None);
        check_body("<html>", None);
        check_body("", None);
    }

    #[test]
    fn retry_after_tells_seconds_or_a_date() {
        let read = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, http::HeaderValue::from_static(value));
            retry_after(&headers, NOW).map(|moment| moment.0)
        };
        assert_eq!(read("30"), Some(1_030_000));
        assert_eq!(read("Thu, 01 Jan 1970 01:00:00 GMT"), Some(3_600_000));
        assert_eq!(read("soon"), None);
        assert_eq!(read("-1"), None);
    }
}
