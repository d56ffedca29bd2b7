//! The admin API: HTTP/1.1 on a Unix socket in `data_dir`, for the gateway's own user and root, and
//! on a TCP listener if the configuration has one.
//!
//! Owns who may ask for what. Does not know how a change is made: it sends commands to the
//! supervisor. Invariant: no response contains a secret.

mod access;
mod listen;
mod scrape;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

use self::access::AdminPermissions;
use self::listen::{AdminHandler, accept, bind_unix, take_over_unix};
use super::background::BackgroundTasks;
use super::policies::PolicyStatus;
use super::status::GatewayStatus;
use super::supervisor::{CommandError, CommandSender, PolicyReply, SupervisorCommand};
use super::upkeep::certificates::CertificateReport;
use crate::credentials::CredentialHealth;
use crate::files::io_reason;
use crate::listener::HandedOverSocket;
use crate::metrics::CONTENT_TYPE as METRICS_CONTENT_TYPE;
use crate::platform::{Descriptor, duplicate};
use crate::values::clock::Timestamp;
use crate::values::phase::GatewayPhase;

pub(super) use self::access::AdminAccess;

/// The socket's name in `data_dir`.
pub(crate) const SOCKET: &str = "admin.sock";

/// The response of `/api/status`.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct StatusReport {
    /// When the report was made, in Unix milliseconds.
    at: u64,
    services: Vec<ServiceReport>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct ServiceReport {
    service: String,
    /// In the order of the configuration.
    credentials: Vec<CredentialReport>,
    /// The certificate, if the service has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<CertificateReport>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct CredentialReport {
    #[serde(flatten)]
    health: CredentialHealth,
    /// Sessions whose home it is.
    sessions: usize,
}

/// Serves the requests of operators.
#[derive(Clone)]
pub(super) struct AdminApi {
    status: Arc<GatewayStatus>,
    /// Weak: an open admin connection must not keep the supervisor's queue open.
    commands: mpsc::WeakSender<SupervisorCommand>,
    access: AdminAccess,
}

struct AdminResponse {
    status: StatusCode,
    content_type: &'static str,
    body: String,
}

impl AdminResponse {
    fn json(status: StatusCode, body: &impl Serialize) -> Self {
        Self {
            status,
            content_type: "application/json",
            body: serde_json::to_string(body).unwrap_or_default(),
        }
    }

    fn ok(body: &impl Serialize) -> Self {
        Self::json(StatusCode::OK, body)
    }

    fn error(status: StatusCode, message: &str) -> Self {
        Self::json(status, &json!({ "error": message }))
    }

