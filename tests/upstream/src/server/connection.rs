//! Connections, and the way of a request to its reply. Knows nothing of what the reply is.
//! Invariant: a connection and all of its streams end with the task that serves it.

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::decide::{Decided, route};
use super::socket::{AcceptedSocket, Opening};
use super::stage::{Stage, TlsOptions};
use crate::accounts::account::Account;
use crate::requests::asked::Asked;
use crate::requests::seen::SeenRequest;
use crate::responses::answer::{Answer, Call, Route};
use crate::responses::body::{Break, Broken, ScriptedBody, Underway};
use crate::responses::events;
use crate::responses::reply::{Content, Cut, Reply};
use crate::sockets::handshake::Outcome;
use crate::transport::http2::{FrameIo, StreamTasks, poll_streams};
use crate::transport::http2_side::Ending;
use crate::transport::wire::{Wire, WireIo};

/// After a failed accept (no file descriptors, usually) the next try waits this long.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(10);
const HEADER_LIST_BYTES_MAX: u32 = 1 << 20;

/// A connection's socket, once its handshake has been accepted.
type PendingSocket = Mutex<Option<AcceptedSocket>>;

/// Accepts connections for as long as it is polled.
pub(super) async fn accept(listener: TcpListener, stage: Arc<Stage>) {
    let mut connections = JoinSet::new();
    let mut number = 0;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    number += 1;
                    connections.spawn(converse(stream, number, Arc::clone(&stage)));
                }
                Err(_) => tokio::time::sleep(ACCEPT_BACKOFF).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn converse(stream: TcpStream, number: u64, stage: Arc<Stage>) {
    let wire = Arc::new(Wire::new(number, stream));
    let io = WireIo(Arc::clone(&wire));
    let Some(tls) = stage.tls.clone() else {
        return serve_auto(io, wire, stage).await;
    };
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
    // A handshake that fails is the client's to report.
    let Ok(io) = acceptor.accept(io).await else {
        return;
    };
    if io.get_ref().1.alpn_protocol() == Some(b"h2") {
        serve_http2(io, wire, stage, &tls).await;
    } else {
        serve_auto(io, wire, stage).await;
    }
}

