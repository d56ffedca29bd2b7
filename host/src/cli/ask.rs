//! Questions to the running gateway, over the socket in its `data_dir`, and what its answers hold.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime;
use tokio::time::timeout;

use super::Message;
use crate::config::Config;
use crate::files::plain;
use crate::server::SOCKET;

/// How long the gateway may take to tell how it is.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it may take to do something.
const DONE_TIMEOUT: Duration = Duration::from_secs(300);

/// Runs a command to its end.
pub(super) fn in_runtime<T>(
    command: impl Future<Output = Result<T, Message>>,
) -> Result<T, Message> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .map_err(|error| format!("cannot start: {}", plain(&error)))?
        .block_on(command)
}

/// What the gateway of `config` answers to a question.
pub(super) async fn get(config: &Config, path: &str) -> Result<Value, Message> {
    ask(config, Method::GET, path, ANSWER_TIMEOUT).await
}

/// Has the gateway of `config` do something.
pub(super) async fn post(config: &Config, path: &str) -> Result<Value, Message> {
    ask(config, Method::POST, path, DONE_TIMEOUT).await
}

async fn ask(
    config: &Config,
    method: Method,
    path: &str,
    limit: Duration,
) -> Result<Value, Message> {
    let socket = config.data_dir.join(SOCKET);
    let broken = |error: hyper::Error| format!("{}: {error}", socket.display());
    let asking = async {
        let stream = UnixStream::connect(&socket).await.map_err(|error| {
            let (path, error) = (socket.display(), plain(&error));
            format!("no gateway answers at {path} ({error}): does it run, with this data_dir and as this user?")
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let driving = tokio::spawn(connection);
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = method;
        *request.uri_mut() = path
            .parse::<Uri>()
            .map_err(|_| format!("{path:?} cannot be asked for"))?;
        request.headers_mut().insert(
            http::header::HOST,
            http::HeaderValue::from_static("tollgate"),
        );
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(broken)?
            .to_bytes();
        driving.abort();
        let unknown = || {
            format!(
                "{}: expected JSON, found an answer of another version",
                socket.display()
            )
        };
        let answer: Value = serde_json::from_slice(&body).map_err(|_| unknown())?;
        match (status, answer["error"].as_str()) {
            (StatusCode::OK, _) => Ok(answer),
            (_, Some(error)) => Err(error.to_owned()),
            _ => Err(unknown()),
        }
    };
    timeout(limit, asking)
        .await
        .unwrap_or_else(|_| Err(format!("{}: no answer in time", socket.display())))
}

/// `3d 4h`, `2h 5m`, `7m`, `12s`: two units at most.
pub(super) fn span(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

pub(super) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

pub(super) fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_default()
}
