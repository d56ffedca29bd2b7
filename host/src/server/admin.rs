//! The socket by which an operator's commands ask the running gateway: HTTP/1.1 on a Unix socket in `data_dir`, for the
//! gateway's own user and root alone.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::credentials::Health;
use crate::files::{plain, remove};
use crate::pipeline::Service;
use crate::values::clock::Millis;
use crate::values::phase::Phase;

/// The socket's name in `data_dir`.
pub const SOCKET: &str = "admin.sock";

/// Connections at a time.
const CONNECTIONS: usize = 16;

/// A connection's whole life: a question and its answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

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

/// What answers operators.
#[derive(Debug)]
pub(super) struct Admin {
    /// Not held: a gateway has ended when nothing holds a service any more.
    services: Vec<Weak<Service>>,
}

impl Admin {
    pub(super) fn new<'a>(services: impl Iterator<Item = &'a Arc<Service>>) -> Arc<Self> {
        Arc::new(Self { services: services.map(Arc::downgrade).collect() })
    }

    /// Listens on the socket at `path`, until the gateway ends. Where that cannot be, the gateway runs without.
    pub(super) fn listen(self: &Arc<Self>, path: PathBuf, phases: &watch::Receiver<Phase>, tasks: &mut JoinSet<()>) {
        let listener = match bind(&path) {
            Ok(listener) => listener,
            Err(error) => {
                let (path, error) = (path.display(), plain(&error));
                return tracing::warn!(%path, error, "no admin socket: `tollgate status` has nobody to ask");
            }
        };
        let (admin, mut phases) = (Arc::clone(self), phases.clone());
        let socket = Socket(path);
        tasks.spawn(async move {
            let _socket = socket;
            tokio::select! {
                () = admin.accept(listener) => {}
                // Until the very end: an operator may want to know what is still under way.
                _ = phases.wait_for(|phase| *phase == Phase::Ending) => {}
            }
        });
    }

    async fn accept(self: Arc<Self>, listener: UnixListener) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) if is_ours(&stream) => {
                    let admin = Arc::clone(&self);
                    connections.spawn(async move {
                        // Whether it took too long or broke: whoever asked sees it.
                        let _ = timeout(CONNECTION_TIMEOUT, admin.serve(stream)).await;
                        drop(permit);
                    });
                }
                Ok(_) => tracing::warn!("somebody else's process asked on the admin socket"),
                Err(error) => {
                    tracing::debug!(error = plain(&error), "no connection on the admin socket");
                    sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: UnixStream) {
        let answer = service_fn(|request: Request<Incoming>| {
            let response = self.answer(request.method(), request.uri().path());
            async move { Ok::<_, Infallible>(response) }
        });
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).keep_alive(false);
        if let Err(error) = server.serve_connection(TokioIo::new(stream), answer).await {
            tracing::debug!(%error, "a connection on the admin socket broke");
        }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let (status, body) = match path {
            _ if method != Method::GET => {
                (StatusCode::METHOD_NOT_ALLOWED, r#"{"error": "only GET is allowed"}"#.into())
            }
            "/status" => (StatusCode::OK, serde_json::to_vec(&self.status()).unwrap_or_default()),
            _ => (StatusCode::NOT_FOUND, r#"{"error": "expected /status"}"#.into()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    fn status(&self) -> Status {
        let now = Millis::now();
        let services = self.services.iter().filter_map(Weak::upgrade).map(|service| ServiceStatus {
            service: service.tag().to_owned(),
            credentials: service
                .health(now)
                .into_iter()
                .map(|(health, sessions)| CredentialStatus { health, sessions })
                .collect(),
        });
        Status { at: now.0, services: services.collect() }
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
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw())
}
