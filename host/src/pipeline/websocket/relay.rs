//! The relay of one socket: both directions, and everything that ends it.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::Upgraded;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep_until, timeout};

use super::flow::{Flow, FlowEnd, Watcher};
use super::side::Side;
use super::turns::Turns;
use super::waking::Part;
use crate::credentials::{Credential, Identity};
use crate::frames::{
    GOING_AWAY, INTERNAL_ERROR, RESTART, Sender, Violation, close_frame, ping_frame,
};
use crate::ledger::Commit;
use crate::pipeline::attempt::select::choice_for_session;
use crate::pipeline::exchange::Exchange;
use crate::pipeline::service::{LiveService, Service};
use crate::values::clock::Timestamp;
use crate::values::exchange::End;
use crate::values::phase::Phase;

/// After a close frame, the other side's is waited for so long (RFC 6455, section 7.1.1 leaves it open).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A client that leaves may read what is on its way to it for so long.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// What closes a socket from here.
#[derive(Debug, Clone, Copy)]
struct Reason {
    code: u16,
    text: &'static str,
}

const USED_UP: Reason = Reason {
    code: RESTART,
    text: "the credential is used up: connect again",
};
const MOVES: Reason = Reason {
    code: RESTART,
    text: "the session moves to another credential: connect again",
};
const CHANGED: Reason = Reason {
    code: RESTART,
    text: "the gateway's configuration changed: connect again",
};
const STOPS: Reason = Reason {
    code: RESTART,
    text: "the gateway stops: connect again",
};
const IDLE: Reason = Reason {
    code: GOING_AWAY,
    text: "nothing was asked for a long time",
};
const BROKE: Reason = Reason {
    code: INTERNAL_ERROR,
    text: "upstream broke off",
};
const SILENT: Reason = Reason {
    code: INTERNAL_ERROR,
    text: "upstream fell silent",
};
const NOT_RECORDED: Reason = Reason {
    code: INTERNAL_ERROR,
    text: "the ledger did not take the response's row in time",
};

/// A socket between a client and upstream.
pub(super) struct Relay {
    live: LiveService,
    /// They own the service that the next turn begins in.
    turns: Turns,
    /// From the client to upstream.
    up: Flow,
    /// From upstream to the client.
    down: Flow,
    /// Which directions are over.
    closed: Closed,
    /// It is to be closed when no response is waited for any more.
    leaving: Option<Reason>,
    heard: Heard,
    waits: Waits,
}

#[derive(Default)]
struct Closed {
    up: bool,
    down: bool,
    /// Upstream takes nothing more. What it sent before that is still to come.
    upstream_broke: bool,
}

/// The last sign of life of each side.
struct Heard {
    client: Instant,
    upstream: Instant,
    /// The last message of either.
    message: Instant,
    /// What was heard since that was looked at: the clock is read once for all of it.
    now: News,
    /// The client was sent a ping since.
    pinged: bool,
    /// A response ended since that was looked at.
    turn_ended: bool,
}

/// Signs of life that are not in [`Heard`] yet.
#[derive(Default)]
struct News {
    client: bool,
    upstream: bool,
    message: bool,
}

impl Heard {
    fn take_in(&mut self) {
        let News {
            client,
            upstream,
            message,
        } = std::mem::take(&mut self.now);
        if !(client || upstream || message) {
            return;
        }
        let now = Instant::now();
        if client {
            self.client = now;
            self.pinged = false;
        }
        if upstream {
            self.upstream = now;
        }
        if message {
            self.message = now;
        }
    }
}

/// What does not go on for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Waits {
    /// One side has closed, and the other is to follow until then.
    for_close: Option<Instant>,
    /// A response's end waits for its row, at most until then.
    for_commit: Option<Instant>,
}

/// What is polled when it was woken, of all that a socket waits for. A message wakes its direction, and nothing else looks.
/// Reading a side and writing to it wake separately: no more than that is asked of what a side is made of.
struct Wakings {
    up: Part,
    down: Part,
    /// Whatever seldom happens.
    rest: Part,
}

impl Wakings {
    async fn here() -> Self {
        poll_fn(|cx| {
            Poll::Ready(Self {
                up: Part::of(cx),
                down: Part::of(cx),
                rest: Part::of(cx),
            })
        })
        .await
    }

    /// Something of the relay's own changed: all of it is looked at.
    fn touch(&self) {
        self.up.touch();
        self.down.touch();
        self.rest.touch();
    }
}

/// What ends a wait.
enum Wake {
    Flows(Outcome),
    /// The credential or the service is to be looked at.
    Look,
    Phase(Phase),
    Time,
}

