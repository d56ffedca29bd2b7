//! What operators ask the running gateway: HTTP/1.1 on a Unix socket in `data_dir`, for the gateway's own user and root
//! alone, and on a listener where the configuration has one.

mod scrape;

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::status::Board;
use super::supervisor::{Command, Reply};
use super::upkeep::Tasks;
use crate::credentials::Health;
use crate::files::{plain, remove};
use crate::metrics::CONTENT_TYPE as CONTENT_TYPE_OF_METRICS;
use crate::values::clock::Timestamp;
use crate::values::phase::Phase;
use crate::values::secret::Secret;

/// The socket's name in `data_dir`.
pub const SOCKET: &str = "admin.sock";

/// Connections at a time, of each listener.
const CONNECTIONS: usize = 16;

/// A connection's whole life: a question and its answer. Loading a policy may take a while.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);

/// To the end of a question.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// After an accept that failed.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How the gateway's credentials are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// When that was so, in Unix milliseconds.
    pub at: u64,
    /// The services.
    pub services: Vec<ServiceStatus>,
}

/// How a service's credentials are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceStatus {
    /// The service's tag.
    pub service: String,
    /// Its credentials, in the order of the configuration.
    pub credentials: Vec<CredentialStatus>,
}

/// How a credential is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CredentialStatus {
    /// How it is by itself.
    #[serde(flatten)]
    pub health: Health,
    /// Sessions that live on it.
    pub sessions: usize,
}

/// What operators on a listener may do.
#[derive(Debug, Clone)]
pub(super) enum Rights {
    /// Everything: the system has let only the right ones in.
    All,
    /// Whoever shows this everything, others only learn whether the gateway is well.
    Holders(Secret),
    /// Everybody may look, and nobody may change anything.
    Look,
}

impl Rights {
    pub(super) fn of(token: Option<Secret>) -> Self {
        token.map_or(Self::Look, Self::Holders)
    }

    /// Whether a request with these fields may look, and whether it may change things.
    fn granted(&self, headers: &HeaderMap) -> (bool, bool) {
        match self {
            Self::All => (true, true),
            Self::Look => (true, false),
            Self::Holders(token) => {
                let shown = headers
                    .get(AUTHORIZATION)
                    .and_then(|value| value.to_str().ok());
                let shown = shown.and_then(|value| value.split_once(' '));
                let shown = shown
                    .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
                    .map(|(_, shown)| shown);
                let holds =
                    shown.is_some_and(|shown| Secret::new(shown.trim().to_owned()) == *token);
                (holds, holds)
            }
        }
    }
}

/// What answers operators.
#[derive(Clone)]
pub(super) struct Admin {
    board: Arc<Board>,
    commands: mpsc::WeakSender<Command>,
    rights: Rights,
}

/// An answer.
struct Said {
    status: StatusCode,
    kind: &'static str,
    body: String,
}

impl Said {
    fn json(status: StatusCode, body: &impl Serialize) -> Self {
        Self {
            status,
            kind: "application/json",
            body: serde_json::to_string(body).unwrap_or_default(),
        }
    }

    fn ok(body: &impl Serialize) -> Self {
        Self::json(StatusCode::OK, body)
    }

    fn error(status: StatusCode, message: &str) -> Self {
        Self::json(status, &json!({ "error": message }))
    }

    fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.body)));
        *response.status_mut() = self.status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(self.kind));
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A connection that somebody asks on.
trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for T {}

/// Where operators come in.
trait Door: Sync {
    type Io: Io;

    /// The next who comes; none where it is somebody who may not.
    fn next(&self) -> impl Future<Output = io::Result<Option<Self::Io>>> + Send;
}

impl Door for UnixListener {
    type Io = UnixStream;

    async fn next(&self) -> io::Result<Option<UnixStream>> {
        let (stream, _) = self.accept().await?;
        if is_ours(&stream) {
            return Ok(Some(stream));
        }
        tracing::warn!("somebody else's process asked on the admin socket");
        Ok(None)
    }
}

