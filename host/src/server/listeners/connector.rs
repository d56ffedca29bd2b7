//! Reverse connections to other gateways: this gateway connects, and serves the requests that
//! arrive over the connection as if a client had connected.
//!
//! Owns when a connection is made, and made again. Does not know what happens to a request.
//! Invariant: each credential that asks for a connection has one task, which lasts until the
//! credential is removed or the gateway stops.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::connection::{ConnectedClient, ConnectionContext, serve_http1};
use crate::credentials::Credential;
use crate::reverse::{
    MuxEnd, MuxLimits, MuxSession, MuxSide, MuxStream, ReconnectPauses, ReverseUpgradeError,
    ask_to_reverse, multiplex,
};
use crate::upstream::UpstreamConnection;
use crate::upstream::dial::DialError;
use crate::values::exchange::client_address::ClientAddress;
use crate::values::phase::GatewayPhase;

/// How long a stream may be idle between two requests.
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// A session that the other side ends within this time was probably replaced.
const REPLACED_WITHIN: Duration = Duration::from_secs(60);

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
        for credential in service.credentials() {
            if credential.reverse_target().is_none() {
                continue;
            }
            let known = connectors
                .iter()
                .position(|known| Arc::ptr_eq(&known.credential, credential));
            kept.push(match known {
                Some(place) => connectors.swap_remove(place),
                None => Connector::start(credential, &context),
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
    fn start(credential: &Arc<Credential>, context: &ConnectionContext) -> Self {
        let (stop, stopped) = watch::channel(());
        let task = ConnectorTask {
            credential: Arc::clone(credential),
            context: context.clone(),
            stopped,
        };
        tokio::spawn(task.run());
        Self {
            credential: Arc::clone(credential),
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
            let lasted = match connected {
                Ok((io, read)) => self.serve(io, read).await,
                Err(error) => {
                    tracing::warn!(
                        credential = self.credential.tag(),
                        %error,
                        "reverse connection failed"
                    );
                    Duration::ZERO
                }
            };
            let longest = self.context.limits().reverse_pause_max;
            let pause = pauses.after(lasted, longest, chance());
            tokio::select! {
                () = sleep(pause) => {}
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

    /// Serves the streams of a connection. Returns once another connection is needed, with how long
    /// this one lasted; its streams may continue.
    async fn serve(&self, io: UpstreamConnection, read: Bytes) -> Duration {
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
            () = until_stopped(self.stopped.clone(), &self.context) => return began.elapsed(),
        }
        let lasted = began.elapsed();
        if lasted < REPLACED_WITHIN {
            tracing::warn!(
                credential = self.credential.tag(),
                "reverse connection ended early: does another gateway connect with the same token?"
            );
        }
        lasted
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
        self.accept_streams().await;
        if self.session.end().is_none() {
            self.drain().await;
        }
        let end = driver.await.unwrap_or(MuxEnd::Closed);
        tracing::info!(credential = %self.credential, %end, "reverse connection ended");
    }

    /// Serves new streams until the session ends or this task is to end.
    async fn accept_streams(&self) {
        let room = Arc::new(Semaphore::new(self.streams_max));
        let mut stopped = pin!(until_stopped(self.stopped.clone(), &self.context));
        loop {
            let stream = tokio::select! {
                stream = self.session.accept() => stream,
                () = stopped.as_mut() => return,
            };
            let Some(stream) = stream else {
                return;
            };
            // The session allows no more streams than that; a WebSocket may outlast its stream.
            if let Ok(permit) = Arc::clone(&room).try_acquire_owned() {
                let client = ConnectedClient {
                    peer: ClientAddress::Reverse,
                    permit: Arc::new(permit),
                };
                tokio::spawn(serve_stream(stream, client, self.context.clone()));
            }
        }
    }

    /// Lets the requests in flight end, unless the gateway aborts them.
    async fn drain(&self) {
        self.session.stop_accepting();
        let mut phases = self.context.phases.clone();
        tokio::select! {
            () = self.session.until_idle() => {}
            // An error means that the gateway was dropped.
            _ = phases.wait_for(|phase| *phase == GatewayPhase::Stopping) => {}
        }
        self.session.close();
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
