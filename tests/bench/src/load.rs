//! The load: client connections and the requests over them. WebSockets are in `sockets`.
//!
//! Knows only the address of a forwarder. Every answer is checked for its status and its
//! length; an incomplete answer ends the measurement. The cost of the load itself is not measured.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

use crate::{
    answers::{Answers, MODEL, Shape},
    forwarder::USER_TOKEN,
};

pub mod sockets;

/// Idle streams or sockets that are opened concurrently.
const OPENING_MAX: usize = 32;
/// How much of the body of an unexpected response an error quotes.
const EXCERPT_BYTES: usize = 300;

/// Why a load failed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The connection could not be established.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// HTTP failed during an exchange.
    #[error("exchange failed: {0}")]
    Exchange(#[from] hyper::Error),
    /// The bench built an invalid request.
    #[error("request malformed: {0}")]
    Request(#[from] http::Error),
    /// The status is not 200.
    #[error("status {status}, expected 200: {excerpt}")]
    Status {
        /// The value that was received.
        status: StatusCode,
        /// The start of the body.
        excerpt: String,
    },
    /// The body has too few or too many bytes.
    #[error("body of {found} bytes, expected {expected}")]
    Length {
        /// The value that was received.
        found: usize,
        /// The value that was expected.
        expected: usize,
    },
    /// A stream or socket that should stay open ended.
    #[error("{0} ended too soon")]
    Ended(&'static str),
    /// A socket failed during a turn.
    #[error("socket failed: {0}")]
    Socket(io::Error),
    /// The messages are not those that upstream sent.
    #[error("{found} messages of {found_bytes} bytes, expected {expected} of {expected_bytes}")]
    Messages {
        /// The value that was received.
        found: u64,
        /// The value that was received.
        found_bytes: usize,
        /// The value that was expected.
        expected: u64,
        /// The value that was expected.
        expected_bytes: usize,
    },
    /// A handshake was rejected.
    #[error("no WebSocket: {0}")]
    Handshake(String),
    /// A task of the load generator panicked.
    #[error("load generator failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// What a load received.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// The number of requests, events or messages.
    pub units: u64,
    /// Reads of the client's sockets that returned bytes, which shows how finely the forwarder
    /// wrote.
    pub reads: u64,
}

/// Client connections, each used once, so that no measurement includes opening them.
#[derive(Debug)]
pub struct Clients {
    connections: Vec<LoadConnection>,
    answers: Arc<Answers>,
}

impl Clients {
    /// Opens `count` connections and sends one JSON request over each.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn connect(
        address: SocketAddr,
        count: usize,
        answers: &Arc<Answers>,
    ) -> Result<Self, LoadError> {
        Self::connect_as(USER_TOKEN, address, count, answers).await
    }

    /// Opens `count` connections for the user with this token.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn connect_as(
        token: &str,
        address: SocketAddr,
        count: usize,
        answers: &Arc<Answers>,
    ) -> Result<Self, LoadError> {
        let mut connections = Vec::with_capacity(count);
        for number in 0..count {
            let mut connection = LoadConnection::open(address, number, token).await?;
            connection
                .exchange(Shape::Json, answers.of(Shape::Json).body_bytes)
                .await?;
            connections.push(connection);
        }
        Ok(Self {
            connections,
            answers: Arc::clone(answers),
        })
    }

    /// Sends `times` requests over each connection, all connections concurrently.
    ///
    /// # Errors
    /// The first [`LoadError`] of any of them.
    pub async fn drive(&mut self, shape: Shape, times: usize) -> Result<Tally, LoadError> {
        let answer = self.answers.of(shape);
        let (expected, units) = (answer.body_bytes, answer.units);
        let mut tasks = JoinSet::new();
        for mut connection in self.connections.drain(..) {
            tasks.spawn(async move {
                let reads_before = connection.reads();
                for _ in 0..times {
                    connection.exchange(shape, expected).await?;
                }
                let reads = connection.reads() - reads_before;
                Ok::<_, LoadError>((connection, reads))
            });
        }
        let mut tally = Tally::default();
        while let Some(outcome) = tasks.join_next().await {
            let (connection, reads) = outcome??;
            self.connections.push(connection);
            tally.units += times as u64 * units;
            tally.reads += reads;
        }
        Ok(tally)
    }

    /// Sends a request over each connection once in `every`, for `span`, evenly spread over the
    /// connections. Returns how long each answer took from when its request was due, sorted, which
    /// includes the wait for the request before it.
    ///
    /// # Errors
    /// The first [`LoadError`] of any of them.
    pub async fn pace(
        &mut self,
        shape: Shape,
        every: Duration,
        span: Duration,
    ) -> Result<Vec<Duration>, LoadError> {
        let expected = self.answers.of(shape).body_bytes;
        let apart = every
            / u32::try_from(self.connections.len())
                .unwrap_or(u32::MAX)
                .max(1);
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for (number, mut connection) in (0_u32..).zip(self.connections.drain(..)) {
            let first = begun + apart * number;
            tasks.spawn(async move {
                let mut times = Vec::new();
                let mut due = first;
                while due < begun + span {
                    sleep_until(due).await;
                    connection.exchange(shape, expected).await?;
                    times.push(due.elapsed());
                    due += every;
                }
                Ok::<_, LoadError>((connection, times))
            });
        }
        let mut times = Vec::new();
        while let Some(outcome) = tasks.join_next().await {
            let (connection, its_times) = outcome??;
            self.connections.push(connection);
            times.extend(its_times);
        }
        times.sort_unstable();
        Ok(times)
    }
}

/// Streams whose first event has arrived, and which stay open until this value is dropped.
#[derive(Debug)]
pub struct IdleStreams {
    _held: Vec<(LoadConnection, Incoming)>,
}

