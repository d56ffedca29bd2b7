//! The program's control listener: a script in any language sets what accounts answer and reads
//! what upstream saw. Tests in Rust use [`Account`] and [`Upstream`] directly.
//!
//! - `POST /account/ID` with `{"clear", "release", "then": [REPLY], "always": REPLY,
//!   "then_handshake": [REPLY], "always_handshake": REPLY, "then_socket": [STEPS], "always_socket":
//!   STEPS, "five_hour", "weekly"}`, each optional, in that order; a reply is `{"status",
//!   "headers": {NAME: VALUE}, "body"}`: a body that is text is sent as it is, any other as JSON.
//!   Steps are what a socket does for one `response.create`: a list of `"begun"`, `"completed"`,
//!   `{"event": JSON}`, `"hold"` (waits until a script of the account says `release`), `{"close":
//!   {"code", "reason"}}`, `"finish"` and `"reset"`; see [`SocketReply`].
//! - `POST /login/ID` with `{"lifetime", "renew_with", "hold"}`, each optional, in that order: how
//!   many seconds access tokens are valid from now on; a new access token that is valid for so many
//!   seconds; whether POSTs to the token endpoint wait for their answers from now on. Returns
//!   auth.json with the newest tokens.
//! - `GET /login/ID`: `{"posts", "rotations", "reuses", "revoked"}`.
//! - `GET /requests`: every request so far, its body as text.
//! - `GET /sockets`: every accepted socket so far, its messages as text.
//!
//! Invariant: an invalid script changes nothing and gets a 400 with the reason.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use scripted_upstream::{
    Account, Gate, Login, Reply, SeenMessage, SeenRequest, SeenSocket, SocketEnd, SocketReply,
    TokenReply, Upstream,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

/// After a failed accept the next try waits this long.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(10);
const SCRIPT_BYTES_MAX: usize = 16 << 20;

/// The accounts and logins under control, by account id.
pub(crate) struct Control {
    pub(crate) upstream: Upstream,
    pub(crate) accounts: HashMap<String, SteeredAccount>,
    pub(crate) logins: HashMap<String, SteeredLogin>,
}

/// An account, and the gate at which its sockets wait.
pub(crate) struct SteeredAccount {
    account: Account,
    held: Mutex<Gate>,
}

/// A login, and the gate at which POSTs with its tokens wait.
pub(crate) struct SteeredLogin {
    login: Login,
    held: Mutex<Option<Gate>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountScript {
    #[serde(default)]
    clear: bool,
    #[serde(default)]
    release: bool,
    #[serde(default)]
    then: Vec<Line>,
    always: Option<Line>,
    #[serde(default)]
    then_handshake: Vec<Line>,
    always_handshake: Option<Line>,
    #[serde(default)]
    then_socket: Vec<Vec<SteeredStep>>,
    always_socket: Option<Vec<SteeredStep>>,
    five_hour: Option<f64>,
    weekly: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoginScript {
    lifetime: Option<u64>,
    renew_with: Option<i64>,
    hold: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    status: u16,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum SteeredStep {
    Begun,
    Completed,
    Event(Value),
    Hold,
    Close { code: u16, reason: String },
    Finish,
    Reset,
}

impl Control {
    /// Listens on a free port of 127.0.0.1 until the runtime ends. Returns the port.
    pub(crate) async fn start(self) -> io::Result<u16> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        tokio::spawn(Arc::new(self).accept(listener));
        Ok(port)
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(Arc::clone(&self).converse(stream));
                }
                Err(_) => tokio::time::sleep(ACCEPT_BACKOFF).await,
            }
        }
    }

    async fn converse(self: Arc<Self>, stream: TcpStream) {
        let service = service_fn(move |request| {
            let control = Arc::clone(&self);
            async move { Ok::<_, Infallible>(control.serve(request).await) }
        });
        // An error here means that the script has left.
        let _ = http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    async fn serve(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let script = match Limited::new(body, SCRIPT_BYTES_MAX).collect().await {
            Ok(script) => script.to_bytes(),
            Err(error) => {
                return answer(
                    StatusCode::BAD_REQUEST,
                    &json!({"error": error.to_string()}),
                );
            }
        };
        match self.carry_out(&head.method, head.uri.path(), &script) {
            Some(Ok(told)) => answer(StatusCode::OK, &told),
            Some(Err(error)) => answer(StatusCode::BAD_REQUEST, &json!({"error": error})),
            None => answer(
                StatusCode::NOT_FOUND,
                &json!({"error": "no such path, account or login"}),
            ),
        }
    }

    /// Returns `None` if there is no such path.
    fn carry_out(
        &self,
        method: &Method,
        path: &str,
        script: &[u8],
    ) -> Option<Result<Value, String>> {
        let (kind, id) = path.rsplit_once('/')?;
        match (method, kind, id) {
            (&Method::GET, "", "requests") => {
                Some(Ok(self.upstream.requests().iter().map(told).collect()))
            }
            (&Method::GET, "", "sockets") => Some(Ok(self
                .upstream
                .sockets()
                .iter()
                .map(told_socket)
                .collect())),
            (&Method::POST, "/account", id) => {
                Some(self.accounts.get(id)?.direct(script).map(|()| json!({})))
            }
            (&Method::POST, "/login", id) => Some(self.logins.get(id)?.direct(script)),
            (&Method::GET, "/login", id) => Some(Ok(self.logins.get(id)?.counts())),
            _ => None,
        }
    }
}

impl SteeredAccount {
    pub(crate) fn new(account: Account) -> Self {
        SteeredAccount {
            account,
            held: Mutex::default(),
        }
    }

