//! The relay of one socket: both directions, and every reason for which it ends.
//!
//! Owns the two directions and the deadlines of the socket; does not know what messages mean
//! (`turns`). Invariant: a socket is closed by the gateway only between responses, or with the
//! error of the response in progress.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::Upgraded;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep_until, timeout};

use super::closing::CloseReason;
use super::flow::{FlowEnd, SocketFlow};
use super::side::SocketSide;
use super::timing::{LastActivity, SocketDeadlines};
use super::turns::SocketTurns;
use super::waking::WakeablePart;
use super::watching::{ClientWatcher, UpstreamWatcher};
use crate::credentials::{Credential, UpstreamIdentity};
use crate::frames::{FrameSender, GOING_AWAY, close_frame, ping_frame};
use crate::pipeline::attempt::select::choice_for_session;
use crate::pipeline::exchange::Exchange;
use crate::pipeline::service::Service;
use crate::pipeline::service::live::LiveService;
use crate::values::clock::Timestamp;
use crate::values::exchange::ExchangeEnd;
use crate::values::phase::GatewayPhase;

/// How long the other side's close frame is awaited (RFC 6455, section 7.1.1, sets no time).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client that leaves has for reading what was already sent to it.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// A socket between a client and upstream.
pub(super) struct SocketRelay {
    live: LiveService,
    /// The responses in progress. They own the service that the next turn begins in.
    turns: SocketTurns,
    /// The direction from the client to upstream.
    up: SocketFlow,
    /// The direction from upstream to the client.
    down: SocketFlow,
    /// The directions that have ended.
    closed: ClosedDirections,
    /// Set if the socket is to close as soon as no response is awaited.
    leaving: Option<CloseReason>,
    activity: LastActivity,
    waits: SocketDeadlines,
}

#[derive(Default)]
struct ClosedDirections {
    up: bool,
    down: bool,
    /// Upstream accepts nothing more. What it sent before is still to be forwarded.
    upstream_broke: bool,
}

/// The parts of the relay that are polled separately, each when it was woken: a message wakes its
/// direction and nothing else. Reading from a side and writing to it wake separately.
struct RelayParts {
    up: WakeablePart,
    down: WakeablePart,
    /// Everything that happens rarely.
    rest: WakeablePart,
}

impl RelayParts {
    async fn new() -> Self {
        poll_fn(|cx| {
            Poll::Ready(Self {
                up: WakeablePart::of(cx),
                down: WakeablePart::of(cx),
                rest: WakeablePart::of(cx),
            })
        })
        .await
    }

    /// Wakes every part, after a change of the relay's state.
    fn touch(&self) {
        self.up.touch();
        self.down.touch();
        self.rest.touch();
    }
}

/// Why a wait ended.
enum RelayWake {
    Flows(RelayOutcome),
    /// The credential or the service changed and is to be checked.
    Changed,
    Phase(GatewayPhase),
    Deadline,
}

/// What relaying both directions led to.
enum RelayOutcome {
    /// Both directions have ended.
    Over(ExchangeEnd),
    /// The client is to be sent the reason for the end.
    Close(CloseReason, ExchangeEnd),
    /// A wait began that has a deadline.
    DeadlinesChanged,
    /// A response has ended and none is awaited: the session can move.
    Between,
}

impl SocketRelay {
    /// Returns a relay for the socket opened by `socket`, the exchange of its handshake, with that
    /// credential.
    pub(super) fn new(
        live: LiveService,
        socket: Box<Exchange>,
        credential: Arc<Credential>,
        presented: Arc<UpstreamIdentity>,
    ) -> Self {
        let bytes_max = socket.service().limits().websocket_message_bytes;
        Self {
            turns: SocketTurns::new(socket, credential, presented),
            live,
            up: SocketFlow::new(FrameSender::Client, bytes_max),
            down: SocketFlow::new(FrameSender::Server, bytes_max),
            closed: ClosedDirections::default(),
            leaving: None,
            activity: LastActivity::new(Instant::now()),
            waits: SocketDeadlines::default(),
        }
    }

