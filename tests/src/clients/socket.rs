//! A client's socket: the handshake over HTTP/1.1 (RFC 6455) or HTTP/2 (RFC 8441), then messages
//! framed by a library that the gateway does not use. Invariant: no wait is longer than
//! [`EVENT_MAX`].

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::clients::client::{Answer, Client, Stream, Version};

/// The longest wait for an event.
const EVENT_MAX: Duration = Duration::from_secs(30);
/// The receive buffer of a bare connection, in bytes: its default differs between machines, and
/// tests must not depend on it.
const RECEIVE_BUFFER: u32 = 256 * 1024;
/// The code that stands for a close frame without one (RFC 6455, section 7.1.5).
const NO_CLOSE_CODE: u16 = 1005;
/// The events that end a turn.
const LAST_EVENTS: [&str; 4] = [
    "response.completed",
    "response.incomplete",
    "response.failed",
    "error",
];

/// A WebSocket after its handshake.
#[derive(Debug)]
pub struct Socket {
    /// The header fields of the handshake's answer.
    pub headers: HeaderMap,
    messages: WebSocketStream<TokioIo<Upgraded>>,
}

/// The position of a frame in its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The first of several.
    First,
    /// Neither the first nor the last.
    Middle,
    /// The last of several.
    Last,
}

/// What is received on a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole text message.
    Text(String),
    /// A whole binary message.
    Binary(Bytes),
    /// A ping; the library answers it.
    Ping(Bytes),
    /// A pong, solicited or not.
    Pong(Bytes),
    /// A close frame: its code, which is 1005 if it has none, and its reason.
    Close(u16, String),
    /// The end of the connection, in any way. Also follows a close frame.
    Gone,
}

impl Client {
    /// Opens a socket at `/v1/responses` on a new connection, with the client's header fields.
    ///
    /// # Errors
    /// Returns the answer if it is not the upgrade.
    ///
    /// # Panics
    /// Panics if there is no answer, or it breaks the protocol.
    pub async fn socket(&self) -> Result<Socket, Answer> {
        self.socket_at("/v1/responses").await
    }

    /// Opens a socket at `path`, which may have a query.
    ///
    /// # Errors
    /// As [`Client::socket`].
    ///
    /// # Panics
    /// As [`Client::socket`].
    pub async fn socket_at(&self, path: &str) -> Result<Socket, Answer> {
        let stream = self.raw().await;
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.headers_mut() = self.headers().clone();
        request
            .headers_mut()
            .insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        let response = match self.version() {
            Version::Http1 => upgrade(stream, path, request).await,
            Version::Http2 => {
                *request.uri_mut() = format!("http://{}{path}", self.address())
                    .parse()
                    .expect("a path");
                extended_connect(stream, request).await
            }
        };
        let upgraded = match (self.version(), response.status()) {
            (Version::Http1, StatusCode::SWITCHING_PROTOCOLS)
            | (Version::Http2, StatusCode::OK) => response,
            _ => return Err(Stream::of(response).finish().await),
        };
        let headers = upgraded.headers().clone();
        let io = hyper::upgrade::on(upgraded)
            .await
            .expect("an upgraded connection");
        let messages =
            WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Client, Some(no_limits()))
                .await;
        Ok(Socket { headers, messages })
    }

    /// Opens a bare connection to the service.
    pub async fn raw(&self) -> TcpStream {
        let address = self.address();
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }
        .expect("a socket");
        socket
            .set_recv_buffer_size(RECEIVE_BUFFER)
            .expect("a socket's option");
        let stream = timeout(EVENT_MAX, socket.connect(address))
            .await
            .expect("in time")
            .expect("connects");
        stream.set_nodelay(true).expect("a socket's option");
        stream
    }
}

/// Reads the answer to a handshake over HTTP/1.1.
async fn upgrade(
    stream: TcpStream,
    path: &str,
    mut request: Request<Empty<Bytes>>,
) -> Response<Incoming> {
    let host = stream.peer_addr().expect("a connected peer").to_string();
    *request.uri_mut() = path.parse().expect("a path");
    let key = generate_key();
    for (name, value) in [
        (HOST, host.as_str()),
        (CONNECTION, "Upgrade"),
        (UPGRADE, "websocket"),
        (SEC_WEBSOCKET_KEY, &key),
    ] {
        request
            .headers_mut()
            .insert(name, value.parse().expect("a field's value"));
    }
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .expect("a connection");
    tokio::spawn(connection.with_upgrades());
    let response = timeout(EVENT_MAX, sender.send_request(request))
        .await
        .expect("an answer in time");
    let response = response.unwrap_or_else(|error| panic!("no answer to the handshake: {error:?}"));
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let accept = response
            .headers()
            .get(SEC_WEBSOCKET_ACCEPT)
            .map(HeaderValue::as_bytes);
        assert_eq!(
            accept,
            Some(derive_accept_key(key.as_bytes()).as_bytes()),
            "the accept key"
        );
    }
    response
}

