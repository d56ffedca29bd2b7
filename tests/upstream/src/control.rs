//! The program's control: a listener of its own, on which a script in any language tells accounts what to answer and
//! reads what upstream saw. Tests in Rust use [`Account`] and [`Upstream`] themselves.
//!
//! - `POST /account/ID` with `{"clear", "then": [REPLY], "always": REPLY, "five_hour", "weekly"}`, each optional, in
//!   that order; a reply is `{"status", "headers": {NAME: VALUE}, "body"}`: a body that is text goes out as it is,
//!   another as JSON.
//! - `GET /requests`: every request so far, its body as text.
//!
//! Invariant: a script that is not understood changes nothing and gets 400 with the reason.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use scripted_upstream::{Account, Reply, SeenRequest, Upstream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

/// After a failed accept the next try waits this long.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(10);
const SCRIPT_BYTES_MAX: usize = 16 << 20;

/// Whom the control steers: the accounts by their ids.
pub(crate) struct Control {
    pub(crate) upstream: Upstream,
    pub(crate) accounts: HashMap<String, Account>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    #[serde(default)]
    clear: bool,
    #[serde(default)]
    then: Vec<Line>,
    always: Option<Line>,
    five_hour: Option<f64>,
    weekly: Option<f64>,
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

impl Control {
    /// Listens on a free port of 127.0.0.1, which it answers, for as long as the runtime lives.
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
        // An error here is that the script left.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    async fn serve(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        match (&head.method, head.uri.path()) {
            (&Method::GET, "/requests") => {
                let seen: Vec<Value> = self.upstream.requests().iter().map(told).collect();
                answer(StatusCode::OK, &json!(seen))
            }
            (&Method::POST, path) if path.starts_with("/account/") => {
                let Some(account) = path.strip_prefix("/account/").and_then(|id| self.accounts.get(id)) else {
                    return answer(StatusCode::NOT_FOUND, &json!({"error": "no such account"}));
                };
                match Limited::new(body, SCRIPT_BYTES_MAX).collect().await.map_err(|error| error.to_string()) {
                    Ok(script) => match direct(account, &script.to_bytes()) {
                        Ok(()) => answer(StatusCode::OK, &json!({})),
                        Err(error) => answer(StatusCode::BAD_REQUEST, &json!({"error": error})),
                    },
                    Err(error) => answer(StatusCode::BAD_REQUEST, &json!({"error": error})),
                }
            }
            _ => answer(StatusCode::NOT_FOUND, &json!({"error": "expected POST /account/ID or GET /requests"})),
        }
    }
}

/// Gives the account its script.
fn direct(account: &Account, script: &[u8]) -> Result<(), String> {
    let script: Script = serde_json::from_slice(script).map_err(|error| error.to_string())?;
    let then = script.then.into_iter().map(Line::reply).collect::<Result<Vec<Reply>, String>>()?;
    let always = script.always.map(Line::reply).transpose()?;
    if script.clear {
        account.clear_script();
    }
    for reply in then {
        account.then(reply);
    }
    if let Some(reply) = always {
        account.always(reply);
    }
    let mut standing = account.standing();
    standing.five_hour.used_percent = script.five_hour.unwrap_or(standing.five_hour.used_percent);
    standing.weekly.used_percent = script.weekly.unwrap_or(standing.weekly.used_percent);
    account.set_standing(standing);
    Ok(())
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

fn told(seen: &SeenRequest) -> Value {
    let headers =
        seen.headers.iter().map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]));
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
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_script_is_taken_whole_or_not_at_all() {
        let upstream = Upstream::start().await;
        let account = upstream.account("at", "acct");
        direct(&account, br#"{"then": [{"status": 429, "body": {"error": {}}}], "weekly": 60}"#).expect("a script");
        assert_eq!(account.standing().weekly.used_percent, 60.0);
        for bad in [
            r#"{"weekly": 80, "then": [{"status": 9}]}"#,
            r#"{"weekly": 80, "always": {"status": 200, "headers": {"a b": ""}}}"#,
            r#"{"weekly": 80, "sometimes": []}"#,
        ] {
            direct(&account, bad.as_bytes()).expect_err(bad);
            assert_eq!(account.standing().weekly.used_percent, 60.0, "{bad}");
        }
    }
}
