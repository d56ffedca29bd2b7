//! Reverse connections: two gateways, one of which connects to the other, and peers that write
//! single frames in place of either.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::clients::client::Client;
use crate::gateway::Rig;

/// The longest wait for a peer.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// The token of the reverse connection, and of the front gateway's user at the back.
pub const REVERSE_TOKEN: &str = "token-reverse-canary";

/// Two gateways: `front` can be reached, and `back` connects to it.
pub struct ReverseScene {
    /// Its user `alice` prefers the external credential `x` to the account `near`.
    pub front: Rig,
    /// Its users `front` and `carol` have the account `far`, which only it can reach.
    pub back: Rig,
    /// The client of `alice`.
    pub alice: Client,
    /// The client of `carol`.
    pub carol: Client,
}

/// Limits with which a gateway connects again at once.
pub fn eager() -> Value {
    json!({ "reverse_pause_max": "20ms" })
}

impl ReverseScene {
    /// Starts both gateways, and waits until they are connected.
    pub async fn new() -> Self {
        Self::with_limits(json!({}), eager()).await
    }

    /// As [`Self::new`], with these limits of the front and the back.
    pub async fn with_limits(front_limits: Value, back_limits: Value) -> Self {
        let (mut front, mut back) = (Rig::new().await, Rig::new().await);
        let mut config = front_config(&front);
        config["limits"] = front_limits;
        let alice = front.start(config).await.token("token-alice");
        let mut config = back_config(&back, alice.address());
        config["limits"] = back_limits;
        let carol = back.start(config).await.token("token-carol");
        front.wait_for_state("x", "ready").await;
        Self {
            front,
            back,
            alice,
            carol,
        }
    }

    /// Stops the gateways on both sides.
    pub async fn stop(mut self) {
        self.back.stop().await;
        self.front.stop().await;
    }
}

/// Returns the configuration of the gateway that can be reached.
pub fn front_config(rig: &Rig) -> Value {
    rig.config(json!({
        "credentials": [
            { "type": "external", "tag": "x", "token": REVERSE_TOKEN },
            rig.oauth("near"),
            { "type": "fallback", "tag": "pool", "credentials": ["x", "near"] },
        ],
        "users": [{
            "name": "alice",
            "token": "token-alice",
            "credential": "pool",
            "allow_external_usage": true,
        }],
    }))
}

/// Returns the configuration of a gateway that connects to `front`.
pub fn back_config(rig: &Rig, front: SocketAddr) -> Value {
    rig.config(json!({
        "credentials": [
            rig.oauth("far"),
            {
                "type": "external",
                "tag": "up",
                "url": format!("http://{front}"),
                "token": REVERSE_TOKEN,
                "reverse": true,
            },
        ],
        "users": [
            { "name": "front", "token": REVERSE_TOKEN, "credential": "far" },
            { "name": "carol", "token": "token-carol", "credential": "far" },
        ],
    }))
}

/// A frame of yamux: its type, flags, stream and length, and its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YamuxFrame {
    /// 0 data, 1 window update, 2 ping, 3 go away.
    pub kind: u8,
    /// 1 SYN, 2 ACK, 4 FIN, 8 RST.
    pub flags: u16,
    /// 0 for pings and go away.
    pub stream: u32,
    /// The length of the data, credit, or a code.
    pub length: u32,
    /// The data of a data frame.
    pub data: Vec<u8>,
}

impl YamuxFrame {
    /// Returns the bytes of a frame without data, which may announce some.
    pub fn header(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
        let mut bytes = vec![0, kind];
        bytes.extend(flags.to_be_bytes());
        bytes.extend(stream.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    }

    /// Returns the bytes of a data frame.
    pub fn data(flags: u16, stream: u32, data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(data.len()).expect("a short frame");
        let mut bytes = Self::header(0, flags, stream, length);
        bytes.extend(data);
        bytes
    }
}

/// A side of a reverse connection that reads and writes single frames.
pub struct YamuxPeer(TcpStream);

impl YamuxPeer {
    /// Connects to the gateway at `address`, and reverses the connection.
    pub async fn connect(address: SocketAddr) -> Self {
        let mut peer = Self(TcpStream::connect(address).await.expect("it connects"));
        let request = upgrade(address, REVERSE_TOKEN);
        peer.send(request).await.expect("it reads");
        let head = peer.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        peer
    }

    /// Accepts the connection of a gateway, and reads the head of its request.
    pub async fn accept(listener: &TcpListener) -> (Self, String) {
        let accepted = timeout(WAIT_MAX, listener.accept()).await;
        let (stream, _) = accepted.expect("a connection").expect("it is accepted");
        let mut peer = Self(stream);
        let head = peer.head().await;
        (peer, head)
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.0.write_all(bytes.as_ref()).await
    }

    /// Reads a head, and not a byte beyond it.
    pub async fn head(&mut self) -> String {
        let mut head = Vec::new();
        let reading = async {
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.0.read_u8().await.expect("a head"));
            }
        };
        timeout(WAIT_MAX, reading).await.expect("a head in time");
        String::from_utf8(head).expect("text")
    }

    /// Returns the next frame, or `None` at the end of the connection.
    pub async fn frame(&mut self) -> Option<YamuxFrame> {
        let reading = async {
            let mut header = [0; 12];
            self.0.read_exact(&mut header).await.ok()?;
            let word = |at: usize| {
                u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
            };
            let mut frame = YamuxFrame {
                kind: header[1],
                flags: u16::from_be_bytes([header[2], header[3]]),
                stream: word(4),
                length: word(8),
                data: Vec::new(),
            };
            if frame.kind == 0 {
                frame.data.resize(frame.length as usize, 0);
                self.0.read_exact(&mut frame.data).await.ok()?;
            }
            Some(frame)
        };
        timeout(WAIT_MAX, reading).await.expect("a frame in time")
    }

    /// Returns the next frame that `is_wanted`; pings are answered.
    ///
    /// # Panics
    /// Panics at the end of the connection.
    pub async fn frame_that(&mut self, is_wanted: impl Fn(&YamuxFrame) -> bool) -> YamuxFrame {
        loop {
            let frame = self.frame().await.expect("a frame");
            if frame.kind == 2 && frame.flags == 1 {
                let pong = YamuxFrame::header(2, 2, 0, frame.length);
                self.send(pong).await.expect("it reads");
            }
            if is_wanted(&frame) {
                return frame;
            }
        }
    }

    /// Reads the data of `stream` until it contains `text`. Returns the data.
    pub async fn until(&mut self, stream: u32, text: &str) -> String {
        let mut read = String::new();
        while !read.contains(text) {
            let frame = self
                .frame_that(|frame| frame.kind == 0 && frame.stream == stream)
                .await;
            read.push_str(&String::from_utf8_lossy(&frame.data));
        }
        read
    }

    /// Reads to the end of the connection. Returns the last go away's code.
    pub async fn until_closed(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.frame().await {
            if frame.kind == 3 {
                code = Some(frame.length);
            }
        }
        code
    }
}

/// Returns the request by which a gateway reverses its connection.
pub fn upgrade(address: SocketAddr, token: &str) -> String {
    format!(
        "GET /ocm/v1/reverse HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
         Upgrade: reverse-proxy\r\nAuthorization: Bearer {token}\r\n\r\n"
    )
}
