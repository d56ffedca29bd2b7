//! WebSocket: a handshake that goes the way of every request, and then a relay between two sockets.
//!
//! The handshake is authenticated, admitted, given a credential and rewritten as a request without a body. Where upstream
//! takes it, each response that is asked for over the socket is a row of its own; where not, the client gets upstream's
//! answer, and that is the row.

mod flow;
mod relay;
mod side;
mod turns;
mod waking;

use std::any::Any;
use std::sync::Arc;

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use http::{Method, Response, StatusCode, Version};
use hyper::ext::Protocol;
use hyper::upgrade::{OnUpgrade, on};
use tokio::time::timeout;

use super::answer::{self, AnswerBody};
use super::attempt::{self, Answered};
use super::entry::admit::Admitted;
use super::entry::inspect::Inspected;
use super::entry::receive::Received;
use super::refusal::Refusal;
use super::service::{Live, Seat, Service};
use super::settle::OpenRow;
use crate::frames::{accept_of, is_key};
use crate::values::exchange::{End, Transport};
use crate::values::headers::strip_request;

use relay::Relay;

/// Where a WebSocket is.
const PATH: &str = "/v1/responses";

const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");
const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
const BETA: HeaderName = HeaderName::from_static("openai-beta");

/// What Codex says in `OpenAI-Beta`; upstream wants it.
const BETA_SOCKETS: HeaderValue = HeaderValue::from_static("responses_websockets=2026-02-06");

/// A client that wants a WebSocket: what its connection becomes, and what keeps that connection's place.
pub struct Wanted {
    upgrade: OnUpgrade,
    keeps: Box<dyn Any + Send>,
}

impl Wanted {
    /// What becomes of the connection of `request`, for as long as it `keeps` its place.
    pub fn new<B>(request: &mut http::Request<B>, keeps: Box<dyn Any + Send>) -> Self {
        Self {
            upgrade: on(request),
            keeps,
        }
    }
}

/// How the client asks (RFC 6455, section 4.1; RFC 8441, section 4).
enum Asked {
    Http1 { key: HeaderValue },
    Http2,
}

/// Whether a request wants another protocol on its connection.
pub fn is_upgrade<B>(request: &http::Request<B>) -> bool {
    let names_websocket = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
    match *request.method() {
        Method::CONNECT => request
            .extensions()
            .get::<Protocol>()
            .is_some_and(|name| name.as_str() == "websocket"),
        Method::GET => request.headers().get(UPGRADE).is_some_and(names_websocket),
        _ => false,
    }
}

