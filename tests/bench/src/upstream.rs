//! The fast upstream: reads a request and writes the bytes of [`Answers`].
//!
//! It supports only the HTTP/1.1 and the WebSockets of well-behaved forwarders, without a library,
//! for two reasons: it shares two cores with the measured process, and each write must be exactly
//! as planned.

use std::{io, sync::Arc, time::Duration};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Interval, MissedTickBehavior, interval},
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::{
    answers::{Answers, Shape},
    frames::FrameCount,
};

const HEAD_BYTES_MAX: usize = 64 * 1024;
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// The pause after a failed accept (no descriptor left), in which others can close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

const NOT_FOUND: &[u8] = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";

/// Serves until the process ends. `pace` is the time between two writes of a stream.
pub async fn serve(listener: TcpListener, answers: Arc<Answers>, pace: Duration) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let connection = UpstreamConnection {
            stream,
            answers: Arc::clone(&answers),
            pace,
        };
        // A peer that disconnects ends only its connection, and the load generator reports it.
        tokio::spawn(async move { connection.run().await.ok() });
    }
}

struct UpstreamConnection {
    stream: TcpStream,
    answers: Arc<Answers>,
    pace: Duration,
}

impl UpstreamConnection {
    async fn run(mut self) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        let mut unread = BytesMut::with_capacity(4096);
        while let Some(Head {
            target, socket_key, ..
        }) = self.request(&mut unread).await?
        {
            match (Shape::of_target(&target), socket_key) {
                (Some(shape), Some(key)) => return self.converse(shape, &key, &unread).await,
                (shape, _) => self.answer(shape, &target).await?,
            }
        }
        Ok(())
    }

    /// Reads the next request and discards its body; `None` at a clean end.
    async fn request(&mut self, unread: &mut BytesMut) -> io::Result<Option<Head>> {
        let head_bytes = loop {
            if let Some(at) = find(unread, b"\r\n\r\n") {
                break at + 4;
            }
            if unread.len() > HEAD_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if self.stream.read_buf(unread).await? == 0 {
                return Ok(None);
            }
        };
        let head = Head::parse(&unread[..head_bytes])?;
        unread.advance(head_bytes);
        self.skip_body(head.framing, unread).await?;
        Ok(Some(head))
    }

    async fn skip_body(&mut self, framing: Framing, unread: &mut BytesMut) -> io::Result<()> {
        loop {
            if let Some(body_bytes) = framing.body_bytes(unread) {
                unread.advance(body_bytes);
                return Ok(());
            }
            if unread.len() > BODY_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if self.stream.read_buf(unread).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn answer(&mut self, shape: Option<Shape>, target: &str) -> io::Result<()> {
        let answers = Arc::clone(&self.answers);
        match shape {
            Some(shape @ Shape::Json) => self.stream.write_all(&answers.of(shape).writes[0]).await,
            Some(shape @ (Shape::Sse | Shape::Burst)) => {
                self.write_paced(&answers.of(shape).writes).await
            }
            Some(shape @ Shape::Idle) => {
                self.stream.write_all(&answers.of(shape).writes[0]).await?;
                self.hold_until_closed().await
            }
            // A handshake has a key.
            Some(Shape::Socket | Shape::IdleSocket) => self.stream.write_all(NOT_FOUND).await,
            None if target.starts_with("/backend-api/wham/usage") => {
                self.stream.write_all(answers.usage_poll()).await
            }
            None => self.stream.write_all(NOT_FOUND).await,
        }
    }

    /// Accepts a handshake and answers each message with a turn until the client disconnects.
    async fn converse(mut self, shape: Shape, key: &str, unread: &[u8]) -> io::Result<()> {
        let answers = Arc::clone(&self.answers);
        self.stream
            .write_all(
                answers
                    .upgrade(&derive_accept_key(key.as_bytes()))
                    .as_bytes(),
            )
            .await?;
        let mut frames = FrameCount::default();
        frames.feed(unread);
        let mut answered = 0;
        let mut piece = [0; 4096];
        loop {
            while answered < frames.messages {
                self.write_paced(&answers.of(shape).writes).await?;
                answered += 1;
            }
            match self.stream.read(&mut piece).await? {
                0 => return Ok(()),
                read => frames.feed(&piece[..read]),
            }
            if frames.is_closed {
                return Ok(());
            }
        }
    }

    /// Writes once per tick: each write must reach the forwarder separately, or several would be
    /// measured as one.
    async fn write_paced(&mut self, writes: &[bytes::Bytes]) -> io::Result<()> {
        let mut ticks = (!self.pace.is_zero()).then(|| ticks_of(self.pace));
        for write in writes {
            if let Some(ticks) = &mut ticks {
                ticks.tick().await;
            }
            self.stream.write_all(write).await?;
        }
        Ok(())
    }

    async fn hold_until_closed(&mut self) -> io::Result<()> {
        let mut ignored = [0; 64];
        while self.stream.read(&mut ignored).await? > 0 {}
        Ok(())
    }
}

fn ticks_of(pace: Duration) -> Interval {
    let mut ticks = interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The parts of a request's head that matter here.
struct Head {
    target: String,
    framing: Framing,
    /// Whether the request is a WebSocket handshake.
    socket_key: Option<String>,
}

#[derive(Clone, Copy)]
enum Framing {
    Sized(usize),
    Chunked,
}

impl Head {
    fn parse(bytes: &[u8]) -> io::Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
        let mut lines = text.split("\r\n");
        let target = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .ok_or(io::ErrorKind::InvalidData)?;
        let mut framing = Framing::Sized(0);
        let mut socket_key = None;
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            if name.eq_ignore_ascii_case("content-length") {
                let length = value
                    .trim()
                    .parse()
                    .map_err(|_| io::ErrorKind::InvalidData)?;
                framing = Framing::Sized(length);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                framing = Framing::Chunked;
            } else if name.eq_ignore_ascii_case("sec-websocket-key") {
                socket_key = Some(value.trim().to_owned());
            }
        }
        Ok(Self {
            target: target.to_owned(),
            framing,
            socket_key,
        })
    }
}

