//! WebSocket: a handshake that goes the way of every request, and then a relay between two sockets.
//!
//! The handshake is authenticated, admitted, given a credential and rewritten as a request without
//! a body. Where upstream takes it, each response that is asked for over the socket is a row of its
//! own; where not, the client gets upstream's answer, and that is the row.

mod closing;
mod flow;
mod relay;
mod side;
mod timing;
mod turns;
mod waking;
mod watching;

use std::any::Any;

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use http::{Method, Response, StatusCode, Version};
use hyper::ext::Protocol;
use hyper::upgrade::{OnUpgrade, on};
use tokio::time::timeout;

use super::affinity;
use super::answer::{AnswerBody, answer};
use super::attempt::judge::UpstreamAnswer;
use super::attempt::{Answered, attempt};
use super::entry::admit::Admitted;
use super::entry::body::KeptBody;
use super::entry::inspect::Inspected;
use super::entry::receive::Received;
use super::exchange::RefusedRequest;
use super::refusal::Refusal;
use super::rewriters::{EditedHead, edit_head};
use super::service::SocketPermit;
use super::service::live::LiveService;
use crate::frames::{accept_of, is_key};
use crate::values::exchange::ClientTransport;
use crate::values::headers::strip_request;

use relay::SocketRelay;

/// Where a WebSocket is.
const PATH: &str = "/v1/responses";

const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");
const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
const BETA: HeaderName = HeaderName::from_static("openai-beta");

/// What Codex says in `OpenAI-Beta`; upstream wants it.
const BETA_SOCKETS: HeaderValue = HeaderValue::from_static("responses_websockets=2026-02-06");

/// A connection that becomes a WebSocket, and what holds its place among the connections.
pub(crate) struct SocketUpgrade {
    upgrade: OnUpgrade,
    place: Box<dyn Any + Send>,
}

impl SocketUpgrade {
    /// The upgrade of the connection of `request`. `place` is dropped when the WebSocket is closed.
    pub(crate) fn new<B>(request: &mut http::Request<B>, place: Box<dyn Any + Send>) -> Self {
        Self {
            upgrade: on(request),
            place,
        }
    }
}

/// How the client asks (RFC 6455, section 4.1; RFC 8441, section 4).
enum ClientHandshake {
    Http1 { key: HeaderValue },
    Http2,
}