impl Door for TcpListener {
    type Io = TcpStream;

    async fn next(&self) -> io::Result<Option<TcpStream>> {
        let (stream, _) = self.accept().await?;
        Ok(Some(stream))
    }
}

impl Admin {
    pub(super) fn new(
        board: &Arc<Board>,
        commands: &mpsc::Sender<Command>,
        rights: Rights,
    ) -> Self {
        Self {
            board: Arc::clone(board),
            commands: commands.downgrade(),
            rights,
        }
    }

    /// Listens on the socket at `path`, until the gateway ends. Where that cannot be, the gateway runs without.
    pub(super) fn listen(self, path: PathBuf, phases: &watch::Receiver<Phase>, tasks: &Tasks) {
        let listener = match bind(&path) {
            Ok(listener) => listener,
            Err(error) => {
                let (path, error) = (path.display(), plain(&error));
                return tracing::warn!(%path, error, "no admin socket: `tollgate status` has nobody to ask");
            }
        };
        let mut phases = phases.clone();
        let socket = Socket(path);
        tasks.spawn(async move {
            let _socket = socket;
            tokio::select! {
                () = self.accept(&listener) => {}
                // Until the very end: an operator may want to know what is still under way.
                _ = phases.wait_for(|phase| *phase == Phase::Ending) => {}
            }
        });
    }

