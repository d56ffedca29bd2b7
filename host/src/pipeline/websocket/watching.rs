//! The observers that read the two directions of a socket on the side.

use super::flow::FlowWatcher;
use super::timing::LastActivity;
use super::turns::SocketTurns;
use crate::frames::{MessageKind, ProtocolViolation};
use crate::ledger::RowCommit;

/// Reads what the client sends.
pub(super) struct ClientWatcher<'a> {
    pub(super) turns: &'a mut SocketTurns,
    pub(super) activity: &'a mut LastActivity,
}

impl FlowWatcher for ClientWatcher<'_> {
    fn begin(&mut self, kind: MessageKind) -> Result<(), ProtocolViolation> {
        self.activity.now.message = true;
        self.control();
        self.turns.client_begins(kind)
    }

    fn data(&mut self, piece: &[u8]) {
        self.control();
        self.turns.client_sends(piece);
    }

    fn end(&mut self) -> Option<RowCommit> {
        self.control();
        self.turns.client_ends();
        // Upstream's silence counts from here.
        self.activity.now.upstream = true;
        None
    }

    fn control(&mut self) {
        self.activity.now.client = true;
    }
}

/// Reads what upstream sends.
pub(super) struct UpstreamWatcher<'a> {
    pub(super) turns: &'a mut SocketTurns,
    pub(super) activity: &'a mut LastActivity,
}

impl FlowWatcher for UpstreamWatcher<'_> {
    fn begin(&mut self, kind: MessageKind) -> Result<(), ProtocolViolation> {
        self.control();
        self.activity.now.message = true;
        self.turns.upstream_begins(kind);
        Ok(())
    }

    fn data(&mut self, piece: &[u8]) {
        self.control();
        self.turns.upstream_sends(piece);
    }

    fn end(&mut self) -> Option<RowCommit> {
        let commit = self.turns.upstream_ends();
        self.activity.turn_ended |= commit.is_some();
        commit
    }

    fn control(&mut self) {
        self.activity.now.upstream = true;
    }
}
