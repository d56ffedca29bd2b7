//! Failover: attempts with one credential after another, until one answers. Each credential is tried once, and none
//! after a byte of an answer has gone to the client.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, HeaderMap, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::forward::{NoResponse, Sent, forward};
use super::inspect::Inspected;
use super::refusal::Refusal;
use super::rewrite::{Template, rewrite};
use super::select::select;
use super::service::Service;
use super::settle::OpenRow;
use crate::credentials::{Identity, IdentityKind};
use crate::meter::decoded;
use crate::upstream::{RequestBodyError, UpstreamError};
use crate::values::clock::Millis;
use crate::values::exchange::End;
use crate::values::json_scan::{Flow, JsonScan, Scalar, Wanted};
use crate::values::limits::ERROR_BODY_BYTES;

/// How far the body of a refusal is decoded.
const DECODED_BYTES: usize = 4 * ERROR_BODY_BYTES;

/// For how long the body of a refusal is waited for.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);

const CHAT_COMPLETIONS: &str = "/v1/chat/completions";

/// A response that goes to the client, with what was read of its body already.
pub(super) struct Answered {
    pub(super) credential: usize,
    pub(super) response: Response<Incoming>,
    pub(super) read: Vec<Bytes>,
    /// The body broke off while it was read.
    pub(super) broken: bool,
}

/// # Errors
/// No credential is usable or none answered. The row is closed then.
pub(super) async fn send(service: &Service, inspected: Inspected) -> Result<(Answered, Box<OpenRow>), Refusal> {
    let Inspected { mut open, head, mut body } = inspected;
    let mut headers = Some(head.headers);
    let mut tried = Vec::new();
    let mut last = None;
    loop {
        let now = Millis::now();
        if let Some(refusal) = chat_needs_a_key(service, &open, head.uri.path()) {
            return Err(open.refuse(refusal).await);
        }
        let selected = match select(service, &open, &tried, now).await {
            Ok(selected) => selected,
            Err(nobody) => return Err(open.refuse(last.unwrap_or(nobody)).await),
        };
        let credential = selected.credential;
        tried.push(credential);
        let others = if !body.can_be_sent_again() {
            Others::OutOfReach
        } else if tried.len() < open.pool().members.len() {
            Others::Left
        } else {
            Others::NoneLeft
        };
        let may_go_on = others == Others::Left;
        // Moved where no further attempt can need them.
        let fields = if may_go_on { headers.clone() } else { headers.take() };
        let template =
            Template { method: head.method.clone(), uri: head.uri.clone(), headers: fields.unwrap_or_default() };
        let request = match rewrite(service, &open, &selected, template, body.take(), now) {
            Ok(request) => request,
            Err(refusal) => return Err(open.refuse(refusal).await),
        };
        match forward(service, &mut open, credential, request).await {
            Ok(sent) => match judge(service, &open, &selected.identity, sent, others).await {
                Verdict::Answer(answered) => {
                    remember_home(service, &open, &answered, selected.move_home, now);
                    return Ok((answered, open));
                }
                Verdict::Next => last = None,
                Verdict::CutOff => return Err(cut_off(service, open, &tried).await),
            },
            Err(NoResponse::Withdrawn) if others == Others::OutOfReach => {
                return Err(cut_off(service, open, &tried).await);
            }
            Err(NoResponse::Withdrawn) => last = None,
            Err(NoResponse::Upstream(UpstreamError::Unreachable(_))) if may_go_on => {
                last = Some(Refusal::upstream_unreachable());
            }
            Err(NoResponse::Upstream(error)) => return Err(no_answer(open, &error).await),
        }
    }
}

/// The credential is used up, and the request cannot go to another: where one has room, its client should try again.
async fn cut_off(service: &Service, open: Box<OpenRow>, tried: &[usize]) -> Refusal {
    let refusal = match select(service, &open, tried, Millis::now()).await {
        Ok(_) => Refusal::cut_off(),
        Err(nobody) => nobody,
    };
    open.refuse(refusal).await
}

/// Whether a request can go to another credential of its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    /// There are some that were not tried.
    Left,
    /// All were tried.
    NoneLeft,
    /// The body is gone: it was too large to be kept.
    OutOfReach,
}

enum Verdict {
    /// The client gets this.
    Answer(Answered),
    /// Another credential is asked, if there is one.
    Next,
    /// The request would go to another credential, but its body is gone.
    CutOff,
}

