//! WebSocket: a handshake that takes the stages of every request, then a relay between two sockets.
//!
//! The handshake is authenticated, admitted, given a credential and rewritten like a request
//! without a body. If upstream accepts it, each response requested over the socket makes a ledger
//! row; if upstream refuses it, the client receives upstream's response, and the handshake makes
//! the row.

mod closing;
mod flow;
mod relay;
mod side;
mod timing;
mod turns;
mod waking;
mod watching;

use std::any::Any;
use std::time::Duration;

use bytes::Bytes;
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
use crate::reverse::REVERSE_PATH;
use crate::values::exchange::ClientTransport;
use crate::values::headers::strip_request;

use relay::SocketRelay;
use side::SocketSide;

/// The path of the WebSocket endpoints.
const PATH: &str = "/v1/responses";

const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");
const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
const BETA: HeaderName = HeaderName::from_static("openai-beta");

/// The value of `OpenAI-Beta` that Codex sends and upstream requires.
const BETA_SOCKETS: HeaderValue = HeaderValue::from_static("responses_websockets=2026-02-06");

/// A connection that becomes a WebSocket, and the permit by which it counts as a connection.
pub(crate) struct SocketUpgrade {
    upgrade: OnUpgrade,
    connection_permit: Box<dyn Any + Send>,
}

impl SocketUpgrade {
    /// Returns the upgrade of the connection of `request`. `connection_permit` is dropped when the
    /// WebSocket closes.
    pub(crate) fn new<B>(
        request: &mut http::Request<B>,
        connection_permit: Box<dyn Any + Send>,
    ) -> Self {
        Self {
            upgrade: on(request),
            connection_permit,
        }
    }
}

impl SocketUpgrade {
    /// Waits, at most for `limit`, until the response has been sent. Returns the connection, what
    /// was read from it already, and the permit that it holds.
    pub(super) async fn connection(
        self,
        limit: Duration,
    ) -> Option<(SocketSide, Bytes, Box<dyn Any + Send>)> {
        let upgraded = timeout(limit, self.upgrade).await.ok()?.ok()?;
        let (side, read) = SocketSide::of(upgraded);
        Some((side, read, self.connection_permit))
    }
}

/// The form of the client's handshake (RFC 6455, section 4.1; RFC 8441, section 4).
enum ClientHandshake {
    Http1 { key: HeaderValue },
    Http2,
}

/// Returns whether a request asks for another protocol on its connection: for a WebSocket, or to
/// reverse it.
pub(crate) fn is_upgrade<B>(request: &http::Request<B>) -> bool {
    if request.uri().path() == REVERSE_PATH {
        return request.version() == Version::HTTP_11 && request.headers().contains_key(UPGRADE);
    }
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

/// Returns whether the path has a WebSocket endpoint. On another path, an HTTP/1.1 client receives
/// the response to its GET; an HTTP/2 client asks for a WebSocket and nothing else, and is refused
/// here.
pub(super) fn is_requested(received: &Received) -> bool {
    has_socket(received.path()) || received.head.method == Method::CONNECT
}

/// Sends an admitted handshake to upstream, and accepts the client's if upstream accepts it.
///
/// # Errors
/// Returns an error if the request is not a valid handshake, if its user has too many WebSockets
/// open, or if upstream refuses it.
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
    let Some(permit) = exchange.service().reserve_socket(exchange.user()) else {
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
            let resources = SocketResources { upgrade, permit };
            accept(live, handshake, answered, resources).await
        }
        // A 2xx without a socket: over HTTP/2 a client would read it as an accepted handshake.
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

/// What a socket holds while it is open.
struct SocketResources {
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

/// Removes the fields that are meant for this gateway, and adds those that upstream requires.
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

/// Accepts the client's handshake as upstream accepted it, and relays what follows.
async fn accept(
    live: &LiveService,
    handshake: ClientHandshake,
    answered: Answered,
    resources: SocketResources,
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
    retain_reply_fields(&mut headers);
    let edited = EditedHead::Response(StatusCode::SWITCHING_PROTOCOLS);
    if let Err(refusal) = edit_head(&exchange, &credential, edited, &mut headers).await {
        return Err(exchange.refuse(refusal));
    }
    let Ok(upstream) = on(response).await else {
        return Err(exchange.refuse(Refusal::upstream_broken()));
    };
    // Rows describe responses: an accepted handshake makes none.
    exchange.become_socket();
    let handshake_limit = exchange.service().limits().handshake_timeout;
    let relay = SocketRelay::new(live.clone(), exchange, credential, presented);
    tokio::spawn(async move {
        let SocketResources { upgrade, permit } = resources;
        // A client that leaves before the response asked for nothing.
        if let Ok(Ok(client)) = timeout(handshake_limit, upgrade.upgrade).await {
            relay.run(client, upstream).await;
        }
        drop((upgrade.connection_permit, permit));
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

/// Of upstream's response fields, the client of a WebSocket receives those that Codex reads.
fn retain_reply_fields(headers: &mut HeaderMap) {
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