    fn into_http(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Waits until operators are served no more: the gateway has drained, or another process serves
/// them. Not before: operators look at what is still in flight.
async fn end_of_operators(phases: &mut watch::Receiver<GatewayPhase>) -> GatewayPhase {
    let is_end =
        |phase: &GatewayPhase| matches!(phase, GatewayPhase::Retiring | GatewayPhase::Stopping);
    let end = phases.wait_for(is_end).await;
    end.map_or(GatewayPhase::Stopping, |phase| *phase)
}

impl AdminHandler for AdminApi {
    async fn handle(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        self.respond(request).await.into_http()
    }
}

impl AdminApi {
    pub(super) fn new(
        status: &Arc<GatewayStatus>,
        commands: &CommandSender,
        access: AdminAccess,
    ) -> Self {
        Self {
            status: Arc::clone(status),
            commands: commands.downgrade(),
            access,
        }
    }

    /// Listens on a Unix socket at `path` until the gateway has drained: on `handed_over`, if that
    /// is given. Returns the socket for the process that succeeds this one. Without the socket, the
    /// gateway runs all the same.
    pub(super) fn listen_unix(
        self,
        path: PathBuf,
        handed_over: Option<HandedOverSocket>,
        phases: &watch::Receiver<GatewayPhase>,
        tasks: &BackgroundTasks,
    ) -> Option<Descriptor> {
        let bound = match handed_over {
            Some(handed_over) => take_over_unix(handed_over, &path),
            None => bind_unix(&path),
        };
        let (listener, socket_file) = match bound {
            Ok(bound) => bound,
            Err(error) => {
                let (path, error) = (path.display(), io_reason(&error));
                tracing::warn!(%path, error, "no admin socket, `tollgate status` will not work");
                return None;
            }
        };
        let for_successor = duplicate(&listener).ok();
        let mut phases = phases.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = accept(&listener, &self) => {}
                end = end_of_operators(&mut phases) => if end == GatewayPhase::Retiring {
                    socket_file.leave_to_successor();
                }
            }
        });
        for_successor
    }

    /// Listens on `listener` until the gateway has drained.
    pub(super) fn listen_tcp(
        self,
        listener: TcpListener,
        phases: &watch::Receiver<GatewayPhase>,
        tasks: &BackgroundTasks,
    ) {
        let mut phases = phases.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = accept(&listener, &self) => {}
                _ = end_of_operators(&mut phases) => {}
            }
        });
    }

    async fn respond(&self, request: &Request<Incoming>) -> AdminResponse {
        let path: Vec<_> = request
            .uri()
            .path()
            .trim_matches('/')
            .split('/')
            .map(|part| percent_decode_str(part).decode_utf8_lossy())
            .collect();
        let path: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
        // Process supervisors send no token.
        match (request.method(), path.as_slice()) {
            (&Method::GET, ["healthz"]) => return AdminResponse::ok(&json!({ "status": "ok" })),
            (&Method::GET, ["readyz"]) => return self.ready(),
            _ => {}
        }
        let permissions = self.access.permissions(request.headers());
        if permissions == AdminPermissions::None {
            return AdminResponse::error(
                StatusCode::UNAUTHORIZED,
                "expected `Authorization: Bearer` with the admin.token of the configuration",
            );
        }
        match *request.method() {
            Method::GET => self.read(&path),
            Method::POST => self.change(&path, permissions).await,
            _ => method_not_allowed(),
        }
    }

    fn read(&self, path: &[&str]) -> AdminResponse {
        match path {
            ["status"] | ["api", "status"] => AdminResponse::ok(&self.status_report()),
            ["metrics"] => AdminResponse {
                status: StatusCode::OK,
                content_type: METRICS_CONTENT_TYPE,
                body: scrape::text(&self.status),
            },
            ["api", "policies"] => AdminResponse::ok(&self.policies()),
            ["api", "policies", tag, "disagreements"] => self.disagreements(tag),
            _ => AdminResponse::error(
                StatusCode::NOT_FOUND,
                "not found: expected /healthz, /readyz, /metrics, /api/status, /api/policies or \
                 /api/policies/TAG/disagreements",
            ),
        }
    }

    async fn change(&self, path: &[&str], permissions: AdminPermissions) -> AdminResponse {
        let (tag, command): (_, fn(String, PolicyReply) -> SupervisorCommand) = match path {
            ["api", "policies", tag, "reload"] => (*tag, |tag, reply| {
                SupervisorCommand::ReloadPolicy { tag, reply }
            }),
            ["api", "policies", tag, "rollback"] => (*tag, |tag, reply| {
                SupervisorCommand::RollBackPolicy { tag, reply }
            }),
            _ => return method_not_allowed(),
        };
        if permissions != AdminPermissions::ReadAndChange {
            return AdminResponse::error(
                StatusCode::FORBIDDEN,
                "read-only: set admin.token in the configuration to change policies over this listener",
            );
        }
        let (reply, done) = oneshot::channel();
        self.send(command(tag.to_owned(), reply), done).await
    }

    async fn send<T: ToString>(
        &self,
        command: SupervisorCommand,
        done: oneshot::Receiver<Result<T, CommandError>>,
    ) -> AdminResponse {
        match self.carry_out(command, done).await {
            Ok(done) => AdminResponse::ok(&json!({ "done": done.to_string() })),
            Err(error @ CommandError::ShuttingDown) => {
                AdminResponse::error(StatusCode::SERVICE_UNAVAILABLE, &error.to_string())
            }
            Err(error) => AdminResponse::error(StatusCode::CONFLICT, &error.to_string()),
        }
    }

    /// Sends `command` to the supervisor and waits for its answer.
    async fn carry_out<T>(
        &self,
        command: SupervisorCommand,
        done: oneshot::Receiver<Result<T, CommandError>>,
    ) -> Result<T, CommandError> {
        // If the queue is gone, this drops `command`, whose reply `done` would wait for in vain.
        let commands = self.commands.upgrade().ok_or(CommandError::ShuttingDown)?;
        let sent = commands.send(command).await;
        drop(commands);
        sent.map_err(|_| CommandError::ShuttingDown)?;
        done.await.map_err(|_| CommandError::ShuttingDown)?
    }

    fn ready(&self) -> AdminResponse {
        let ledger = self.status.ledger();
        let reason = match self.status.phase() {
            GatewayPhase::Retiring | GatewayPhase::Draining | GatewayPhase::Stopping => {
                Some("the gateway is shutting down")
            }
            GatewayPhase::Running if ledger.is_none_or(|ledger| ledger.is_failing()) => {
                Some("the ledger cannot be written")
            }
            GatewayPhase::Running => None,
        };
        match reason {
            None => AdminResponse::ok(&json!({ "status": "ready" })),
            Some(reason) => AdminResponse::json(
                StatusCode::SERVICE_UNAVAILABLE,
                &json!({ "status": "not ready", "reason": reason }),
            ),
        }
    }

    fn policies(&self) -> Value {
        let policies: Vec<PolicyStatus> = self
            .status
            .policies()
            .entries()
            .iter()
            .map(PolicyStatus::of)
            .collect();
        json!({
            "at": Timestamp::now().0,
            "policies": policies,
            "last_configuration": self.status.configurations().last,
        })
    }

    fn disagreements(&self, tag: &str) -> AdminResponse {
        let shadow = match self.status.policies().find(tag) {
            None => {
                let error = CommandError::UnknownPolicy(tag.to_owned());
                return AdminResponse::error(StatusCode::NOT_FOUND, &error.to_string());
            }
            Some(entry) => entry.shared().shadow(),
        };
        match shadow {
            None => AdminResponse::error(
                StatusCode::NOT_FOUND,
                &format!("policy {tag:?} has no shadow"),
            ),
            Some(shadow) => AdminResponse::ok(
                &json!({ "shadow": shadow.status(), "disagreements": shadow.disagreements() }),
            ),
        }
    }

    fn status_report(&self) -> StatusReport {
        let now = Timestamp::now();
        let services = self.status.services();
        let certificates = self.status.certificates();
        let certificate = |service: &str| {
            let found = certificates.iter().find(|known| known.service() == service);
            found.and_then(|found| found.report())
        };
        StatusReport {
            at: now.0,
            services: services
                .into_iter()
                .map(|service| ServiceReport {
                    service: service.tag().to_owned(),
                    tls: certificate(service.tag()),
                    credentials: service
                        .health(now)
                        .into_iter()
                        .map(|(health, sessions)| CredentialReport { health, sessions })
                        .collect(),
                })
                .collect(),
        }
    }
}

fn method_not_allowed() -> AdminResponse {
    AdminResponse::error(
        StatusCode::METHOD_NOT_ALLOWED,
        "method not allowed: expected GET, or POST to /api/policies/TAG/reload or \
         /api/policies/TAG/rollback",
    )
}