/// What the two directions came to.
enum Outcome {
    /// Nothing is left to relay.
    Over(End),
    /// The client is to be told why it ends.
    Close(Reason, End),
    /// Something has begun that must not go on for ever.
    Waits,
    /// A response has ended, and none is waited for: it is time to look whether the session should move.
    Between,
}

impl Relay {
    /// A relay for the socket that was opened by `socket`, the exchange of its handshake, with that credential.
    pub(super) fn new(
        live: LiveService,
        socket: Box<Exchange>,
        credential: Arc<Credential>,
        presented: Arc<Identity>,
    ) -> Self {
        let bytes_max = socket.service().limits().websocket_message_bytes;
        let now = Instant::now();
        Self {
            turns: Turns::new(socket, credential, presented),
            live,
            up: Flow::new(Sender::Client, bytes_max),
            down: Flow::new(Sender::Server, bytes_max),
            closed: Closed::default(),
            leaving: None,
            heard: Heard {
                client: now,
                upstream: now,
                message: now,
                now: News::default(),
                pinged: false,
                turn_ended: false,
            },
            waits: Waits::default(),
        }
    }

    /// The side that `flow` comes from. What was read of it already is taken over: the buffer that it lies in is large.
    fn side(upgraded: Upgraded, flow: &mut Flow) -> Side {
        let (side, read) = Side::of(upgraded);
        flow.was_read(&read);
        side
    }

    /// Relays until the socket is over.
    pub(super) async fn run(mut self, client: Upgraded, upstream: Upgraded) {
        let mut client = Self::side(client, &mut self.up);
        let mut upstream = Self::side(upstream, &mut self.down);
        match self.relay(&mut client, &mut upstream).await {
            Outcome::Close(reason, end) => {
                self.turns.over(end);
                self.close(reason, &mut client, &mut upstream).await;
            }
            Outcome::Over(end) => self.turns.over(end),
            Outcome::Waits | Outcome::Between => {}
        }
        // Whether they are still there does not matter any more.
        let _ = timeout(SHUTDOWN_TIMEOUT, client.shutdown()).await;
        let _ = timeout(SHUTDOWN_TIMEOUT, upstream.shutdown()).await;
    }

    async fn relay(&mut self, client: &mut Side, upstream: &mut Side) -> Outcome {
        let mut phases = self.service().parts().phases.clone();
        let phase = *phases.borrow_and_update();
        self.phase(phase);
        let mut live = self.live.clone();
        let mut wakings = Wakings::here().await;
        loop {
            self.move_to(&live.now());
            let credential = Arc::clone(self.turns.credential());
            // Listened for before it is asked: what happens in between must not be missed.
            let withdrawn = credential.turns_unusable();
            if !credential.candidate(Timestamp::now(), false).usable {
                self.leave(USED_UP);
            }
            let wake = self.wake_at();
            let mut rest = pin!(async {
                tokio::select! {
                    () = withdrawn => Wake::Look,
                    () = live.changed() => Wake::Look,
                    changed = phases.changed() => match changed {
                        Ok(()) => Wake::Phase(*phases.borrow_and_update()),
                        Err(_) => Wake::Phase(Phase::Ending),
                    },
                    () = sleep_until(wake) => Wake::Time,
                }
            });
            wakings.touch();
            let woken = poll_fn(|cx| match self.poll(cx, &mut wakings, client, upstream) {
                Poll::Ready(outcome) => Poll::Ready(Wake::Flows(outcome)),
                Poll::Pending => wakings.rest.poll(cx, |cx| rest.as_mut().poll(cx)),
            });
            match woken.await {
                Wake::Flows(Outcome::Waits) | Wake::Look => {}
                Wake::Flows(Outcome::Between) => {
                    if self.moves().await {
                        self.leave(MOVES);
                    }
                }
                Wake::Flows(outcome) => return outcome,
                Wake::Phase(Phase::Ending) => return Outcome::Over(End::ClientGone),
                Wake::Phase(phase) => self.phase(phase),
                Wake::Time => {
                    if let Some(outcome) = self.wake(Instant::now()) {
                        return outcome;
                    }
                }
            }
        }
    }

    fn phase(&mut self, phase: Phase) {
        if phase != Phase::Serving {
            self.leave(STOPS);
        }
    }

    /// It closes as soon as no response is waited for.
    fn leave(&mut self, reason: Reason) {
        self.leaving.get_or_insert(reason);
    }