    /// Gives the account its script.
    fn direct(&self, script: &[u8]) -> Result<(), String> {
        let script: AccountScript =
            serde_json::from_slice(script).map_err(|error| error.to_string())?;
        let [then, then_handshake] = [script.then, script.then_handshake].map(replies);
        let [always, always_handshake] =
            [script.always, script.always_handshake].map(|line| line.map(Line::reply));
        let (then, then_handshake) = (then?, then_handshake?);
        let (always, always_handshake) = (always.transpose()?, always_handshake.transpose()?);
        let account = &self.account;
        if script.clear {
            account.clear_script();
        }
        let mut gate = self.held.lock().expect("no holder of the gate panics");
        if script.release {
            // Later holds wait at another gate.
            std::mem::take(&mut *gate).open();
        }
        for reply in then {
            account.then(reply);
        }
        if let Some(reply) = always {
            account.always(reply);
        }
        for reply in then_handshake {
            account.then_handshake(reply);
        }
        if let Some(reply) = always_handshake {
            account.always_handshake(reply);
        }
        for steps in script.then_socket {
            account.then_socket(socket_reply(steps, &gate));
        }
        if let Some(steps) = script.always_socket {
            account.always_socket(socket_reply(steps, &gate));
        }
        let mut standing = account.standing();
        standing.five_hour.used_percent =
            script.five_hour.unwrap_or(standing.five_hour.used_percent);
        standing.weekly.used_percent = script.weekly.unwrap_or(standing.weekly.used_percent);
        account.set_standing(standing);
        Ok(())
    }
}

impl SteeredLogin {
    pub(crate) fn new(login: Login) -> Self {
        SteeredLogin {
            login,
            held: Mutex::new(None),
        }
    }

    /// Gives the login its script. Returns auth.json.
    fn direct(&self, script: &[u8]) -> Result<Value, String> {
        let LoginScript {
            lifetime,
            renew_with,
            hold,
        } = serde_json::from_slice(script).map_err(|error| error.to_string())?;
        if let Some(seconds) = lifetime {
            self.login.lifetime(Duration::from_secs(seconds));
        }
        match hold {
            Some(true) => self.hold(),
            Some(false) => self.release(),
            None => {}
        }
        Ok(renew_with.map_or_else(
            || self.login.auth_json(),
            |seconds| self.login.renew_with(seconds),
        ))
    }

    fn hold(&self) {
        let mut held = self.held.lock().expect("no holder of the gate panics");
        let gate = held.get_or_insert_default();
        self.login.always_for_token(TokenReply::well().behind(gate));
    }

    fn release(&self) {
        let mut held = self.held.lock().expect("no holder of the gate panics");
        if let Some(gate) = held.take() {
            self.login.clear_token_script();
            gate.open();
        }
    }

    fn counts(&self) -> Value {
        let login = &self.login;
        json!({
            "posts": login.post_count(),
            "rotations": login.rotations(),
            "reuses": login.reuses(),
            "revoked": login.is_revoked(),
        })
    }
}

fn replies(lines: Vec<Line>) -> Result<Vec<Reply>, String> {
    lines.into_iter().map(Line::reply).collect()
}

impl Line {
    fn reply(self) -> Result<Reply, String> {
        let status = self.status;
        StatusCode::from_u16(status).map_err(|error| format!("status {status}: {error}"))?;
        let mut reply = match self.body {
            Value::String(text) => Reply::raw(status, text),
            body => Reply::json(status, &body),
        };
        for (name, value) in self.headers {
            HeaderName::try_from(&name).map_err(|error| format!("header {name:?}: {error}"))?;
            HeaderValue::try_from(&value).map_err(|error| format!("header {name}: {error}"))?;
            reply = reply.header(&name, &value);
        }
        Ok(reply)
    }
}

fn socket_reply(steps: Vec<SteeredStep>, gate: &Gate) -> SocketReply {
    steps
        .into_iter()
        .fold(SocketReply::silent(), |reply, step| match step {
            SteeredStep::Begun => reply.then_begun(),
            SteeredStep::Completed => reply.completed(),
            SteeredStep::Event(event) => reply.event(&event),
            SteeredStep::Hold => reply.hold(gate),
            SteeredStep::Close { code, reason } => reply.close(code, &reason),
            SteeredStep::Finish => reply.finish(),
            SteeredStep::Reset => reply.reset(),
        })
}

fn told_socket(seen: &SeenSocket) -> Value {
    let messages = seen.messages.iter().map(|message| match message {
        SeenMessage::Text(_) => json!(message.text()),
        SeenMessage::Binary(payload) => json!({ "binary_bytes": payload.len() }),
    });
    let end = seen.end.as_ref().map(|end| match end {
        SocketEnd::Closed { code, reason } => json!({"closed": {"code": code, "reason": reason}}),
        SocketEnd::Gone => json!("gone"),
        SocketEnd::Violated(why) => json!({ "violated": why }),
        SocketEnd::Reset => json!("reset"),
    });
    json!({
        "account": seen.account,
        "request": told(&seen.request),
        "messages": messages.collect::<Vec<_>>(),
        "pings": seen.pings.len(),
        "pongs": seen.pongs.len(),
        "end": end,
    })
}

fn told(seen: &SeenRequest) -> Value {
    let headers = seen
        .headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]));
    json!({
        "method": seen.method.as_str(),
        "target": seen.target,
        "account": seen.account,
        "headers": headers.collect::<Vec<_>>(),
        "body": String::from_utf8_lossy(&seen.body),
    })
}

fn answer(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

#[cfg(test)]
mod tests;