    /// Listens on `listener`, until the gateway ends.
    pub(super) fn listen_tcp(
        self,
        listener: TcpListener,
        phases: &watch::Receiver<Phase>,
        tasks: &Tasks,
    ) {
        let mut phases = phases.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = self.accept(&listener) => {}
                _ = phases.wait_for(|phase| *phase == Phase::Ending) => {}
            }
        });
    }

    async fn accept(&self, door: &impl Door) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                return;
            };
            match door.next().await {
                Ok(Some(stream)) => {
                    let admin = self.clone();
                    connections.spawn(async move {
                        // Whether it took too long or broke: whoever asked sees it.
                        let _ = timeout(CONNECTION_TIMEOUT, admin.serve(stream)).await;
                        drop(permit);
                    });
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(error = plain(&error), "no connection of an operator's");
                    sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    async fn serve(self, stream: impl Io) {
        let answer = service_fn(|request: Request<Incoming>| {
            let admin = self.clone();
            async move { Ok::<_, Infallible>(admin.answer(&request).await.response()) }
        });
        let mut server = http1::Builder::new();
        server
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .keep_alive(false);
        if let Err(error) = server.serve_connection(TokioIo::new(stream), answer).await {
            tracing::debug!(%error, "a connection of an operator's broke");
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Said {
        let plain = |part| percent_decode_str(part).decode_utf8_lossy();
        let path: Vec<_> = request
            .uri()
            .path()
            .trim_matches('/')
            .split('/')
            .map(plain)
            .collect();
        let path: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
        let (may_look, may_change) = self.rights.granted(request.headers());
        match (request.method(), path.as_slice()) {
            // Whoever looks after processes shows no token.
            (&Method::GET, ["healthz"]) => Said::ok(&json!({ "status": "ok" })),
            (&Method::GET, ["readyz"]) => self.ready(),
            _ if !may_look => Said::error(
                StatusCode::UNAUTHORIZED,
                "expected Authorization: Bearer with admin.token",
            ),
            (&Method::GET, ["status"] | ["api", "status"]) => Said::ok(&self.status()),
            (&Method::GET, ["metrics"]) => Said {
                status: StatusCode::OK,
                kind: CONTENT_TYPE_OF_METRICS,
                body: scrape::text(&self.board),
            },
            (&Method::GET, ["api", "policies"]) => Said::ok(&self.policies()),
            (&Method::GET, ["api", "policies", tag, "disagreements"]) => self.disagreements(tag),
            (&Method::POST, ["api", "policies", tag, "reload"]) if may_change => {
                let tag = (*tag).to_owned();
                self.command(|reply| Command::Reload { tag, reply }).await
            }
            (&Method::POST, ["api", "policies", tag, "rollback"]) if may_change => {
                let tag = (*tag).to_owned();
                self.command(|reply| Command::RollBack { tag, reply }).await
            }
            (&Method::POST, ["api", "policies", _, "reload" | "rollback"]) => Said::error(
                StatusCode::FORBIDDEN,
                "policies are changed over this listener only with an admin.token",
            ),
            (&Method::GET, _) => Said::error(
                StatusCode::NOT_FOUND,
                "expected /healthz, /readyz, /metrics, /api/status, /api/policies or /api/policies/TAG/disagreements",
            ),
            _ => Said::error(
                StatusCode::METHOD_NOT_ALLOWED,
                "expected GET, or POST to /api/policies/TAG/reload or /api/policies/TAG/rollback",
            ),
        }
    }

    fn ready(&self) -> Said {
        let ledger = self.board.world.ledger.upgrade();
        let reason = match *self.board.world.phases.borrow() {
            Phase::Draining | Phase::Ending => Some("the gateway stops"),
            Phase::Serving if ledger.is_none_or(|ledger| ledger.is_failing()) => {
                Some("the ledger cannot be written")
            }
            Phase::Serving => None,
        };
        match reason {
            None => Said::ok(&json!({ "status": "ready" })),
            Some(reason) => Said::json(
                StatusCode::SERVICE_UNAVAILABLE,
                &json!({ "status": "not ready", "reason": reason }),
            ),
        }
    }

    async fn command(&self, command: impl FnOnce(Reply) -> Command) -> Said {
        let (reply, done) = oneshot::channel();
        let Some(commands) = self.commands.upgrade() else {
            return Said::error(StatusCode::SERVICE_UNAVAILABLE, "the gateway stops");
        };
        if commands.send(command(reply)).await.is_err() {
            return Said::error(StatusCode::SERVICE_UNAVAILABLE, "the gateway stops");
        }
        drop(commands);
        match done.await {
            Ok(Ok(done)) => Said::ok(&json!({ "done": done })),
            Ok(Err(reason)) => Said::error(StatusCode::CONFLICT, &reason),
            Err(_) => Said::error(StatusCode::SERVICE_UNAVAILABLE, "the gateway stops"),
        }
    }

    fn policies(&self) -> Value {
        let policies = self.board.policies().status();
        let configured = self.board.configured().clone();
        json!({ "at": Timestamp::now().0, "policies": policies, "last_configuration": configured.last })
    }

    fn disagreements(&self, tag: &str) -> Said {
        let shadow = match self.board.policies().named(tag) {
            None => return Said::error(StatusCode::NOT_FOUND, "there is no policy of that tag"),
            Some(entry) => entry.slot.shadow(),
        };
        match shadow {
            None => Said::error(
                StatusCode::NOT_FOUND,
                "there is no shadow beside that policy",
            ),
            Some(shadow) => Said::ok(
                &json!({ "shadow": shadow.status(), "disagreements": shadow.disagreements() }),
            ),
        }
    }

    fn status(&self) -> Status {
        let now = Timestamp::now();
        let services = self
            .board
            .services()
            .into_iter()
            .map(|service| ServiceStatus {
                service: service.tag().to_owned(),
                credentials: service
                    .health(now)
                    .into_iter()
                    .map(|(health, sessions)| CredentialStatus { health, sessions })
                    .collect(),
            });
        Status {
            at: now.0,
            services: services.collect(),
        }
    }
}

/// The socket's file, which goes with it however its task ends.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            tracing::debug!(error = plain(&error), "the admin socket is still there");
        }
    }
}

/// The folder is this gateway's alone, by the ledger's lock: a socket that is there is a dead one's.
fn bind(path: &Path) -> io::Result<UnixListener> {
    remove(path)?;
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Whether the gateway's own user or root asks: the socket's mode says so, but not before it is set.
fn is_ours(stream: &UnixStream) -> bool {
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw())
}
