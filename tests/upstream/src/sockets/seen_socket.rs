//! What upstream saw on its sockets: each accepted one, in order of its handshake, with everything
//! received on it. Invariant: counts only grow, so a wait cannot miss a value.

use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

use crate::requests::seen::{Remember, SeenRequest};
use crate::waits::WAIT_MAX;

/// One accepted socket, up to now.
#[derive(Clone, Debug)]
pub struct SeenSocket {
    /// The id of the account whose token came with the handshake.
    pub account: String,
    /// The request of the handshake.
    pub request: SeenRequest,
    /// The client's text and binary messages, in order.
    pub messages: Vec<SeenMessage>,
    /// The payloads of the client's pings, in order.
    pub pings: Vec<Bytes>,
    /// The payloads of the client's pongs, in order.
    pub pongs: Vec<Bytes>,
    /// How it ended; `None` while it is open.
    pub end: Option<SocketEnd>,
}

/// A message of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeenMessage {
    /// Of text; its payload is UTF-8.
    Text(Bytes),
    /// Of bytes; their content is not checked.
    Binary(Bytes),
}

/// How a socket ended, as upstream saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketEnd {
    /// By the client's close frame, also if that answers upstream's.
    Closed {
        /// [`NO_CLOSE_CODE`](crate::NO_CLOSE_CODE) if it had none.
        code: u16,
        /// The text beside the code, often empty.
        reason: String,
    },
    /// The connection ended without a close frame.
    Gone,
    /// The client broke the protocol in this way.
    Violated(String),
    /// The script reset the connection.
    Reset,
}

impl SeenSocket {
    /// Returns `true` until it has ended.
    pub fn is_open(&self) -> bool {
        self.end.is_none()
    }
}

impl SeenMessage {
    /// Returns the payload of either kind.
    pub fn payload(&self) -> &Bytes {
        match self {
            SeenMessage::Text(payload) | SeenMessage::Binary(payload) => payload,
        }
    }

    /// Returns the payload as text.
    ///
    /// # Panics
    /// Panics if it is not text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.payload()).expect("the message is text")
    }

    /// Returns the payload as JSON.
    ///
    /// # Panics
    /// Panics if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(self.payload())
            .unwrap_or_else(|error| panic!("message is not JSON: {error}"))
    }
}

/// The record of an upstream's sockets.
#[derive(Debug)]
pub(crate) struct Sockets {
    remember: Remember,
    seen: Mutex<Vec<SeenSocket>>,
    counts: watch::Sender<SocketCounts>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SocketCounts {
    pub(crate) accepted: usize,
    pub(crate) messages: usize,
    controls: usize,
    pub(crate) ended: usize,
}

impl Sockets {
    pub(crate) fn new(remember: Remember) -> Self {
        Sockets {
            remember,
            seen: Mutex::default(),
            counts: watch::Sender::default(),
        }
    }

    /// Adds a socket that has just been accepted. Returns its index.
    pub(crate) fn add(&self, account: String, request: SeenRequest) -> usize {
        let mut seen = self.seen();
        let index = seen.len();
        if self.remember == Remember::Everything {
            let (messages, pings, pongs) = (Vec::new(), Vec::new(), Vec::new());
            seen.push(SeenSocket {
                account,
                request,
                messages,
                pings,
                pongs,
                end: None,
            });
        }
        drop(seen);
        self.counts.send_modify(|counts| counts.accepted += 1);
        index
    }

    pub(crate) fn message(&self, index: usize, message: SeenMessage) {
        self.note(index, |socket| socket.messages.push(message));
        self.counts.send_modify(|counts| counts.messages += 1);
    }

    pub(crate) fn ping(&self, index: usize, payload: Bytes) {
        self.note(index, |socket| socket.pings.push(payload));
        self.counts.send_modify(|counts| counts.controls += 1);
    }

    pub(crate) fn pong(&self, index: usize, payload: Bytes) {
        self.note(index, |socket| socket.pongs.push(payload));
        self.counts.send_modify(|counts| counts.controls += 1);
    }

    pub(crate) fn ended(&self, index: usize, end: SocketEnd) {
        self.note(index, |socket| socket.end = Some(end));
        self.counts.send_modify(|counts| counts.ended += 1);
    }

    pub(crate) fn all(&self) -> Vec<SeenSocket> {
        self.seen().clone()
    }

    pub(crate) fn counts(&self) -> SocketCounts {
        *self.counts.borrow()
    }

    /// Waits until `enough`. Panics after [`WAIT_MAX`] with `expected` and what was seen instead.
    pub(crate) async fn wait(&self, expected: &str, enough: impl FnMut(&SocketCounts) -> bool) {
        let mut counts = self.counts.subscribe();
        let waited = tokio::time::timeout(WAIT_MAX, counts.wait_for(enough))
            .await
            .is_ok();
        assert!(
            waited,
            "scripted upstream: expected {expected} within {WAIT_MAX:?}, saw {:?}: {}",
            self.counts(),
            self.outline(),
        );
    }

    /// Waits until the sockets are as expected. Panics as [`wait`](Self::wait) does.
    pub(crate) async fn wait_until(
        &self,
        expected: &str,
        mut enough: impl FnMut(&[SeenSocket]) -> bool,
    ) {
        self.wait(expected, |_| enough(&self.seen())).await;
    }

    fn note(&self, index: usize, change: impl FnOnce(&mut SeenSocket)) {
        // If only counts are kept, no socket is.
        if let Some(socket) = self.seen().get_mut(index) {
            change(socket);
        }
    }

    /// Returns accounts, message counts and ends; no headers, so that no token is printed by a
    /// test.
    fn outline(&self) -> String {
        let lines = self.all().into_iter().map(|socket| {
            let end = socket
                .end
                .map_or_else(|| "open".to_owned(), |end| format!("{end:?}"));
            let (messages, pings, pongs) = (
                socket.messages.len(),
                socket.pings.len(),
                socket.pongs.len(),
            );
            format!(
                "{} ({messages} messages, {pings} pings, {pongs} pongs, {end})",
                socket.account
            )
        });
        lines.collect::<Vec<_>>().join(", ")
    }

    fn seen(&self) -> MutexGuard<'_, Vec<SeenSocket>> {
        self.seen.lock().expect("no holder of the sockets panics")
    }
}
