//! The responses requested over a socket: each makes a row.
//!
//! Owns the exchanges of the responses in progress; does not know how bytes are relayed. Invariant:
//! room for a row is reserved before the message that requests its response is forwarded.

use std::collections::VecDeque;
use std::sync::Arc;

use http::StatusCode;

use crate::credentials::{Credential, CredentialKind, UpstreamIdentity};
use crate::frames::{MessageKind, POLICY_VIOLATION, ProtocolViolation, TRY_LATER};
use crate::ledger::{RowCommit, RowReservation};
use crate::meter::{ClientMessageScan, UpstreamMessage, UpstreamMessageScan};
use crate::pipeline::answer::settle::settle;
use crate::pipeline::attempt::judge::note_rate_limit;
use crate::pipeline::exchange::Exchange;
use crate::pipeline::service::Service;
use crate::values::clock::Timestamp;
use crate::values::credential::windows::WindowReading;
use crate::values::exchange::ExchangeEnd;

/// The most responses that a client may await at a time on one socket. Upstream produces them one
/// after another.
const OPEN_MAX: usize = 16;

/// The responses of one socket.
pub(super) struct SocketTurns {
    /// The handshake's exchange, which owns the service: every turn begins from it.
    socket: Box<Exchange>,
    credential: Arc<Credential>,
    /// What was presented to upstream in the handshake: what upstream reports is about that
    /// account.
    presented: Arc<UpstreamIdentity>,
    /// The exchanges of the responses that were requested and have not ended, in order.
    open: VecDeque<Box<Exchange>>,
    create: ClientMessageScan,
    event: UpstreamMessageScan,
    /// The room reserved for the message that the client is sending.
    room: Option<RowReservation>,
    /// The kind of the message that each side is sending.
    from_client: Option<MessageKind>,
    from_upstream: Option<MessageKind>,
}

impl SocketTurns {
    pub(super) fn new(
        socket: Box<Exchange>,
        credential: Arc<Credential>,
        presented: Arc<UpstreamIdentity>,
    ) -> Self {
        Self {
            socket,
            credential,
            presented,
            open: VecDeque::new(),
            create: ClientMessageScan::default(),
            event: UpstreamMessageScan::default(),
            room: None,
            from_client: None,
            from_upstream: None,
        }
    }

    /// Returns the exchange of the handshake.
    pub(super) fn socket(&self) -> &Exchange {
        &self.socket
    }

    /// Returns the service that the next turn begins in: the newest in which the socket has a
    /// place.
    pub(super) fn service(&self) -> &Arc<Service> {
        self.socket.service()
    }

    pub(super) fn credential(&self) -> &Arc<Credential> {
        &self.credential
    }

    /// Begins further turns in `service`, if the socket has a place in it. Returns whether it has.
    #[must_use]
    pub(super) fn move_to(&mut self, service: &Arc<Service>) -> bool {
        self.socket.move_to(service, &self.credential)
    }

    /// Returns whether a response is awaited.
    pub(super) fn is_waiting(&self) -> bool {
        !self.open.is_empty()
    }

    /// Called when the client begins a message. Reserves room for its row before any of it is
    /// forwarded.
    ///
    /// # Errors
    /// Returns an error if there is no room, or if as many responses as allowed are awaited.
    pub(super) fn client_begins(&mut self, kind: MessageKind) -> Result<(), ProtocolViolation> {
        self.from_client = Some(kind);
        if kind != MessageKind::Text {
            return Ok(());
        }
        if self.open.len() >= OPEN_MAX {
            return Err(ProtocolViolation {
                code: POLICY_VIOLATION,
                reason: "too many responses are pending: at most 16 on one connection",
            });
        }
        let room = self.service().parts().ledger.reserve();
        self.room = Some(room.map_err(|_| ProtocolViolation {
            code: TRY_LATER,
            reason: "the gateway has no room for a response",
        })?);
        self.create.begin();
        Ok(())
    }

    pub(super) fn client_sends(&mut self, piece: &[u8]) {
        if self.from_client == Some(MessageKind::Text) {
            self.create.feed(piece);
        }
    }

    /// Called when the client's message is complete: the response it requests is awaited from now
    /// on.
    pub(super) fn client_ends(&mut self) {
        let room = self.room.take();
        if self.from_client.take() != Some(MessageKind::Text) {
            return;
        }
        if let (Some(create), Some(room)) = (self.create.end(), room) {
            self.open
                .push_back(self.socket.open_turn(room, &self.credential, create));
        }
    }

    pub(super) fn upstream_begins(&mut self, kind: MessageKind) {
        self.from_upstream = Some(kind);
        if kind == MessageKind::Text {
            self.event.begin();
        }
        if let Some(turn) = self.open.front_mut() {
            turn.begin_answer();
        }
    }

    pub(super) fn upstream_sends(&mut self, piece: &[u8]) {
        if self.from_upstream == Some(MessageKind::Text) {
            self.event.feed(piece);
        }
    }

    /// Called when upstream's message is complete. If it ends a response, its last byte waits for
    /// the row.
    pub(super) fn upstream_ends(&mut self) -> Option<RowCommit> {
        if self.from_upstream.take() != Some(MessageKind::Text) {
            return None;
        }
        match self.event.end(Timestamp::now) {
            UpstreamMessage::Other => None,
            UpstreamMessage::RateLimits(reading) => {
                self.observe(&reading, Timestamp::now());
                None
            }
            UpstreamMessage::Ended(end) => self.settle(end, None),
            UpstreamMessage::Error {
                status,
                reading,
                until,
            } => {
                let now = Timestamp::now();
                self.observe(&reading, now);
                if status == Some(StatusCode::TOO_MANY_REQUESTS.as_u16()) {
                    self.note_refusal(&reading, until, now);
                }
                let status = status.and_then(|status| StatusCode::from_u16(status).ok());
                self.settle(ExchangeEnd::Failed, status)
            }
        }
    }

    fn observe(&self, reading: &WindowReading, now: Timestamp) {
        self.credential.observe(&self.presented, reading, now);
    }

    fn note_refusal(&self, reading: &WindowReading, until: Option<Timestamp>, now: Timestamp) {
        if self.presented.kind() == CredentialKind::ApiKey {
            // The limits of an API key are short and belong to the key: its client handles them.
            return;
        }
        let until = reading.refused_until().or(until);
        note_rate_limit(&self.credential, &self.presented, reading, until, now);
    }

    fn settle(&mut self, end: ExchangeEnd, status: Option<StatusCode>) -> Option<RowCommit> {
        let metered = self.event.finish_response();
        let mut turn = match self.open.pop_front() {
            Some(turn) => turn,
            // No recognised message requested this response; it is recorded all the same.
            None if metered.counts.is_some() => {
                let Ok(room) = self.service().parts().ledger.reserve() else {
                    tracing::error!(
                        ?metered,
                        "usage of an unrequested response, and no room for its row"
                    );
                    return None;
                };
                self.socket
                    .open_turn(room, &self.credential, Default::default())
            }
            None => return None,
        };
        turn.begin_answer();
        if let Some(status) = status {
            turn.fail_with(status);
        }
        settle(&mut turn, end, metered)
    }

    /// Ends the socket: every response that is still awaited ends with `end`.
    pub(super) fn end_all(&mut self, end: ExchangeEnd) {
        let mut metered = self.event.finish_response();
        for mut turn in self.open.drain(..) {
            // What was metered belongs to the response that upstream was sending.
            drop(settle(&mut turn, end, std::mem::take(&mut metered)));
        }
    }
}
