//! A peer that sends and reads raw bytes, which no client library would send.
//! Invariant: no wait is longer than [`WAIT_MAX`].

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The longest wait for the other side.
pub const WAIT_MAX: Duration = Duration::from_secs(20);

/// One side of a connection.
pub struct Peer<S> {
    io: S,
    read: Vec<u8>,
}

/// An HTTP/1 message: an answer, or a request to a bare upstream.
#[derive(Debug)]
pub struct Message {
    /// The first line and the header fields, in lower case.
    pub head: String,
    /// The body, without its chunks' framing.
    pub body: Vec<u8>,
    /// Whether the body ended in order.
    pub whole: bool,
}

impl Message {
    /// Returns the status of an answer.
    ///
    /// # Panics
    /// Panics if it is a request.
    pub fn status(&self) -> u16 {
        self.head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .expect("a status line")
    }

    /// Returns a header field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    }

    /// Returns the body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Peer<TcpStream> {
    /// Connects to `address`.
    ///
    /// # Panics
    /// Panics if that fails.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = timeout(WAIT_MAX, TcpStream::connect(address))
            .await
            .expect("in time")
            .expect("connects");
        stream.set_nodelay(true).expect("a socket's option");
        Self::new(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// Creates a peer on an open connection.
    pub fn new(io: S) -> Self {
        Self {
            io,
            read: Vec::new(),
        }
    }

    /// Sends bytes. A closed connection shows when it is read.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent: io::Result<()> = async {
            self.io.write_all(bytes.as_ref()).await?;
            self.io.flush().await
        }
        .await;
        drop(sent);
    }

    /// Sends byte by byte, each in its own write.
    pub async fn dribble(&mut self, bytes: impl AsRef<[u8]>) {
        for byte in bytes.as_ref() {
            self.send([*byte]).await;
            tokio::task::yield_now().await;
        }
    }

    /// Closes the sending side.
    pub async fn shutdown(&mut self) {
        drop(self.io.shutdown().await);
    }

    /// Returns the next message, or `None` if the connection ends before its head.
    pub async fn message(&mut self) -> Option<Message> {
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

    /// Returns everything up to the end of the connection.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.read)
    }

    /// Returns `true` if more has arrived, `false` if the connection has ended.
    async fn more(&mut self) -> bool {
        let read = timeout(WAIT_MAX, self.io.read_buf(&mut self.read)).await;
        read.expect("the other side sends or ends the connection")
            .is_ok_and(|length| length > 0)
    }

    /// Returns `true` if the other side neither sends nor closes the connection for `span`.
    pub async fn is_quiet_for(&mut self, span: Duration) -> bool {
        timeout(span, self.io.read_buf(&mut self.read))
            .await
            .is_err()
    }
}

/// Returns a POST to `/v1/responses` with this body.
pub fn post(body: &str) -> String {
    format!(
        "POST /v1/responses HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Returns the position of `needle` in `hay`.
pub fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len())
        .position(|window| window == needle)
}
