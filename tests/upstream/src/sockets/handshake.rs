//! What upstream answers to a WebSocket handshake: an ordinary response or the upgrade. Owns the
//! builder and the upgrade's head; `server/socket.rs` plays what follows.

use std::sync::Arc;

use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, SERVER, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::responses::answer::Prepared;
use crate::responses::reply::{Presence, Reply};
use crate::sockets::socket_reply::SocketReply;
use crate::waits::gate::Gate;

/// The answer to one handshake, made from a [`Reply`] or an [`Upgrade`].
#[derive(Clone, Debug)]
pub struct Handshake(pub(crate) Outcome);

#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Response(Arc<Prepared>),
    Upgrade(Arc<Upgrade>),
}

/// An accepted handshake. By default the socket answers each `response.create`; each method changes
/// one thing.
#[derive(Clone, Debug)]
pub struct Upgrade {
    headers: Vec<(HeaderName, HeaderValue)>,
    rate_limits: Presence,
    accept_key: AcceptKey,
    pub(crate) head_gate: Option<Gate>,
    pub(crate) reading_gate: Option<Gate>,
    pub(crate) messages: Messages,
    pub(crate) greeting: Option<Arc<SocketReply>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AcceptKey {
    Right,
    Wrong,
}

/// What upstream does with the client's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Messages {
    /// Each `response.create` is answered as a turn.
    Answered,
    /// Each message is sent back.
    Echoed,
}

impl Upgrade {
    /// Creates an upgrade as the backend does it.
    pub fn new() -> Self {
        Upgrade {
            headers: Vec::new(),
            rate_limits: Presence::Present,
            accept_key: AcceptKey::Right,
            head_gate: None,
            reading_gate: None,
            messages: Messages::Answered,
            greeting: None,
        }
    }

    /// Adds a header to the 101.
    ///
    /// # Panics
    /// Panics if HTTP does not allow the name or the value.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::try_from(name).expect("a header name");
        self.headers
            .push((name, HeaderValue::try_from(value).expect("a header value")));
        self
    }

    /// Omits the account's rate-limit headers.
    pub fn without_rate_limits(mut self) -> Self {
        self.rate_limits = Presence::Absent;
        self
    }

    /// Accepts with the key of another request.
    pub fn wrong_accept_key(mut self) -> Self {
        self.accept_key = AcceptKey::Wrong;
        self
    }

    /// Sends nothing, not even the head, until the gate opens.
    pub fn hold_head(mut self, gate: &Gate) -> Self {
        self.head_gate = Some(gate.clone());
        self
    }

    /// Reads nothing from the socket, and therefore answers no ping, until the gate opens.
    pub fn hold_reading(mut self, gate: &Gate) -> Self {
        self.reading_gate = Some(gate.clone());
        self
    }

    /// Sends each text and binary message back instead of answering it.
    pub fn echo(mut self) -> Self {
        self.messages = Messages::Echoed;
        self
    }

    /// Plays this reply right after the upgrade: [`SocketReply::silent`] with a close, for example.
    pub fn greet(mut self, reply: impl Into<SocketReply>) -> Self {
        self.greeting = Some(Arc::new(reply.into()));
        self
    }

    /// Returns the header fields of the 101.
    pub(crate) fn head(&self, request: &HeaderMap, rate_limits: HeaderMap) -> HeaderMap {
        let mut headers = match self.rate_limits {
            Presence::Present => rate_limits,
            Presence::Absent => HeaderMap::new(),
        };
        let key = match self.accept_key {
            AcceptKey::Right => request
                .get(SEC_WEBSOCKET_KEY)
                .map_or(&b""[..], HeaderValue::as_bytes),
            AcceptKey::Wrong => b"of another request",
        };
        let accept =
            HeaderValue::try_from(derive_accept_key(key)).expect("base64 is a header value");
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        for (name, value) in [
            (CONNECTION, "Upgrade"),
            (UPGRADE, "websocket"),
            (SERVER, "scripted"),
            (HeaderName::from_static("openai-model"), "scripted-model"),
            (HeaderName::from_static("x-reasoning-included"), "true"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers.extend(self.headers.iter().cloned());
        headers
    }
}

impl Default for Upgrade {
    fn default() -> Self {
        Self::new()
    }
}

impl From<Reply> for Handshake {
    fn from(reply: Reply) -> Self {
        Handshake(Outcome::Response(Arc::new(Prepared::new(reply))))
    }
}

impl From<Upgrade> for Handshake {
    fn from(upgrade: Upgrade) -> Self {
        Handshake(Outcome::Upgrade(Arc::new(upgrade)))
    }
}

/// Returns `true` if a request asks for a WebSocket.
pub(crate) fn is_asked(headers: &HeaderMap) -> bool {
    has_word(headers, UPGRADE, "websocket")
}

/// Returns what is wrong with the handshake, if anything (RFC 6455, section 4.2.1).
pub(crate) fn complaint(headers: &HeaderMap) -> Option<&'static str> {
    if !has_word(headers, CONNECTION, "upgrade") {
        return Some("the handshake's Connection does not name Upgrade");
    }
    if headers
        .get(SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        return Some("the handshake's version is not 13");
    }
    let keys = headers.get_all(SEC_WEBSOCKET_KEY);
    // 16 bytes in base64.
    let fits = keys
        .iter()
        .all(|key| key.len() == 24 && key.as_bytes().ends_with(b"=="));
    (keys.iter().count() != 1 || !fits).then_some("the handshake's key is not one of 16 bytes")
}

fn has_word(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    let values = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|found| found.trim().eq_ignore_ascii_case(word))
}