    /// Tells both sides why it ends, and waits for the client to have read it.
    async fn close(&mut self, reason: Reason, client: &mut Side, upstream: &mut Side) {
        let closing = async {
            let told = close_frame(Sender::Server, reason.code, reason.text);
            if self.closed.down || self.down.finish(client, &told).await.is_err() {
                return;
            }
            if !self.closed.up {
                // Upstream may be gone; the client's own close frame goes nowhere then.
                let _ = self
                    .up
                    .finish(upstream, &close_frame(Sender::Client, GOING_AWAY, ""))
                    .await;
            }
            if !self.closed.up || self.closed.upstream_broke {
                self.up.drain(client).await;
            }
        };
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
    }

    fn poll(
        &mut self,
        cx: &Context<'_>,
        wakings: &mut Wakings,
        client: &mut Side,
        upstream: &mut Side,
    ) -> Poll<Outcome> {
        if !self.closed.up {
            let mut watcher = Up {
                turns: &mut self.turns,
                heard: &mut self.heard,
            };
            let up = &mut self.up;
            let polled = wakings.up.poll(cx, |cx| {
                up.poll(cx, Pin::new(client), Pin::new(upstream), &mut watcher)
            });
            if let Poll::Ready(end) = polled
                && let Some(outcome) = self.up_ended(end)
            {
                return Poll::Ready(outcome);
            }
        }
        if !self.closed.down {
            let mut watcher = Down {
                turns: &mut self.turns,
                heard: &mut self.heard,
            };
            let down = &mut self.down;
            let polled = wakings.down.poll(cx, |cx| {
                down.poll(cx, Pin::new(upstream), Pin::new(client), &mut watcher)
            });
            if let Poll::Ready(end) = polled
                && let Some(outcome) = self.down_ended(end)
            {
                return Poll::Ready(outcome);
            }
            self.heard.now.client |= self.down.made_progress();
        }
        self.heard.take_in();
        if self.closed.up && self.closed.down {
            return Poll::Ready(Outcome::Over(End::ClientGone));
        }
        if self.is_between_turns() {
            if let Some(reason) = self.leaving {
                return Poll::Ready(Outcome::Close(reason, End::ClientGone));
            }
            if std::mem::take(&mut self.heard.turn_ended) {
                return Poll::Ready(Outcome::Between);
            }
        }
        if self.waits_anew() {
            Poll::Ready(Outcome::Waits)
        } else {
            Poll::Pending
        }
    }

    /// Whether no response is waited for or on its way. An error, as any end of a response, has reached the client by then.
    fn is_between_turns(&self) -> bool {
        !self.turns.is_waiting()
            && self.down.is_at_rest()
            && !self.closed.down
            && !self.closed.upstream_broke
    }

    /// Whether the session would be given another credential if it came now.
    async fn moves(&self) -> bool {
        let choice = choice_for_session(self.turns.socket(), Timestamp::now()).await;
        choice.is_some_and(|choice| !Arc::ptr_eq(&choice, self.turns.credential()))
    }

    fn service(&self) -> &Service {
        self.turns.service()
    }

    /// Further turns begin in the service as it is now; those under way keep theirs. Where the socket has no place in it any
    /// more, it closes as soon as no response is waited for.
    fn move_to(&mut self, now: &Arc<Service>) {
        if !Arc::ptr_eq(now, self.turns.service()) && !self.turns.move_to(now) {
            self.leave(CHANGED);
        }
    }

    /// Whether a wait has begun, or ended, since this was asked.
    fn waits_anew(&mut self) -> bool {
        let limits = self.service().limits();
        let before = self.waits;
        let one_closed = self.closed.up || self.closed.down;
        let now = Instant::now;
        self.waits = Waits {
            for_close: one_closed
                .then(|| before.for_close.unwrap_or_else(|| now() + CLOSE_TIMEOUT)),
            for_commit: self.down.is_held().then(|| {
                before
                    .for_commit
                    .unwrap_or_else(|| now() + limits.commit_timeout)
            }),
        };
        self.waits != before
    }

    /// Answers what becomes of the socket, where this ends it.
    fn up_ended(&mut self, end: FlowEnd) -> Option<Outcome> {
        match end {
            // Upstream answers it, and that goes to the client.
            FlowEnd::Closed | FlowEnd::NotRecorded => {
                self.closed.up = true;
                None
            }
            FlowEnd::SenderGone => Some(Outcome::Over(End::ClientGone)),
            FlowEnd::ReceiverGone => {
                // Why may be on its way: an error, or the end of a response, reaches the client before anything is closed.
                self.closed.up = true;
                self.closed.upstream_broke = true;
                None
            }
            FlowEnd::Violation(Violation { code, what }) => {
                Some(Outcome::Close(Reason { code, text: what }, End::ClientGone))
            }
        }
    }