/// Whether a request wants another protocol on its connection.
pub(crate) fn is_upgrade<B>(request: &http::Request<B>) -> bool {
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

/// Returns whether the path has a WebSocket. Elsewhere an HTTP/1.1 client gets the response to its
/// GET; one that speaks HTTP/2 asks for a WebSocket and nothing else, and is refused here.
pub(super) fn is_requested(received: &Received) -> bool {
    has_socket(received.path()) || received.head.method == Method::CONNECT
}

/// Sends an admitted handshake to upstream. If upstream accepts it, the client's is accepted, too.
///
/// # Errors
/// The request is no valid handshake, its user has too many WebSockets open, or upstream refuses
/// it.
pub(super) async fn connect(
    live: &LiveService,
    admitted: Admitted,
    upgrade: SocketUpgrade,
) -> Result<Response<AnswerBody>, RefusedRequest> {
    let Admitted {
        mut exchange,
        mut head,
        body: _,
    } = admitted;
    exchange.set_transport(ClientTransport::WebSocket);
    let handshake = match client_handshake(&head) {
        Ok(handshake) => handshake,
        Err(refusal) => return Err(exchange.refuse(refusal)),
    };
    let Some(permit) = exchange.service().reserve_socket(exchange.owner()) else {
        return Err(exchange.refuse(Refusal::too_many_sockets()));
    };
    prepare(&mut head.headers);
    head.method = Method::GET;
    head.version = Version::HTTP_11;
    let inspected = Inspected {
        exchange,
        head,
        body: KeptBody::empty(),
    };
    let answered = attempt(inspected).await?;
    match answered.answer.response.status() {
        StatusCode::SWITCHING_PROTOCOLS => {
            let held = HeldPlaces { upgrade, permit };
            accept(live, handshake, answered, held).await
        }
        // No refusal, and no socket: over HTTP/2 a client would take it for one.
        status if status.is_success() => {
            tracing::warn!(
                status = status.as_u16(),
                "upstream answered a WebSocket handshake with another success"
            );
            Err(answered.exchange.refuse(Refusal::upstream_broken()))
        }
        _ => answer(answered).await,
    }
}

/// What a socket holds as long as it is open.
struct HeldPlaces {
    upgrade: SocketUpgrade,
    permit: SocketPermit,
}

fn client_handshake(head: &http::request::Parts) -> Result<ClientHandshake, Refusal> {
    if !has_socket(head.uri.path()) {
        return Err(Refusal::invalid(
            "the path has no WebSocket: expected /v1/responses",
        ));
    }
    if head.method == Method::CONNECT {
        return Ok(ClientHandshake::Http2);
    }
    if head.version != Version::HTTP_11 || !names_upgrade(&head.headers) {
        return Err(Refusal::invalid(
            "a WebSocket handshake must be HTTP/1.1 with Connection: Upgrade",
        ));
    }
    let headers = &head.headers;
    if headers.get(VERSION).is_none_or(|version| version != "13") {
        return Err(Refusal::websocket_version());
    }
    match headers.get(KEY) {
        Some(key) if is_key(key.as_bytes()) => Ok(ClientHandshake::Http1 { key: key.clone() }),
        Some(_) | None => Err(Refusal::invalid(
            "Sec-WebSocket-Key: expected 16 bytes in base64",
        )),
    }
}

fn names_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|name| name.trim().eq_ignore_ascii_case("upgrade"))
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

/// Accepts the client's handshake, as upstream accepted it. What is sent from then on is relayed.
async fn accept(
    live: &LiveService,
    handshake: ClientHandshake,
    answered: Answered,
    held: HeldPlaces,
) -> Result<Response<AnswerBody>, RefusedRequest> {
    let Answered {
        mut exchange,
        answer:
            UpstreamAnswer {
                credential,
                presented,
                mut response,
                ..
            },
    } = answered;
    let mut headers = std::mem::take(response.headers_mut());
    affinity::record_turn_state(&exchange, &headers, &credential);
    keep_reply_fields(&mut headers);
    let edited = EditedHead::Response(StatusCode::SWITCHING_PROTOCOLS);
    if let Err(refusal) = edit_head(&exchange, &credential, edited, &mut headers).await {
        return Err(exchange.refuse(refusal));
    }
    let Ok(upstream) = on(response).await else {
        return Err(exchange.refuse(Refusal::upstream_broken()));
    };
    // Rows are of responses: a handshake that was accepted makes none.
    exchange.become_socket();
    let handshake_limit = exchange.service().limits().handshake_timeout;
    let relay = SocketRelay::new(live.clone(), exchange, credential, presented);
    tokio::spawn(async move {
        let HeldPlaces { upgrade, permit } = held;
        // A client that leaves before its answer asked for nothing.
        if let Ok(Ok(client)) = timeout(handshake_limit, upgrade.upgrade).await {
            relay.run(client, upstream).await;
        }
        drop((upgrade.place, permit));
    });
    Ok(accepted(handshake, headers))
}

/// Returns the response that accepts the client's handshake.
fn accepted(handshake: ClientHandshake, headers: HeaderMap) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::empty());
    *response.headers_mut() = headers;
    match handshake {
        ClientHandshake::Http1 { key } => {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let fields = response.headers_mut();
            fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
            if let Ok(accept) = HeaderValue::from_str(&accept_of(key.as_bytes())) {
                fields.insert(ACCEPT, accept);
            }
        }
        ClientHandshake::Http2 => *response.status_mut() = StatusCode::OK,
    }
    response
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