/// Serves HTTP/1.1, or HTTP/2 to a client that begins with it.
async fn serve_auto<I>(io: I, wire: Arc<Wire>, stage: Arc<Stage>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let socket = Arc::new(PendingSocket::default());
    let service = service_fn({
        let socket = Arc::clone(&socket);
        move |request| {
            let (stage, wire, socket) = (stage.clone(), wire.clone(), socket.clone());
            stage.serve(wire, socket, 0, request)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_header_list_size(HEADER_LIST_BYTES_MAX);
    // An error here is the client's leaving or a break that the script asked for; the record tells
    // them apart.
    let _ = builder
        .serve_connection_with_upgrades(TokioIo::new(io), service)
        .await;
    let socket = socket.lock().expect("no holder of a socket panics").take();
    // In this task, so that the socket ends with the upstream.
    if let Some(socket) = socket {
        socket.play().await;
    }
}

/// Serves HTTP/2, the connection and its streams in this task.
async fn serve_http2<I>(io: I, wire: Arc<Wire>, stage: Arc<Stage>, options: &TlsOptions)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let side = wire.speaks_http2();
    let record = Arc::clone(&stage.record);
    let io = FrameIo::new(io, Arc::clone(&wire), move |reason| record.reset(reason));
    let mut go_away = stage.go_away.subscribe();
    let service = service_fn({
        let wire = Arc::clone(&wire);
        move |request| {
            let (stage, wire) = (stage.clone(), wire.clone());
            let stream = wire.speaks_http2().opened_stream();
            stage.serve(wire, Arc::default(), stream, request)
        }
    });
    let opened = StreamTasks::default();
    let mut builder = http2::Builder::new(opened.clone());
    builder.max_header_list_size(HEADER_LIST_BYTES_MAX);
    if let Some(streams) = options.streams_max {
        builder.max_concurrent_streams(streams);
    }
    if let Some(bytes) = options.window_bytes {
        builder
            .initial_stream_window_size(bytes)
            .initial_connection_window_size(bytes);
    }
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut ends = pin!(async move {
        // It fails when the upstream is gone, and this task with it.
        let _ = go_away.changed().await;
    });
    let mut is_ending = false;
    let mut streams = Vec::new();
    poll_fn(|cx| {
        loop {
            poll_streams(&mut streams, cx);
            if side.ending() == Ending::Now {
                return Poll::Ready(());
            }
            if !is_ending && ends.as_mut().poll(cx).is_ready() {
                is_ending = true;
                connection.as_mut().graceful_shutdown();
            }
            // After the streams, so that what they handed over is written before they are polled
            // again. An error is the client's leaving.
            if connection.as_mut().poll(cx).is_ready() || side.ending() == Ending::AfterFlush {
                return Poll::Ready(());
            }
            if !opened.start(&mut streams) {
                return Poll::Pending;
            }
        }
    })
    .await;
}

impl Stage {
    /// `stream` is the request's number over HTTP/2.
    async fn serve(
        self: Arc<Self>,
        wire: Arc<Wire>,
        socket: Arc<PendingSocket>,
        stream: u32,
        mut request: Request<Incoming>,
    ) -> Result<Response<ScriptedBody>, Broken> {
        let mut underway = Underway::new(Arc::clone(&self.record));
        let upgrade = hyper::upgrade::on(&mut request);
        let (mut head, body) = request.into_parts();
        name_host(&mut head);
        let body = body
            .collect()
            .await
            .map_err(|_| Broken::by_client())?
            .to_bytes();
        let route = route(&head.method, head.uri.path(), &head.headers);
        let asked = Asked::read(&head.headers, &body);
        let Decided {
            account,
            outcome,
            body: told,
        } = match route {
            Some(Route::Token) => self.logins.redeem(&head.headers, &body).into(),
            _ => self.decide(route, &head.headers, asked.as_ref()),
        };
        let account_id = account.as_ref().map(|account| account.id().to_owned());
        let seen = seen_request(head, body, account_id, &wire);
        self.record.add(seen.clone());
        if let (Some(account), Some(route)) = (&account, route) {
            account.saw(route);
        }
        let prepared = match outcome {
            Outcome::Response(prepared) => prepared,
            Outcome::Upgrade(wish) => {
                let account = account.expect("only an account's own handshake is accepted");
                let opening = Opening {
                    upgrade,
                    wish,
                    account,
                    script: Arc::clone(&self.socket_script),
                    wire,
                    sockets: Arc::clone(&self.sockets),
                };
                return Ok(accept_socket(opening, seen, &socket, underway).await);
            }
        };
        if let Some(gate) = &prepared.reply.head_gate {
            gate.clone().pass().await;
        }
        break_before_head(&prepared.reply, &wire, stream, &mut underway).await?;
        let call = call(
            route,
            account.as_ref(),
            &prepared.reply,
            asked.unwrap_or_default(),
        );
        Ok(respond(
            prepared.answer(Call {
                body: told.or(call.body),
                ..call
            }),
            wire,
            underway,
        ))
    }
}

/// Returns what is remembered of a request.
fn seen_request(head: Parts, body: Bytes, account: Option<String>, wire: &Wire) -> SeenRequest {
    SeenRequest {
        method: head.method,
        target: head
            .uri
            .path_and_query()
            .map_or_else(|| head.uri.to_string(), ToString::to_string),
        headers: head.headers,
        body,
        account,
        connection: wire.number,
        version: head.version,
    }
}

/// What `:authority` says over HTTP/2 is recorded as the `Host` that it stands for.
fn name_host(head: &mut Parts) {
    if let Some(authority) = head.uri.authority()
        && !head.headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        head.headers.insert(HOST, host);
    }
}

/// Breaks off in place of an answer, if the reply says so.
async fn break_before_head(
    reply: &Reply,
    wire: &Wire,
    stream: u32,
    underway: &mut Underway,
) -> Result<(), Broken> {
    if let Content::Garbage(bytes) = &reply.content {
        underway.finish();
        if let Some(side) = wire.http2() {
            side.write_bare(bytes);
            side.end(Ending::AfterFlush);
            // The connection's end is what ends this request.
            return pending().await;
        }
        // The client may close at the first strange byte; that is its right.
        let _ = wire.write_bare(bytes).await;
    } else if reply.cut != Some(Cut::BeforeHead) {
        return Ok(());
    }
    underway.finish();
    if let (Break::GoAway(reason), Some(side)) = (reply.cut_by, wire.http2()) {
        side.go_away(stream.saturating_sub(2), reason);
        // Neither answered nor reset: it was not processed.
        return pending().await;
    }
    Err(Broken::now(wire, reply.cut_by))
}

fn call(route: Option<Route>, account: Option<&Account>, reply: &Reply, asked: Asked) -> Call {
    let turn = route.is_some_and(Route::is_turn);
    if let (Some(account), true, true) = (account, turn, reply.status.is_success()) {
        account.use_one_turn();
    }
    Call {
        // A request without a route has an error for a reply, which looks at no route.
        route: route.unwrap_or(Route::Models),
        asked,
        body: account
            .filter(|_| route == Some(Route::Usage))
            .map(|account| account.standing().usage_body()),
        rate_limits: account.map(Account::rate_limit_headers).unwrap_or_default(),
        number: events::next_number(),
    }
}

/// Accepts the socket and leaves it in `pending`, to be played once hyper is done with the
/// connection.
async fn accept_socket(
    opening: Opening,
    seen: SeenRequest,
    pending: &PendingSocket,
    underway: Underway,
) -> Response<ScriptedBody> {
    if let Some(gate) = &opening.wish.head_gate {
        gate.clone().pass().await;
    }
    let body = ScriptedBody::new(VecDeque::new(), None, Arc::clone(&opening.wire), underway);
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = opening.head(&seen.headers);
    *pending.lock().expect("no holder of a socket panics") = Some(opening.accept(seen));
    response
}

fn respond(answer: Answer, wire: Arc<Wire>, underway: Underway) -> Response<ScriptedBody> {
    let mut response = Response::new(ScriptedBody::new(
        answer.steps,
        answer.length,
        wire,
        underway,
    ));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}