    /// Takes the side that `flow` reads from. What was already read is moved out, because the
    /// buffer it is in is large.
    fn side(upgraded: Upgraded, flow: &mut SocketFlow) -> SocketSide {
        let (side, read) = SocketSide::of(upgraded);
        flow.push_unread(&read);
        side
    }

    /// Relays until the socket ends.
    pub(super) async fn run(mut self, client: Upgraded, upstream: Upgraded) {
        let mut client = Self::side(client, &mut self.up);
        let mut upstream = Self::side(upstream, &mut self.down);
        match self.relay(&mut client, &mut upstream).await {
            RelayOutcome::Close(reason, end) => {
                self.turns.end_all(end);
                self.close(reason, &mut client, &mut upstream).await;
            }
            RelayOutcome::Over(end) => self.turns.end_all(end),
            RelayOutcome::DeadlinesChanged | RelayOutcome::Between => {}
        }
        // Whether either side is still connected no longer matters.
        let _ = timeout(SHUTDOWN_TIMEOUT, client.shutdown()).await;
        let _ = timeout(SHUTDOWN_TIMEOUT, upstream.shutdown()).await;
    }

    async fn relay(&mut self, client: &mut SocketSide, upstream: &mut SocketSide) -> RelayOutcome {
        let mut phases = self.service().parts().phases.clone();
        let phase = *phases.borrow_and_update();
        self.observe_phase(phase);
        let mut live = self.live.clone();
        let mut wakings = RelayParts::new().await;
        loop {
            self.move_to(&live.now());
            let credential = Arc::clone(self.turns.credential());
            // Subscribed before the state is read, so that no change is missed in between.
            let withdrawn = credential.until_unusable();
            if !credential.candidate(Timestamp::now()).usable {
                self.close_when_idle(CloseReason::CredentialUnusable);
            }
            let wake = self.next_check();
            let mut rest = pin!(async {
                tokio::select! {
                    () = withdrawn => RelayWake::Changed,
                    () = live.changed() => RelayWake::Changed,
                    changed = phases.changed() => match changed {
                        Ok(()) => RelayWake::Phase(*phases.borrow_and_update()),
                        Err(_) => RelayWake::Phase(GatewayPhase::Stopping),
                    },
                    () = sleep_until(wake) => RelayWake::Deadline,
                }
            });
            wakings.touch();
            let woken = poll_fn(|cx| match self.poll(cx, &mut wakings, client, upstream) {
                Poll::Ready(outcome) => Poll::Ready(RelayWake::Flows(outcome)),
                Poll::Pending => wakings.rest.poll(cx, |cx| rest.as_mut().poll(cx)),
            });
            match woken.await {
                RelayWake::Flows(RelayOutcome::DeadlinesChanged) | RelayWake::Changed => {}
                RelayWake::Flows(RelayOutcome::Between) => {
                    if self.should_move().await {
                        self.close_when_idle(CloseReason::SessionMoves);
                    }
                }
                RelayWake::Flows(outcome) => return outcome,
                RelayWake::Phase(GatewayPhase::Stopping) => {
                    return RelayOutcome::Over(ExchangeEnd::ClientGone);
                }
                RelayWake::Phase(phase) => self.observe_phase(phase),
                RelayWake::Deadline => {
                    if let Some(outcome) = self.check_deadlines(Instant::now()) {
                        return outcome;
                    }
                }
            }
        }
    }

    fn observe_phase(&mut self, phase: GatewayPhase) {
        if phase != GatewayPhase::Running {
            self.close_when_idle(CloseReason::ShuttingDown);
        }
    }

    /// Closes the socket as soon as no response is awaited.
    fn close_when_idle(&mut self, reason: CloseReason) {
        self.leaving.get_or_insert(reason);
    }

