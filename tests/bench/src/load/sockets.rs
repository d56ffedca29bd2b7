//! Client connections that have become WebSockets, each with a different session.
//!
//! Frames are counted and not decoded: the cost of a client library is irrelevant here, and the
//! machine is shared.

use std::{io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue,
    header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;

use super::{EXCERPT_BYTES, LoadError, OPENING_MAX, Tally, headers, request_body, session};
use crate::{
    answers::{Answers, Shape},
    forwarder::USER_TOKEN,
    frames::{FrameCount, Sender, text_frame},
};

/// The longest answer to a handshake.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Open sockets. Dropping this value closes their connections without a close frame.
#[derive(Debug)]
pub struct Sockets {
    open: Vec<Socket>,
    answers: Arc<Answers>,
}

impl Sockets {
    /// Opens `count` sockets.
    ///
    /// # Errors
    /// The first [`LoadError`] of any of them.
    pub async fn open(
        address: SocketAddr,
        count: usize,
        shape: Shape,
        answers: &Arc<Answers>,
    ) -> Result<Self, LoadError> {
        let mut open = Vec::with_capacity(count);
        let mut opening = JoinSet::new();
        for number in 0..count {
            if opening.len() >= OPENING_MAX
                && let Some(opened) = opening.join_next().await
            {
                open.push(opened??);
            }
            opening.spawn(Socket::open(address, number, shape));
        }
        while let Some(opened) = opening.join_next().await {
            open.push(opened??);
        }
        Ok(Self {
            open,
            answers: Arc::clone(answers),
        })
    }

    /// Runs `times` turns over each socket, all sockets concurrently.
    ///
    /// # Errors
    /// The first [`LoadError`] of any of them.
    pub async fn drive(&mut self, times: usize) -> Result<Tally, LoadError> {
        let mut tasks = JoinSet::new();
        for mut socket in self.open.drain(..) {
            let answers = Arc::clone(&self.answers);
            tasks.spawn(async move {
                let mut tally = Tally::default();
                for _ in 0..times {
                    socket.turn(&answers, &mut tally).await?;
                }
                Ok::<_, LoadError>((socket, tally))
            });
        }
        let mut sum = Tally::default();
        while let Some(outcome) = tasks.join_next().await {
            let (socket, tally) = outcome??;
            self.open.push(socket);
            sum.units += tally.units;
            sum.reads += tally.reads;
        }
        Ok(sum)
    }
}

#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    shape: Shape,
    create: Bytes,
}

impl Socket {
    async fn open(address: SocketAddr, number: usize, shape: Shape) -> Result<Self, LoadError> {
        let mut stream = TcpStream::connect(address)
            .await
            .map_err(LoadError::Connect)?;
        stream.set_nodelay(true).map_err(LoadError::Connect)?;
        let session = session(number);
        shake_hands(&mut stream, &socket_headers(address, &session)?, shape).await?;
        let mut create = request_body(&session);
        create["stream"] = json!(true);
        create["type"] = json!("response.create");
        Ok(Self {
            stream,
            shape,
            create: text_frame(Sender::Client, create.to_string().as_bytes()),
        })
    }

    /// Sends one message and reads the whole answer.
    async fn turn(&mut self, answers: &Answers, tally: &mut Tally) -> Result<(), LoadError> {
        self.stream
            .write_all(&self.create)
            .await
            .map_err(LoadError::Socket)?;
        let answer = answers.of(self.shape);
        let expected_bytes = answer.body_bytes.unwrap_or_default();
        let mut frames = FrameCount::default();
        let mut piece = [0; 16 * 1024];
        while frames.messages < answer.units {
            let read = self
                .stream
                .read(&mut piece)
                .await
                .map_err(LoadError::Socket)?;
            frames.feed(&piece[..read]);
            tally.reads += 1;
            if read == 0 || frames.is_closed {
                return Err(LoadError::Ended("socket"));
            }
        }
        tally.units += frames.messages;
        if (frames.messages, frames.payload_bytes) != (answer.units, expected_bytes) {
            let (found, found_bytes, expected) =
                (frames.messages, frames.payload_bytes, answer.units);
            return Err(LoadError::Messages {
                found,
                found_bytes,
                expected,
                expected_bytes,
            });
        }
        Ok(())
    }
}

/// Returns the headers of a Codex client's handshake.
fn socket_headers(address: SocketAddr, session: &str) -> Result<HeaderMap, LoadError> {
    let mut headers = headers(address, session, USER_TOKEN)?;
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(
        SEC_WEBSOCKET_KEY,
        HeaderValue::try_from(generate_key()).map_err(http::Error::from)?,
    );
    headers.insert(
        "openai-beta",
        HeaderValue::from_static("responses_websockets=2026-02-06"),
    );
    Ok(headers)
}

/// Performs the handshake without an HTTP library, whose connection would keep more memory in this
/// process.
async fn shake_hands(
    stream: &mut TcpStream,
    headers: &HeaderMap,
    shape: Shape,
) -> Result<(), LoadError> {
    let mut request = format!("GET {} HTTP/1.1\r\n", shape.target()).into_bytes();
    for (name, value) in headers {
        request.extend_from_slice(name.as_str().as_bytes());
        request.extend_from_slice(b": ");
        request.extend_from_slice(value.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream
        .write_all(&request)
        .await
        .map_err(LoadError::Socket)?;
    let mut head = Vec::with_capacity(1024);
    // Nothing follows the head of the response: upstream waits for a message.
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        if stream
            .read_buf(&mut head)
            .await
            .map_err(LoadError::Socket)?
            == 0
        {
            return Err(LoadError::Socket(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    if !head.starts_with(b"HTTP/1.1 101 ") {
        head.truncate(EXCERPT_BYTES);
        return Err(LoadError::Handshake(
            String::from_utf8_lossy(&head).into_owned(),
        ));
    }
    Ok(())
}
