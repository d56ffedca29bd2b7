//! Requests of commands to the running gateway, over the socket in its `data_dir`, and helpers to
//! read the responses.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::runtime;
use tokio::time::timeout;

use super::error::CommandFailure;
use crate::config::Config;
use crate::files::io_reason;
use crate::platform::UnixStream;
use crate::server::SOCKET;

/// For requests that only read.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// For requests that change something, such as loading a policy.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(300);

/// Runs a command to its end.
pub(super) fn in_runtime<T>(
    command: impl Future<Output = Result<T, CommandFailure>>,
) -> Result<T, CommandFailure> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .map_err(|error| format!("cannot start: {}", io_reason(&error)))?
        .block_on(command)
}

/// Reads `path` from the gateway of `config`.
pub(super) async fn get(config: &Config, path: &str) -> Result<Value, CommandFailure> {
    send_within(READ_TIMEOUT, config, Method::GET, path).await
}

/// Has the gateway of `config` change something.
pub(super) async fn post(config: &Config, path: &str) -> Result<Value, CommandFailure> {
    send_within(CHANGE_TIMEOUT, config, Method::POST, path).await
}

async fn send_within(
    limit: Duration,
    config: &Config,
    method: Method,
    path: &str,
) -> Result<Value, CommandFailure> {
    let socket = config.data_dir.join(SOCKET);
    let sent = timeout(limit, send(&socket, method, path)).await;
    sent.unwrap_or_else(|_| {
        let seconds = limit.as_secs();
        Err(format!("{}: no response after {seconds} s", socket.display()).into())
    })
}

async fn send(socket: &Path, method: Method, path: &str) -> Result<Value, CommandFailure> {
    let broken = |error: hyper::Error| format!("{}: {error}", socket.display());
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        if error.kind() == ErrorKind::Unsupported {
            return "commands need a Unix socket, which this system does not have: use the admin \
                    listener instead"
                .to_owned();
        }
        format!(
            "cannot connect to {}: {}: is the gateway running, with this data_dir and as this user?",
            socket.display(),
            io_reason(&error)
        )
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let connection = tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = method;
    *request.uri_mut() = path
        .parse::<Uri>()
        .map_err(|error| format!("{path}: {error}"))?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("tollgate"));
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(broken)?;
    connection.abort();
    let unknown = || {
        format!(
            "{}: unexpected response: does the gateway run another version?",
            socket.display()
        )
    };
    let value: Value = serde_json::from_slice(&body.to_bytes()).map_err(|_| unknown())?;
    let failure = value["error"].as_str().or(value["reason"].as_str());
    match (status, failure) {
        (StatusCode::OK, _) => Ok(value),
        (_, Some(error)) => Err(error.into()),
        _ => Err(unknown().into()),
    }
}

/// Formats a duration with at most two units: `3d 4h`, `2h 5m`, `7m`, `12s`.
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