fn has_socket(path: &str) -> bool {
    path.strip_prefix(PATH)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether the path has a WebSocket. Elsewhere an HTTP/1.1 client gets the answer to its GET; one that speaks HTTP/2 asks
/// for a WebSocket and nothing else, and is told here.
pub(super) fn is_asked(received: &Received) -> bool {
    has_socket(received.path()) || received.head.method == Method::CONNECT
}

/// # Errors
/// The handshake is not one, or nobody takes it.
pub(super) async fn serve(
    service: &Arc<Service>,
    live: &Live,
    admitted: Admitted,
    wanted: Wanted,
) -> Result<Response<AnswerBody>, Refusal> {
    let Admitted { mut open, mut head } = admitted;
    open.goes_by(Transport::WebSocket);
    if !has_socket(head.uri.path()) {
        return Err(open
            .refuse(Refusal::invalid(
                "there is a WebSocket at /v1/responses, and nowhere else",
            ))
            .await);
    }
    let asked = match asked(&head) {
        Ok(asked) => asked,
        Err(refusal) => return Err(open.refuse(refusal).await),
    };
    let Some(seat) = service.take_seat(open.owner()) else {
        return Err(open.refuse(Refusal::too_many_sockets()).await);
    };
    prepare(&mut head.headers);
    head.method = Method::GET;
    head.version = Version::HTTP_11;
    let (answered, open) = attempt::send(service, Inspected::without_body(open, head)).await?;
    match answered.response.status() {
        StatusCode::SWITCHING_PROTOCOLS => {
            accept(service, live, asked, answered, open, Held { wanted, seat }).await
        }
        // No refusal, and no socket: over HTTP/2 a client would take it for one.
        status if status.is_success() => {
            tracing::warn!(
                status = status.as_u16(),
                "upstream answered a WebSocket's handshake with something else"
            );
            Err(open
                .refuse_as(End::UpstreamGone, Refusal::upstream_broke())
                .await)
        }
        _ => answer::answer(service, answered, open).await,
    }
}

/// What a socket holds for as long as it is open.
struct Held {
    wanted: Wanted,
    seat: Seat,
}

fn asked(head: &http::request::Parts) -> Result<Asked, Refusal> {
    if head.method == Method::CONNECT {
        return Ok(Asked::Http2);
    }
    let field = |name: &HeaderName| head.headers.get(name);
    let upgrades = head
        .headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut upgrades = upgrades.flat_map(|value| value.split(','));
    if head.version != Version::HTTP_11
        || !upgrades.any(|name| name.trim().eq_ignore_ascii_case("upgrade"))
    {
        return Err(Refusal::invalid(
            "a WebSocket handshake is HTTP/1.1 with Connection: Upgrade",
        ));
    }
    if field(&VERSION).is_none_or(|version| version != "13") {
        return Err(Refusal::websocket_version());
    }
    match field(&KEY) {
        Some(key) if is_key(key.as_bytes()) => Ok(Asked::Http1 { key: key.clone() }),
        _ => Err(Refusal::invalid(
            "Sec-WebSocket-Key: expected 16 bytes in base64",
        )),
    }
}

/// What the client said to this gateway alone is taken out, and what upstream wants is put in.
fn prepare(headers: &mut HeaderMap) {
    strip_request(headers);
    let own: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("sec-websocket-"))
        .cloned()
        .collect();
    for name in own {
        headers.remove(name);
    }
    headers.entry(BETA).or_insert(BETA_SOCKETS);
}

/// Upstream took the handshake: the client's is answered, and what is sent goes through from then on.
async fn accept(
    service: &Arc<Service>,
    live: &Live,
    asked: Asked,
    answered: Answered,
    mut open: Box<OpenRow>,
    held: Held,
) -> Result<Response<AnswerBody>, Refusal> {
    let Answered {
        credential,
        shown,
        mut response,
        ..
    } = answered;
    let mut headers = std::mem::take(response.headers_mut());
    answer::remember_turn_state(service, &open, credential, &headers);
    keep_reply_fields(&mut headers);
    if let Err(refusal) = answer::rewrite(
        service,
        &open,
        credential,
        StatusCode::SWITCHING_PROTOCOLS,
        &mut headers,
    )
    .await
    {
        return Err(open.refuse(refusal).await);
    }
    let Ok(upstream) = on(response).await else {
        return Err(open.refuse(Refusal::upstream_broke()).await);
    };
    let mut accepted = Response::new(AnswerBody::nothing());
    *accepted.headers_mut() = headers;
    match asked {
        Asked::Http1 { key } => {
            *accepted.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let fields = accepted.headers_mut();
            fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
            if let Ok(accept) = HeaderValue::from_str(&accept_of(key.as_bytes())) {
                fields.insert(ACCEPT, accept);
            }
        }
        Asked::Http2 => *accepted.status_mut() = StatusCode::OK,
    }
    // Rows are of responses: the handshake that was taken is none.
    open.becomes_socket();
    let (service, live) = (Arc::clone(service), live.clone());
    tokio::spawn(async move {
        let Held { wanted, seat } = held;
        let limit = service.parts.limits.handshake_timeout;
        // A client that goes before its answer: nothing was asked for.
        if let Ok(Ok(client)) = timeout(limit, wanted.upgrade).await {
            Relay::new(service, live, open, credential, shown)
                .run(client, upstream)
                .await;
        }
        drop((wanted.keeps, seat));
    });
    Ok(accepted)
}

/// Of upstream's fields, a client of a WebSocket gets those that Codex reads.
fn keep_reply_fields(headers: &mut HeaderMap) {
    let others: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            let kept = name.starts_with("x-codex-")
                || name.starts_with("x-reasoning")
                || name == "openai-model"
                || name.contains("-secondary-");
            !kept
        })
        .cloned()
        .collect();
    for name in others {
        headers.remove(name);
    }
}