impl Framing {
    /// Returns the length of the body at the start of `unread`, if it is complete.
    fn body_bytes(self, unread: &[u8]) -> Option<usize> {
        // The bodies come from our load generator and contain no CRLF, so that only the last chunk
        // matches.
        const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";
        match self {
            Framing::Sized(length) => (unread.len() >= length).then_some(length),
            Framing::Chunked if unread.starts_with(&LAST_CHUNK[2..]) => Some(LAST_CHUNK.len() - 2),
            Framing::Chunked => find(unread, LAST_CHUNK).map(|at| at + LAST_CHUNK.len()),
        }
    }
}

fn find(within: &[u8], sought: &[u8]) -> Option<usize> {
    within
        .windows(sought.len())
        .position(|window| window == sought)
}

#[cfg(test)]
mod tests {
    use super::{Framing, Head};

    #[test]
    fn a_head_gives_its_target_and_framing() {
        let Ok(head) = Head::parse(b"POST /a?shape=json HTTP/1.1\r\nContent-Length: 12\r\n\r\n")
        else {
            panic!("not parsed");
        };
        assert_eq!(head.target, "/a?shape=json");
        assert_eq!(head.framing.body_bytes(b"eleven byte"), None);
        assert_eq!(head.framing.body_bytes(b"twelve bytes and more"), Some(12));
    }

    #[test]
    fn a_chunked_body_ends_with_its_last_chunk() {
        assert_eq!(Framing::Chunked.body_bytes(b"2\r\n{}\r\n0\r\n"), None);
        assert_eq!(
            Framing::Chunked.body_bytes(b"2\r\n{}\r\n0\r\n\r\nPOST"),
            Some(12)
        );
        assert_eq!(Framing::Chunked.body_bytes(b"0\r\n\r\n"), Some(5));
    }
}
