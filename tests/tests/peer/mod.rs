//! A peer that sends and reads bytes as they are: whatever no client library would send.
//! Invariant: no wait of it is longer than [`WAIT_MAX`].
#![allow(dead_code, reason = "each test uses its part")]

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// No wait for the other side is longer.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(20);

/// One side of a connection.
pub(crate) struct Peer<S> {
    io: S,
    read: Vec<u8>,
}

/// An HTTP/1 message: an answer, or a request that came to a bare upstream.
#[derive(Debug)]
pub(crate) struct Message {
    /// The first line and the header fields, in lower case.
    pub(crate) head: String,
    /// The body, without its chunks' framing.
    pub(crate) body: Vec<u8>,
    /// Whether the body came to its end in order.
    pub(crate) whole: bool,
}

impl Message {
    /// The status, where it is an answer.
    pub(crate) fn status(&self) -> u16 {
        self.head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .expect("a status line")
    }

    /// A header field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Peer<TcpStream> {
    /// Connects.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = timeout(WAIT_MAX, TcpStream::connect(address))
            .await
            .expect("in time")
            .expect("connects");
        stream.set_nodelay(true).expect("a socket's option");
        Self::new(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// A peer on an open connection.
    pub(crate) fn new(io: S) -> Self {
        Self {
            io,
            read: Vec::new(),
        }
    }

    /// Sends; whether the other side still took it shows when it is read from.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent: io::Result<()> = async {
            self.io.write_all(bytes.as_ref()).await?;
            self.io.flush().await
        }
        .await;
        drop(sent);
    }

    /// Sends byte by byte, each in a write of its own.
    pub(crate) async fn dribble(&mut self, bytes: impl AsRef<[u8]>) {
        for byte in bytes.as_ref() {
            self.send([*byte]).await;
            tokio::task::yield_now().await;
        }
    }

    /// Says that nothing more will be sent.
    pub(crate) async fn shutdown(&mut self) {
        drop(self.io.shutdown().await);
    }

    /// The next message; none where the connection ends before its head.
    pub(crate) async fn message(&mut self) -> Option<Message> {
        let end = loop {
            if let Some(at) = find(&self.read, b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more().await {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&self.read[..end]).to_ascii_lowercase();
        self.read.drain(..end);
        let message = Message {
            head,
            body: Vec::new(),
            whole: true,
        };
        let is_request = !message.head.starts_with("http/");
        if message
            .field("transfer-encoding")
            .is_some_and(|coding| coding.contains("chunked"))
        {
            return Some(self.chunked(message).await);
        }
        let length = message
            .field("content-length")
            .map(|length| length.parse().expect("a length"));
        Some(match length {
            Some(length) => self.of_length(message, length).await,
            None if is_request => message,
            None => {
                let body = self.rest().await;
                Message { body, ..message }
            }
        })
    }

    async fn of_length(&mut self, message: Message, length: usize) -> Message {
        while self.read.len() < length {
            if !self.more().await {
                return Message {
                    body: std::mem::take(&mut self.read),
                    whole: false,
                    ..message
                };
            }
        }
        let body = self.read.drain(..length).collect();
        Message { body, ..message }
    }

    async fn chunked(&mut self, mut message: Message) -> Message {
        loop {
            let Some(line) = self.line().await else {
                return Message {
                    whole: false,
                    ..message
                };
            };
            let size = usize::from_str_radix(line.trim(), 16).expect("a chunk's size");
            while self.read.len() < size + 2 {
                if !self.more().await {
                    return Message {
                        whole: false,
                        ..message
                    };
                }
            }
            message.body.extend(self.read.drain(..size));
            self.read.drain(..2);
            if size == 0 {
                return message;
            }
        }
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = find(&self.read, b"\r\n") {
                let line = self.read.drain(..at + 2).collect();
                return Some(String::from_utf8(line).expect("framing is text"));
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// All that comes until the other side ends the connection.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.read)
    }

    /// Whether more came; not, where the connection has ended.
    async fn more(&mut self) -> bool {
        let read = timeout(WAIT_MAX, self.io.read_buf(&mut self.read)).await;
        read.expect("the other side sends or ends the connection")
            .is_ok_and(|length| length > 0)
    }

    /// Whether the other side neither sends nor ends the connection for `span`.
    pub(crate) async fn is_quiet_for(&mut self, span: Duration) -> bool {
        timeout(span, self.io.read_buf(&mut self.read))
            .await
            .is_err()
    }
}

/// A POST to `/v1/responses` with that body.
pub(crate) fn post(body: &str) -> String {
    format!(
        "POST /v1/responses HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Where `needle` begins in `hay`.
pub(crate) fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len())
        .position(|window| window == needle)
}
