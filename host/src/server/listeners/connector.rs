//! Reverse connections to other gateways: this gateway connects, and serves the requests that
//! arrive over the connection as if a client had connected.
//!
//! Owns when a connection is made, and made again. Does not know what happens to a request.
//! Invariant: each credential that asks for a connection has one task, which lasts until the
//! credential is removed or the gateway stops.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::connection::{ConnectedClient, ConnectionContext, serve_http1};
use crate::config::UpstreamRoute;
use crate::credentials::Credential;
use crate::reverse::{
    ConnectorOutcome, MuxEnd, MuxLimits, MuxSession, MuxSide, MuxStream, ReconnectPause,
    ReconnectPauses, ReverseUpgradeError, ask_to_reverse, multiplex,
};
use crate::upstream::UpstreamConnection;
use crate::upstream::dial::DialError;
use crate::values::exchange::client_address::ClientAddress;
use crate::values::phase::GatewayPhase;

/// How long a stream may be idle between two requests.
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// How long requests are accepted that the other gateway sends before it learns that it is to send
/// no more.
const CROSSING_TIMEOUT: Duration = Duration::from_secs(1);

/// Why there is no reverse connection.
#[derive(Debug, thiserror::Error)]
enum ConnectorError {
    /// The configuration does not have the credential any more.
    #[error("the credential was removed")]
    Removed,
    #[error("cannot connect: {0}")]
    Unreachable(#[from] DialError),
    #[error(transparent)]
    Refused(#[from] ReverseUpgradeError),
}

/// The task of one credential. Dropping it ends the task, after the requests in flight.
struct Connector {
    credential: Arc<Credential>,
    /// Over which its connections are made.
    route: UpstreamRoute,
    _stop: watch::Sender<()>,
}

/// Keeps the reverse connections of a service's credentials, as its configuration changes, until
/// the gateway drains.
pub(super) async fn keep_connected(context: ConnectionContext) {
    let mut live = context.live.clone();
    let mut phases = context.phases.clone();
    let mut connectors: Vec<Connector> = Vec::new();
    loop {
        let service = live.now();
        let mut kept = Vec::new();
        for (credential, upstream) in service.credentials().iter().zip(service.upstreams()) {
            if credential.reverse_target().is_none() {
                continue;
            }
            let route = upstream.dialer().route();
            let known = connectors.iter().position(|known| {
                Arc::ptr_eq(&known.credential, credential) && known.route == *route
            });
            kept.push(match known {
                Some(place) => connectors.swap_remove(place),
                None => Connector::start(credential, route, &context),
            });
        }
        connectors = kept;
        drop(service);
        tokio::select! {
            () = live.changed() => {}
            _ = phases.wait_for(|phase| *phase != GatewayPhase::Running) => return,
        }
    }
}

impl Connector {
    fn start(
        credential: &Arc<Credential>,
        route: &UpstreamRoute,
        context: &ConnectionContext,
    ) -> Self {
        let (stop, stopped) = watch::channel(());
        let task = ConnectorTask {
            credential: Arc::clone(credential),
            context: context.clone(),
            stopped,
        };
        tokio::spawn(task.run());
        Self {
            credential: Arc::clone(credential),
            route: route.clone(),
            _stop: stop,
        }
    }
}

struct ConnectorTask {
    credential: Arc<Credential>,
    context: ConnectionContext,
    stopped: watch::Receiver<()>,
}

impl ConnectorTask {
    async fn run(self) {
        let mut pauses = ReconnectPauses::default();
        loop {
            let stopped = self.stopped.clone();
            let connected = tokio::select! {
                connected = self.connect() => connected,
                () = until_stopped(stopped, &self.context) => return,
            };
            let outcome = match connected {
                Ok((io, read)) => {
                    self.credential.record_reversed();
                    match self.serve(io, read).await {
                        Some(outcome) => outcome,
                        None => return,
                    }
                }
                Err(error) => {
                    self.credential.record_not_reversed(error.to_string());
                    tracing::warn!(
                        credential = self.credential.tag(),
                        %error,
                        "reverse connection failed"
                    );
                    ConnectorOutcome::Failed
                }
            };
            let longest = self.context.limits().reverse_pause_max;
            let pause = pauses.after(outcome, longest, chance());
            if matches!(outcome, ConnectorOutcome::AskedToReturn(_))
                && matches!(pause, ReconnectPause::Failure(_))
            {
                tracing::warn!(
                    credential = self.credential.tag(),
                    "reverse connection replaced: does another gateway connect with the same token?"
                );
            }
            tokio::select! {
                () = sleep(pause.length()) => {}
                () = until_stopped(self.stopped.clone(), &self.context) => return,
            }
        }
    }

    /// Connects, and asks the other gateway to reverse the connection. Returns the connection and
    /// what was read from it beyond the response.
    async fn connect(&self) -> Result<(UpstreamConnection, Bytes), ConnectorError> {
        let (url, token) = self
            .credential
            .reverse_target()
            .ok_or(ConnectorError::Removed)?;
        let service = self.context.live.now();
        let place = service
            .credentials()
            .iter()
            .position(|known| Arc::ptr_eq(known, &self.credential))
            .ok_or(ConnectorError::Removed)?;
        let upstream = service.upstreams()[place].clone();
        let limit = service.limits().handshake_timeout;
        drop(service);
        let mut io = upstream.connect(url).await?;
        let read = ask_to_reverse(&mut io, url, token, limit).await?;
        Ok((io, read))
    }

    /// Serves the streams of a connection. Returns once another connection is needed, or with
    /// `None` if this task is to end; the streams may continue.
    async fn serve(&self, io: UpstreamConnection, read: Bytes) -> Option<ConnectorOutcome> {
        let began = Instant::now();
        tracing::info!(
            credential = self.credential.tag(),
            "reverse connection established"
        );
        let limits = MuxLimits::of(&self.context.limits());
        let (session, driver) = multiplex(io, read, MuxSide::Acceptor, limits);
        let task = SessionTask {
            credential: Arc::clone(self.credential.shared_tag()),
            session: session.clone(),
            streams_max: limits.streams,
            context: self.context.clone(),
            stopped: self.stopped.clone(),
        };
        tokio::spawn(task.run(driver));
        tokio::select! {
            () = session.until_closing() => {}
            () = until_stopped(self.stopped.clone(), &self.context) => return None,
        }
        let lasted = began.elapsed();
        Some(if session.was_asked_to_leave() {
            ConnectorOutcome::AskedToReturn(lasted)
        } else {
            ConnectorOutcome::Ended(lasted)
        })
    }
}

/// One connection, until its last stream ends.
struct SessionTask {
    credential: Arc<str>,
    session: MuxSession,
    streams_max: usize,
    context: ConnectionContext,
    stopped: watch::Receiver<()>,
}

impl SessionTask {
    async fn run(self, driver: impl Future<Output = MuxEnd> + Send + 'static) {
        let driver = tokio::spawn(driver);
        let streams = SessionStreams::new(&self.context, self.streams_max);
        tokio::select! {
            () = self.serve_all(&streams) => {}
            () = until_stopped(self.stopped.clone(), &self.context) => {}
        }
        if self.session.end().is_none() {
            self.drain(&streams).await;
        }
        let end = driver.await.unwrap_or(MuxEnd::Closed);
        tracing::info!(credential = %self.credential, %end, "reverse connection ended");
    }

    /// Serves new streams until there are no more.
    async fn serve_all(&self, streams: &SessionStreams) {
        while let Some(stream) = self.session.accept().await {
            streams.serve(stream);
        }
    }

    /// Lets the requests in flight end, unless the gateway aborts them.
    async fn drain(&self, streams: &SessionStreams) {
        let mut phases = self.context.phases.clone();
        let phase = *phases.borrow_and_update();
        tokio::select! {
            () = self.finish(streams, phase) => {}
            // An error means that the gateway was dropped.
            _ = phases.wait_for(|phase| *phase == GatewayPhase::Stopping) => {}
        }
        self.session.close();
    }

    /// Waits for the end of all streams. They end after their requests.
    async fn finish(&self, streams: &SessionStreams, phase: GatewayPhase) {
        if matches!(phase, GatewayPhase::Running | GatewayPhase::Retiring) {
            self.session.announce_end();
            streams.phase.send_replace(GatewayPhase::Retiring);
            let _ = timeout(CROSSING_TIMEOUT, self.serve_all(streams)).await;
        }
        self.session.stop_accepting();
        // Those that were acknowledged before.
        self.serve_all(streams).await;
        streams.phase.send_replace(GatewayPhase::Draining);
        self.session.until_idle().await;
    }
}

/// Serves the requests that arrive over one session.
struct SessionStreams {
    context: ConnectionContext,
    room: Arc<Semaphore>,
    /// Ends the streams: also while the gateway runs, if only their session is to end.
    phase: watch::Sender<GatewayPhase>,
}

impl SessionStreams {
    fn new(context: &ConnectionContext, streams_max: usize) -> Self {
        let (phase, phases) = watch::channel(GatewayPhase::Running);
        Self {
            context: ConnectionContext {
                phases,
                ..context.clone()
            },
            room: Arc::new(Semaphore::new(streams_max)),
            phase,
        }
    }

    fn serve(&self, stream: MuxStream) {
        // The session allows no more streams than that; a WebSocket may outlast its stream.
        if let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() {
            let client = ConnectedClient {
                peer: ClientAddress::Reverse,
                permit: Arc::new(permit),
            };
            tokio::spawn(serve_stream(stream, client, self.context.clone()));
        }
    }
}

/// Waits until a task is to end: its [`Connector`] was dropped, or the gateway drains.
async fn until_stopped(mut stopped: watch::Receiver<()>, context: &ConnectionContext) {
    let mut phases = context.phases.clone();
    let dropped = async { while stopped.changed().await.is_ok() {} };
    tokio::select! {
        () = dropped => {}
        _ = phases.wait_for(|phase| *phase != GatewayPhase::Running) => {}
    }
}

async fn serve_stream(stream: MuxStream, client: ConnectedClient, context: ConnectionContext) {
    let served = serve_http1(TokioIo::new(stream), &client, &context, STREAM_IDLE_TIMEOUT);
    if let Err(error) = served.await {
        tracing::debug!(%error, "stream of a reverse connection ended");
    }
}

/// Returns a random number from 0 to 1.
fn chance() -> f64 {
    let random = Uuid::new_v4().as_u128() as u32;
    f64::from(random) / f64::from(u32::MAX)
}