    fn down_ended(&mut self, end: FlowEnd) -> Option<Outcome> {
        match end {
            FlowEnd::Closed => {
                // It may be the answer to the client's.
                let answers_client = self.closed.up && !self.closed.upstream_broke;
                self.turns.over(if answers_client {
                    End::ClientGone
                } else {
                    End::UpstreamGone
                });
                self.closed.down = true;
                None
            }
            FlowEnd::ReceiverGone => Some(Outcome::Over(End::ClientGone)),
            FlowEnd::SenderGone if self.closed.up && !self.closed.upstream_broke => {
                Some(Outcome::Over(End::ClientGone))
            }
            FlowEnd::SenderGone => Some(Outcome::Close(BROKE, End::UpstreamGone)),
            FlowEnd::Violation(violation) => {
                tracing::warn!(
                    what = violation.what,
                    "upstream broke the WebSocket protocol"
                );
                Some(Outcome::Close(BROKE, End::UpstreamGone))
            }
            FlowEnd::NotRecorded => Some(Outcome::Close(NOT_RECORDED, End::Failed)),
        }
    }

    /// When something is to be looked at, at the latest.
    fn wake_at(&self) -> Instant {
        let limits = self.service().limits();
        // One that is waited for may be quiet for as long as upstream may.
        let idle =
            (!self.turns.is_waiting()).then(|| self.heard.message + limits.websocket_idle_timeout);
        let others = [
            self.waits.for_close,
            self.waits.for_commit,
            self.silent_at(),
            idle,
        ];
        others
            .into_iter()
            .flatten()
            .fold(self.ping_at(), Instant::min)
    }

    /// When the client is to be sent a ping, or has not answered it.
    fn ping_at(&self) -> Instant {
        let interval = self.service().limits().websocket_ping_interval;
        self.heard.client
            + if self.heard.pinged {
                interval * 2
            } else {
                interval
            }
    }

    /// When upstream has been silent for too long.
    fn silent_at(&self) -> Option<Instant> {
        self.turns
            .is_waiting()
            .then(|| self.heard.upstream + self.service().limits().upstream_idle_timeout)
    }

    fn wake(&mut self, now: Instant) -> Option<Outcome> {
        let is_over = |end: Option<Instant>| end.is_some_and(|end| end <= now);
        if is_over(self.waits.for_close) && self.closed.upstream_broke && !self.closed.down {
            return Some(Outcome::Close(BROKE, End::UpstreamGone));
        }
        if is_over(self.waits.for_close) {
            return Some(Outcome::Over(End::ClientGone));
        }
        if is_over(self.waits.for_commit) {
            return Some(Outcome::Close(NOT_RECORDED, End::Failed));
        }
        if is_over(self.silent_at()) {
            return Some(Outcome::Close(SILENT, End::UpstreamGone));
        }
        let idle_limit = self.service().limits().websocket_idle_timeout;
        if !self.turns.is_waiting() && self.heard.message + idle_limit <= now {
            return Some(Outcome::Close(IDLE, End::ClientGone));
        }
        if self.ping_at() <= now {
            if self.heard.pinged {
                // Nothing came back, not even an answer to a ping.
                return Some(Outcome::Over(End::ClientGone));
            }
            self.heard.pinged = true;
            self.down.send_own(&ping_frame(Sender::Server));
        }
        None
    }
}

/// Reads what the client sends.
struct Up<'a> {
    turns: &'a mut Turns,
    heard: &'a mut Heard,
}

impl Watcher for Up<'_> {
    fn begin(&mut self, text: bool) -> Result<(), Violation> {
        self.heard.now.message = true;
        self.control();
        self.turns.client_begins(text)
    }

    fn data(&mut self, piece: &[u8]) {
        self.control();
        self.turns.client_sends(piece);
    }

    fn end(&mut self) -> Option<Commit> {
        self.control();
        self.turns.client_ends();
        // Upstream's silence counts from here.
        self.heard.now.upstream = true;
        None
    }

    fn control(&mut self) {
        self.heard.now.client = true;
    }
}

/// Reads what upstream sends.
struct Down<'a> {
    turns: &'a mut Turns,
    heard: &'a mut Heard,
}

impl Watcher for Down<'_> {
    fn begin(&mut self, text: bool) -> Result<(), Violation> {
        self.control();
        self.heard.now.message = true;
        self.turns.upstream_begins(text);
        Ok(())
    }

    fn data(&mut self, piece: &[u8]) {
        self.control();
        self.turns.upstream_sends(piece);
    }

    fn end(&mut self) -> Option<Commit> {
        let commit = self.turns.upstream_ends();
        self.heard.turn_ended |= commit.is_some();
        commit
    }

    fn control(&mut self) {
        self.heard.now.upstream = true;
    }
}