/// Whether a response goes to the client, or another credential is asked.
async fn judge(service: &Service, open: &OpenRow, shown: &Identity, sent: Sent, others: Others) -> Verdict {
    let Sent { credential, mut response, reading } = sent;
    let account = &service.parts.credentials[credential];
    let answer = |response| Verdict::Answer(Answered { credential, response, read: Vec::new(), broken: false });
    match response.status() {
        StatusCode::UNAUTHORIZED => {
            account.token_refused(shown, Millis::now());
            tracing::warn!(credential = account.tag(), "upstream refused the credential's token");
            // In a pool this is not the client's business: its own token is good.
            if others == Others::OutOfReach || open.pool().single { answer(response) } else { Verdict::Next }
        }
        // A key's limits are of seconds and of its own: its client knows what to do.
        StatusCode::TOO_MANY_REQUESTS if is_oauth(service, credential) => {
            let (read, broken) = read_error(&mut response).await;
            let now = Millis::now();
            let encoding = response.headers().get(CONTENT_ENCODING).and_then(|value| value.to_str().ok());
            let told = reading.refused_until().or_else(|| told_in_body(&decoded(encoding, &read, DECODED_BYTES), now));
            let until = account.refused(told.or_else(|| retry_after(response.headers(), now)), now);
            tracing::warn!(credential = account.tag(), until = until.rfc3339(), "upstream refuses the credential");
            match others {
                // Upstream's answer tells when this credential is back: all that there is to know of one alone.
                _ if open.pool().single => Verdict::Answer(Answered { credential, response, read, broken }),
                // The pool's answer tells when its first one is.
                Others::Left | Others::NoneLeft => Verdict::Next,
                Others::OutOfReach => Verdict::CutOff,
            }
        }
        _ => answer(response),
    }
}

fn is_oauth(service: &Service, credential: usize) -> bool {
    let identity = service.parts.credentials[credential].identity();
    identity.is_none_or(|identity| identity.kind == IdentityKind::OAuth)
}

/// Chat completions exist only where an API key is used.
fn chat_needs_a_key(service: &Service, open: &OpenRow, path: &str) -> Option<Refusal> {
    if path != CHAT_COMPLETIONS {
        return None;
    }
    let mut identities = open.pool().members.iter().filter_map(|member| service.parts.credentials[*member].identity());
    identities.any(|identity| identity.kind == IdentityKind::OAuth).then(Refusal::api_key_only)
}

fn remember_home(service: &Service, open: &OpenRow, answered: &Answered, move_home: bool, now: Millis) {
    if move_home
        && !answered.response.status().is_server_error()
        && let Some(session) = open.session()
    {
        service.sessions.settle_on(open.owner(), session, answered.credential, now);
    }
}

async fn no_answer(open: Box<OpenRow>, error: &UpstreamError) -> Refusal {
    match error {
        UpstreamError::Unreachable(_) => open.refuse_as(End::UpstreamGone, Refusal::upstream_unreachable()).await,
        UpstreamError::Broken(_) => open.refuse_as(End::UpstreamGone, Refusal::upstream_broke()).await,
        UpstreamError::TimedOut => open.refuse_as(End::UpstreamGone, Refusal::upstream_timed_out()).await,
        UpstreamError::RequestBody(RequestBodyError::Broken) => {
            open.refuse_as(End::ClientGone, Refusal::body(RequestBodyError::Broken)).await
        }
        UpstreamError::RequestBody(error) => open.refuse(Refusal::body(*error)).await,
    }
}

/// Reads the beginning of a refusal's body: it may tell until when it holds. Answers whether it broke off, too.
async fn read_error(response: &mut Response<Incoming>) -> (Vec<Bytes>, bool) {
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
    Wanted::within("error", &[Wanted::scalar("resets_at", RESETS_AT), Wanted::scalar("resets_in_seconds", RESETS_IN)]),
    Wanted::scalar("resets_at", RESETS_AT),
    Wanted::scalar("resets_in_seconds", RESETS_IN),
];

/// When a refusal ends, as its body tells.
fn told_in_body(body: &[u8], now: Millis) -> Option<Millis> {
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
    let at = at.filter(positive).map(|seconds| Millis((seconds * 1e3) as u64));
    at.or_else(|| within.filter(positive).map(|seconds| now.after(Duration::from_secs_f64(seconds))))
}

/// When a refusal ends, as `Retry-After` tells (RFC 9110, section 10.2.3): seconds or a date.
fn retry_after(headers: &HeaderMap, now: Millis) -> Option<Millis> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(now.after(Duration::from_secs(u64::from(seconds))));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    let since = date.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(Millis(u64::try_from(since.as_millis()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_000_000);

    #[track_caller]
    fn check_body(body: &str, expected: Option<u64>) {
        assert_eq!(told_in_body(body.as_bytes(), NOW), expected.map(Millis), "{body}");
    }

    #[test]
    fn the_body_tells_a_time_or_a_span() {
        check_body(r#"{"error": {"type": "usage_limit_reached", "resets_at": 2000}}"#, Some(2_000_000));
        check_body(r#"{"error": {"resets_in_seconds": 60}}"#, Some(1_060_000));
        check_body(r#"{"resets_in_seconds": 60}"#, Some(1_060_000));
        check_body(r#"{"error": {"resets_at": 2000, "resets_in_seconds": 60}}"#, Some(2_000_000));
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