impl IdleStreams {
    /// Opens `count` streams, each on a separate connection.
    ///
    /// # Errors
    /// The first [`LoadError`] of any of them.
    pub async fn open(address: SocketAddr, count: usize) -> Result<Self, LoadError> {
        let mut held = Vec::with_capacity(count);
        let mut opening = JoinSet::new();
        for number in 0..count {
            if opening.len() >= OPENING_MAX
                && let Some(opened) = opening.join_next().await
            {
                held.push(opened??);
            }
            opening.spawn(async move {
                LoadConnection::open(address, number, USER_TOKEN)
                    .await?
                    .hold()
                    .await
            });
        }
        while let Some(opened) = opening.join_next().await {
            held.push(opened??);
        }
        Ok(Self { _held: held })
    }
}

/// A client connection with its own session, as a Codex client has.
#[derive(Debug)]
struct LoadConnection {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
    reads: Arc<AtomicU64>,
    headers: HeaderMap,
    json_body: Bytes,
    stream_body: Bytes,
}

impl LoadConnection {
    async fn open(address: SocketAddr, number: usize, token: &str) -> Result<Self, LoadError> {
        let stream = TcpStream::connect(address)
            .await
            .map_err(LoadError::Connect)?;
        stream.set_nodelay(true).map_err(LoadError::Connect)?;
        let reads = Arc::new(AtomicU64::new(0));
        let counted = CountedReads {
            stream,
            reads: Arc::clone(&reads),
        };
        let (sender, driver) = http1::handshake(TokioIo::new(counted)).await?;
        // The current exchange fails with the driver.
        let driver = tokio::spawn(async move { driver.await.ok() }).abort_handle();
        let session = session(number);
        let mut body = request_body(&session);
        let json_body = Bytes::from(body.to_string());
        body["stream"] = json!(true);
        Ok(Self {
            sender,
            driver,
            reads,
            headers: post_headers(address, &session, token)?,
            json_body,
            stream_body: Bytes::from(body.to_string()),
        })
    }

    fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Sends a request and reads its whole answer.
    async fn exchange(&mut self, shape: Shape, expected: Option<usize>) -> Result<(), LoadError> {
        let mut body = self.send(shape).await?;
        let mut found = 0;
        while let Some(frame) = body.frame().await {
            found += frame?.data_ref().map_or(0, Bytes::len);
        }
        match expected {
            Some(expected) if expected != found => Err(LoadError::Length { found, expected }),
            _ => Ok(()),
        }
    }

    /// Opens an idle stream and reads its first event.
    async fn hold(mut self) -> Result<(Self, Incoming), LoadError> {
        let mut body = self.send(Shape::Idle).await?;
        match body.frame().await {
            Some(frame) => frame.map(drop)?,
            None => return Err(LoadError::Ended("idle stream")),
        }
        Ok((self, body))
    }

    /// Sends a request and reads the head of its answer, which must be a success.
    async fn send(&mut self, shape: Shape) -> Result<Incoming, LoadError> {
        let body = match shape {
            Shape::Json => &self.json_body,
            Shape::Sse | Shape::Burst | Shape::Idle | Shape::Socket | Shape::IdleSocket => {
                &self.stream_body
            }
        };
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = http::Uri::from_static(shape.target());
        *request.headers_mut() = self.headers.clone();
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            status => {
                let excerpt = excerpt(response.into_body()).await;
                Err(LoadError::Status { status, excerpt })
            }
        }
    }
}

impl Drop for LoadConnection {
    fn drop(&mut self) {
        // Closes the socket now, even if an answer is incomplete.
        self.driver.abort();
    }
}

async fn excerpt(mut body: Incoming) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < EXCERPT_BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        if let Some(data) = frame.data_ref() {
            bytes.extend_from_slice(data);
        }
    }
    bytes.truncate(EXCERPT_BYTES);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns the session of a client.
fn session(number: usize) -> String {
    format!("01990000-0000-7000-8000-{number:012x}")
}

/// Returns the headers of a Codex client over SSE.
fn post_headers(address: SocketAddr, session: &str, token: &str) -> Result<HeaderMap, http::Error> {
    let mut headers = headers(address, session, token)?;
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
    Ok(headers)
}

/// Returns the headers that all requests of a Codex client have.
fn headers(address: SocketAddr, session: &str, token: &str) -> Result<HeaderMap, http::Error> {
    let host = address.to_string();
    let authorization = format!("Bearer {token}");
    let window = format!("{session}:0");
    let metadata = json!({"turn_id": session, "sandbox": "none"}).to_string();
    let fields: [(&'static str, &str); 9] = [
        ("host", &host),
        ("authorization", &authorization),
        (
            "user-agent",
            "codex_exec/0.169.0 (Debian 12; x86_64) tollgate-bench",
        ),
        ("originator", "codex_exec"),
        ("session-id", session),
        ("thread-id", session),
        ("x-client-request-id", session),
        ("x-codex-window-id", &window),
        ("x-codex-turn-metadata", &metadata),
    ];
    fields
        .into_iter()
        .map(|(name, value)| Ok((HeaderName::from_static(name), HeaderValue::from_str(value)?)))
        .collect()
}

fn request_body(session: &str) -> Value {
    json!({
        "model": MODEL,
        "stream": false,
        "instructions": "You are a coding agent.",
        "input": [{
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "Say whether the gateway is open."}],
        }],
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": false,
        "store": false,
        "include": [],
        "prompt_cache_key": session,
        "client_metadata": {"session_id": session},
    })
}

/// A socket that counts the reads that returned bytes.
struct CountedReads {
    stream: TcpStream,
    reads: Arc<AtomicU64>,
}

impl AsyncRead for CountedReads {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for CountedReads {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