/// Sends a handshake over HTTP/2 and returns its answer.
async fn extended_connect(
    stream: TcpStream,
    mut request: Request<Empty<Bytes>>,
) -> Response<Incoming> {
    *request.method_mut() = Method::CONNECT;
    request
        .extensions_mut()
        .insert(Protocol::from_static("websocket"));
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("a connection");
    let allowed = timeout(EVENT_MAX, async {
        while !connection.is_extended_connect_protocol_enabled() {
            // There is no signal for the arrival of the service's settings.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    allowed
        .await
        .expect("the service's settings allow an extended CONNECT");
    tokio::spawn(connection);
    let response = timeout(EVENT_MAX, sender.send_request(request))
        .await
        .expect("an answer in time");
    response.unwrap_or_else(|error| panic!("no answer to the handshake: {error:?}"))
}

impl Socket {
    /// Sends a text message in one frame. As with everything that is sent, a closed connection
    /// shows only when the socket is read.
    pub async fn send_text(&mut self, text: impl Into<String>) {
        self.send(Message::text(text.into())).await;
    }

    /// Sends a binary message in one frame.
    pub async fn send_binary(&mut self, bytes: impl Into<Bytes>) {
        self.send(Message::binary(bytes.into())).await;
    }

    /// Sends a text message in frames of these sizes, used in turn until it ends. Characters may be
    /// split.
    ///
    /// # Panics
    /// Panics if all sizes are 0.
    pub async fn send_fragments(&mut self, text: &str, sizes: &[usize]) {
        assert!(
            sizes.iter().any(|size| *size > 0),
            "frames of 0 bytes never end a message"
        );
        let mut rest = Bytes::copy_from_slice(text.as_bytes());
        let mut kind = Data::Text;
        for &size in sizes.iter().cycle() {
            let part = rest.split_to(size.min(rest.len()));
            let last = rest.is_empty();
            self.feed(Message::Frame(Frame::message(
                part,
                OpCode::Data(kind),
                last,
            )))
            .await;
            if last {
                break;
            }
            kind = Data::Continue;
        }
        self.flush().await;
    }

    /// Sends one frame of a text message that has several. The caller may send others in between.
    pub async fn send_part(&mut self, part: Part, payload: impl Into<Bytes>) {
        let (kind, last) = match part {
            Part::First => (Data::Text, false),
            Part::Middle => (Data::Continue, false),
            Part::Last => (Data::Continue, true),
        };
        self.send(Message::Frame(Frame::message(
            payload.into(),
            OpCode::Data(kind),
            last,
        )))
        .await;
    }

    /// Sends a ping, whose pong is received as an [`Event`].
    pub async fn ping(&mut self, payload: impl Into<Bytes>) {
        self.send(Message::Ping(payload.into())).await;
    }

    /// Sends an unsolicited pong.
    pub async fn pong(&mut self, payload: impl Into<Bytes>) {
        self.send(Message::Pong(payload.into())).await;
    }

    /// Sends a close frame; 1005 sends one without code and reason. The service's is read by
    /// [`Socket::next`].
    pub async fn close(&mut self, code: u16, reason: &str) {
        let frame = || CloseFrame {
            code: code.into(),
            reason: Utf8Bytes::from(reason.to_owned()),
        };
        self.send(Message::Close((code != NO_CLOSE_CODE).then(frame)))
            .await;
    }

    /// Sends raw bytes, neither framed nor masked.
    pub async fn send_raw(&mut self, bytes: impl AsRef<[u8]>) {
        let io = self.messages.get_mut();
        let sent = timeout(EVENT_MAX, async {
            io.write_all(bytes.as_ref()).await?;
            io.flush().await
        });
        // A closed connection shows when the socket is read.
        let _ = sent.await.expect("the service reads");
    }

    /// Sends FIN, over HTTP/2 the stream's end, without a close frame; what the service sends can
    /// still be read.
    pub async fn finish(&mut self) {
        // It fails if the service has closed the connection, which shows when the socket is read.
        let _ = self.messages.get_mut().shutdown().await;
    }

    /// Ends the connection by RST, over HTTP/2 the stream by RST_STREAM.
    pub fn reset(self) {
        let upgraded = self.messages.into_inner().into_inner();
        // Over HTTP/2 dropping the socket resets the stream.
        if let Ok(connection) = upgraded.downcast::<TokioIo<TcpStream>>() {
            connection
                .io
                .inner()
                .set_zero_linger()
                .expect("a socket's option");
        }
    }

    /// Returns the bare connection, on which nothing is framed any more. Bytes that were read ahead
    /// are lost.
    pub fn into_raw(self) -> impl AsyncRead + AsyncWrite + Unpin + Send {
        self.messages.into_inner()
    }

    /// Returns the next event.
    ///
    /// # Panics
    /// Panics if nothing arrives in time, or something that breaks the protocol does.
    pub async fn next(&mut self) -> Event {
        match timeout(EVENT_MAX, self.messages.next())
            .await
            .expect("an event in time")
        {
            Some(Ok(message)) => Event::of(message),
            None | Some(Err(Error::Io(_) | Error::ConnectionClosed | Error::AlreadyClosed)) => {
                Event::Gone
            }
            Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => Event::Gone,
            Some(Err(error)) => panic!("the service breaks the protocol: {error}"),
        }
    }

    /// Returns `true` if nothing arrives for `span`.
    pub async fn is_quiet_for(&mut self, span: Duration) -> bool {
        timeout(span, self.messages.next()).await.is_err()
    }

    /// Returns the next text or binary message, or the end; skips pings and pongs.
    pub async fn next_message(&mut self) -> Event {
        loop {
            match self.next().await {
                Event::Ping(_) | Event::Pong(_) => {}
                event @ (Event::Text(_) | Event::Binary(_) | Event::Close(..) | Event::Gone) => {
                    return event;
                }
            }
        }
    }

    /// Returns the next message as JSON.
    ///
    /// # Panics
    /// Panics if it is not JSON, or the socket ends.
    pub async fn next_json(&mut self) -> Value {
        match self.next_message().await {
            Event::Text(text) => {
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
            }
            event => panic!("expected a message of JSON, found {event:?}"),
        }
    }

    /// Sends `body` as a `response.create`.
    ///
    /// # Panics
    /// Panics if it is not an object.
    pub async fn create(&mut self, body: &Value) {
        let mut create =
            serde_json::Map::from_iter([("type".to_owned(), Value::from("response.create"))]);
        create.extend(body.as_object().expect("a turn is an object").clone());
        self.send_text(Value::Object(create).to_string()).await;
    }

    /// Reads to the end of a turn: `response.completed`, `.incomplete`, `.failed` or `error`, which
    /// is the last.
    ///
    /// # Panics
    /// Panics if the socket ends before, or a message is not an event.
    pub async fn rest_of_turn(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let event = match self.next_message().await {
                Event::Text(text) => {
                    serde_json::from_str::<Value>(&text).expect("an event is JSON")
                }
                event => panic!("a turn without an end: {event:?} after {events:?}"),
            };
            let last = event["type"]
                .as_str()
                .is_some_and(|kind| LAST_EVENTS.contains(&kind));
            events.push(event);
            if last {
                return events;
            }
        }
    }

    /// Sends `body` as a `response.create` and reads to the turn's end.
    ///
    /// # Panics
    /// As [`Socket::rest_of_turn`].
    pub async fn turn(&mut self, body: &Value) -> Vec<Value> {
        self.create(body).await;
        self.rest_of_turn().await
    }

    async fn send(&mut self, message: Message) {
        self.feed(message).await;
        self.flush().await;
    }

    async fn feed(&mut self, message: Message) {
        // A closed connection shows when the socket is read.
        let _ = timeout(EVENT_MAX, self.messages.feed(message))
            .await
            .expect("the service reads");
    }

    async fn flush(&mut self) {
        // As above.
        let _ = timeout(EVENT_MAX, self.messages.flush())
            .await
            .expect("the service reads");
    }
}

impl Event {
    fn of(message: Message) -> Self {
        match message {
            Message::Text(text) => Event::Text(text.as_str().to_owned()),
            Message::Binary(bytes) => Event::Binary(bytes),
            Message::Ping(payload) => Event::Ping(payload),
            Message::Pong(payload) => Event::Pong(payload),
            Message::Close(None) => Event::Close(NO_CLOSE_CODE, String::new()),
            Message::Close(Some(frame)) => {
                Event::Close(frame.code.into(), frame.reason.as_str().to_owned())
            }
            Message::Frame(_) => unreachable!("bare frames are written only"),
        }
    }
}

fn no_limits() -> WebSocketConfig {
    // Small: a test may open thousands.
    WebSocketConfig::default()
        .read_buffer_size(8 << 10)
        .max_message_size(None)
        .max_frame_size(None)
}