    /// Sends both sides the reason for the end, and waits until the client has read it.
    async fn close(
        &mut self,
        reason: CloseReason,
        client: &mut SocketSide,
        upstream: &mut SocketSide,
    ) {
        let closing = async {
            let frame = close_frame(FrameSender::Server, reason.code(), reason.text());
            if self.closed.down || self.down.finish(client, &frame).await.is_err() {
                return;
            }
            if !self.closed.up {
                // Upstream may be gone; the client's own close frame then has no receiver.
                let _ = self
                    .up
                    .finish(upstream, &close_frame(FrameSender::Client, GOING_AWAY, ""))
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
        wakings: &mut RelayParts,
        client: &mut SocketSide,
        upstream: &mut SocketSide,
    ) -> Poll<RelayOutcome> {
        if !self.closed.up {
            let mut watcher = ClientWatcher {
                turns: &mut self.turns,
                activity: &mut self.activity,
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
            let mut watcher = UpstreamWatcher {
                turns: &mut self.turns,
                activity: &mut self.activity,
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
            self.activity.now.client |= self.down.made_progress();
        }
        self.activity.update();
        if self.closed.up && self.closed.down {
            return Poll::Ready(RelayOutcome::Over(ExchangeEnd::ClientGone));
        }
        if self.is_between_turns() {
            if let Some(reason) = self.leaving {
                return Poll::Ready(RelayOutcome::Close(reason, ExchangeEnd::ClientGone));
            }
            if std::mem::take(&mut self.activity.turn_ended) {
                return Poll::Ready(RelayOutcome::Between);
            }
        }
        if self.update_deadlines() {
            Poll::Ready(RelayOutcome::DeadlinesChanged)
        } else {
            Poll::Pending
        }
    }

    /// Returns whether no response is awaited or being sent. By then an error, like any end of a
    /// response, has reached the client.
    fn is_between_turns(&self) -> bool {
        !self.turns.is_waiting()
            && self.down.is_at_rest()
            && !self.closed.down
            && !self.closed.upstream_broke
    }

    /// Returns whether the session would be given another credential if it arrived now.
    async fn should_move(&self) -> bool {
        let choice = choice_for_session(self.turns.socket(), Timestamp::now()).await;
        choice.is_some_and(|choice| !Arc::ptr_eq(&choice, self.turns.credential()))
    }

    fn service(&self) -> &Service {
        self.turns.service()
    }

    /// Begins further turns in the current service; turns in progress keep theirs. If the socket
    /// has no place in that service, it closes as soon as no response is awaited.
    fn move_to(&mut self, now: &Arc<Service>) {
        if !Arc::ptr_eq(now, self.turns.service()) && !self.turns.move_to(now) {
            self.close_when_idle(CloseReason::ConfigurationChanged);
        }
    }

    /// Returns whether a wait has begun or ended since the last call.
    fn update_deadlines(&mut self) -> bool {
        let limits = self.service().limits();
        let before = self.waits;
        let one_closed = self.closed.up || self.closed.down;
        let now = Instant::now;
        self.waits = SocketDeadlines {
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

    /// Returns what becomes of the socket if this ends it.
    fn up_ended(&mut self, end: FlowEnd) -> Option<RelayOutcome> {
        match end {
            // Upstream answers the close frame, and its answer is forwarded to the client.
            FlowEnd::Closed | FlowEnd::NotRecorded => {
                self.closed.up = true;
                None
            }
            FlowEnd::SenderGone => Some(RelayOutcome::Over(ExchangeEnd::ClientGone)),
            FlowEnd::ReceiverGone => {
                // The reason may be in transit: an error, or the end of a response, reaches the
                // client before anything is closed.
                self.closed.up = true;
                self.closed.upstream_broke = true;
                None
            }
            FlowEnd::Violation(violation) => Some(RelayOutcome::Close(
                CloseReason::ClientViolation(violation),
                ExchangeEnd::ClientGone,
            )),
        }
    }

    fn down_ended(&mut self, end: FlowEnd) -> Option<RelayOutcome> {
        match end {
            FlowEnd::Closed => {
                // It may answer the client's close frame.
                let answers_client = self.closed.up && !self.closed.upstream_broke;
                self.turns.end_all(if answers_client {
                    ExchangeEnd::ClientGone
                } else {
                    ExchangeEnd::UpstreamGone
                });
                self.closed.down = true;
                None
            }
            FlowEnd::ReceiverGone => Some(RelayOutcome::Over(ExchangeEnd::ClientGone)),
            FlowEnd::SenderGone if self.closed.up && !self.closed.upstream_broke => {
                Some(RelayOutcome::Over(ExchangeEnd::ClientGone))
            }
            FlowEnd::SenderGone => Some(RelayOutcome::Close(
                CloseReason::UpstreamClosed,
                ExchangeEnd::UpstreamGone,
            )),
            FlowEnd::Violation(violation) => {
                tracing::warn!(
                    what = violation.reason,
                    "upstream broke the WebSocket protocol"
                );
                Some(RelayOutcome::Close(
                    CloseReason::UpstreamClosed,
                    ExchangeEnd::UpstreamGone,
                ))
            }
            FlowEnd::NotRecorded => Some(RelayOutcome::Close(
                CloseReason::NotRecorded,
                ExchangeEnd::Failed,
            )),
        }
    }

    /// Returns the time of the next check at the latest.
    fn next_check(&self) -> Instant {
        let limits = self.service().limits();
        // While a response is awaited, upstream may be silent for as long as its limit allows.
        let idle = (!self.turns.is_waiting())
            .then(|| self.activity.message + limits.websocket_idle_timeout);
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

    /// Returns when the client is to be sent a ping, or has failed to answer one.
    fn ping_at(&self) -> Instant {
        let interval = self.service().limits().websocket_ping_interval;
        self.activity.client
            + if self.activity.pinged {
                interval * 2
            } else {
                interval
            }
    }

    /// Returns when upstream has been silent for too long.
    fn silent_at(&self) -> Option<Instant> {
        self.turns
            .is_waiting()
            .then(|| self.activity.upstream + self.service().limits().upstream_idle_timeout)
    }

    fn check_deadlines(&mut self, now: Instant) -> Option<RelayOutcome> {
        let is_over = |end: Option<Instant>| end.is_some_and(|end| end <= now);
        if is_over(self.waits.for_close) && self.closed.upstream_broke && !self.closed.down {
            return Some(RelayOutcome::Close(
                CloseReason::UpstreamClosed,
                ExchangeEnd::UpstreamGone,
            ));
        }
        if is_over(self.waits.for_close) {
            return Some(RelayOutcome::Over(ExchangeEnd::ClientGone));
        }
        if is_over(self.waits.for_commit) {
            return Some(RelayOutcome::Close(
                CloseReason::NotRecorded,
                ExchangeEnd::Failed,
            ));
        }
        if is_over(self.silent_at()) {
            return Some(RelayOutcome::Close(
                CloseReason::UpstreamSilent,
                ExchangeEnd::UpstreamGone,
            ));
        }
        let idle_limit = self.service().limits().websocket_idle_timeout;
        if !self.turns.is_waiting() && self.activity.message + idle_limit <= now {
            return Some(RelayOutcome::Close(
                CloseReason::Idle,
                ExchangeEnd::ClientGone,
            ));
        }
        if self.ping_at() <= now {
            if self.activity.pinged {
                // Nothing was received, not even a pong.
                return Some(RelayOutcome::Over(ExchangeEnd::ClientGone));
            }
            self.activity.pinged = true;
            self.down.send_own(&ping_frame(FrameSender::Server));
        }
        None
    }
}
