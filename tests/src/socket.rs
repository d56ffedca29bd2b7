//! A client's socket: the handshake over HTTP/1.1 (RFC 6455) or HTTP/2 (RFC 8441), then messages as a library of
//! others' frames them. Invariant: no wait of it is longer than [`EVENT_MAX`].

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

use crate::client::{Answer, Client, Stream, Version};

/// No event of a test takes longer.
const EVENT_MAX: Duration = Duration::from_secs(30);
/// What a bare connection's kernel may keep of what was not read, in bytes: machines differ in it, and tests do not depend on it.
const RECEIVE_BUFFER: u32 = 256 * 1024;
/// What a close frame without a code is told as (RFC 6455, section 7.1.5).
const NO_CLOSE_CODE: u16 = 1005;
/// The events that end a turn.
const LAST_EVENTS: [&str; 4] = [
    "response.completed",
    "response.incomplete",
    "response.failed",
    "error",
];

/// An open socket.
#[derive(Debug)]
pub struct Socket {
    /// The header fields of the handshake's answer.
    pub headers: HeaderMap,
    messages: WebSocketStream<TokioIo<Upgraded>>,
}

/// Where in its message a frame stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// At the beginning, and not alone.
    First,
    /// Between others.
    Middle,
    /// At the end, and not alone.
    Last,
}

/// What comes on a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Bytes),
    /// A ping; it is answered by itself.
    Ping(Bytes),
    /// A pong.
    Pong(Bytes),
    /// A close frame: its code, which is 1005 where it has none, and its reason.
    Close(u16, String),
    /// The end of the connection, in whatever way. Comes after a close frame too.
    Gone,
}

impl Client {
    /// Opens a socket at `/v1/responses` on a connection of its own, with the client's header fields. Answers the
    /// service's answer where it upgrades nothing.
    ///
    /// # Errors
    /// The handshake was answered by anything but the upgrade.
    ///
    /// # Panics
    /// There is no answer, or one that breaks the protocol.
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

    /// A bare connection to the service.
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

/// The answer to a handshake over HTTP/1.1.
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

/// The answer to a handshake over HTTP/2.
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
            // Nothing tells when the service's settings are there.
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
    /// Sends a text message in one frame. As with all that is sent, whether the service still took it shows when the
    /// socket is read from.
    pub async fn send_text(&mut self, text: impl Into<String>) {
        self.send(Message::text(text.into())).await;
    }

    /// Sends a binary message in one frame.
    pub async fn send_binary(&mut self, bytes: impl Into<Bytes>) {
        self.send(Message::binary(bytes.into())).await;
    }

    /// Sends a text message in frames of these sizes, taken in turn until it ends; characters may be cut.
    ///
    /// # Panics
    /// All sizes are 0.
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

    /// Sends one frame of a text message that has several; what stands between them is the caller's.
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

    /// Sends a ping.
    pub async fn ping(&mut self, payload: impl Into<Bytes>) {
        self.send(Message::Ping(payload.into())).await;
    }

    /// Sends a pong that nobody asked for.
    pub async fn pong(&mut self, payload: impl Into<Bytes>) {
        self.send(Message::Pong(payload.into())).await;
    }

    /// Sends a close frame; 1005 sends one without code and reason. The service's is read by [`Socket::next`].
    pub async fn close(&mut self, code: u16, reason: &str) {
        let frame = || CloseFrame {
            code: code.into(),
            reason: Utf8Bytes::from(reason.to_owned()),
        };
        self.send(Message::Close((code != NO_CLOSE_CODE).then(frame)))
            .await;
    }

    /// Sends bytes that nobody frames or masks.
    pub async fn send_raw(&mut self, bytes: impl AsRef<[u8]>) {
        let io = self.messages.get_mut();
        let sent = timeout(EVENT_MAX, async {
            io.write_all(bytes.as_ref()).await?;
            io.flush().await
        });
        // That the service has closed shows when it is read from.
        let _ = sent.await.expect("the service reads");
    }

    /// Sends FIN, over HTTP/2 the stream's end, without a close frame; what the service sends can still be read.
    pub async fn finish(&mut self) {
        // It fails where the service has ended the connection, which shows when it is read from.
        let _ = self.messages.get_mut().shutdown().await;
    }

    /// Ends the connection by RST, over HTTP/2 the stream by RST_STREAM.
    pub fn reset(self) {
        let upgraded = self.messages.into_inner().into_inner();
        // Over HTTP/2 it is no connection of its own, and dropping it resets the stream.
        if let Ok(connection) = upgraded.downcast::<TokioIo<TcpStream>>() {
            connection
                .io
                .inner()
                .set_zero_linger()
                .expect("a socket's option");
        }
    }

    /// The bare connection, on which nothing is framed from here on. What has been read and not asked for is lost.
    pub fn into_raw(self) -> impl AsyncRead + AsyncWrite + Unpin + Send {
        self.messages.into_inner()
    }

    /// What comes next.
    ///
    /// # Panics
    /// Nothing comes in time, or something that breaks the protocol.
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

    /// Whether nothing comes for `span`.
    pub async fn is_quiet_for(&mut self, span: Duration) -> bool {
        timeout(span, self.messages.next()).await.is_err()
    }

    /// The next text or binary message, or the end; pings and pongs are passed over.
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

    /// The next message, as JSON.
    ///
    /// # Panics
    /// It is none, or the socket ends.
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
    /// It is no object.
    pub async fn create(&mut self, body: &Value) {
        let mut create =
            serde_json::Map::from_iter([("type".to_owned(), Value::from("response.create"))]);
        create.extend(body.as_object().expect("a turn is an object").clone());
        self.send_text(Value::Object(create).to_string()).await;
    }

    /// Reads to the end of a turn: `response.completed`, `.incomplete`, `.failed` or `error`, which is the last.
    ///
    /// # Panics
    /// The socket ends before, or a message is no event.
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
        // That the service has closed shows when it is read from.
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
    // Small, as a test may open thousands.
    WebSocketConfig::default()
        .read_buffer_size(8 << 10)
        .max_message_size(None)
        .max_frame_size(None)
}
