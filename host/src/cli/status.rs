//! `tollgate status`: how the credentials of the running gateway are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime;
use tokio::time::timeout;

use super::table::{Side, lines};
use super::{Message, load, print};
use crate::files::plain;
use crate::server::SOCKET;

/// How long the gateway may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration, for its data_dir.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn status(args: &Args) -> Result<(), Message> {
    let config = load(args.config.as_deref())?.config;
    let socket = config.data_dir.join(SOCKET);
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {}", plain(&error)))?;
    let status = runtime.block_on(async {
        let asked = timeout(ANSWER_TIMEOUT, ask(&socket)).await;
        asked.unwrap_or_else(|_| Err(format!("{}: no answer in time", socket.display())))
    })?;
    print(&if args.json { format!("{status:#}") } else { as_text(&status) })
}

async fn ask(socket: &Path) -> Result<Value, Message> {
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        let (path, error) = (socket.display(), plain(&error));
        format!("no gateway answers at {path} ({error}): does it run, with this data_dir and as this user?")
    })?;
    let broken = |error: hyper::Error| format!("{}: {error}", socket.display());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let driving = tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = http::Uri::from_static("/status");
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("tollgate"));
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
    driving.abort();
    let answer = serde_json::from_slice(&body).ok().filter(|_| status == StatusCode::OK);
    answer.ok_or_else(|| format!("{}: expected a status, found an answer of another version", socket.display()))
}

const HEAD: [&str; 10] =
    ["credential", "state", "5-hour", "resets in", "weekly", "resets in", "plan", "polled", "sessions", "in flight"];

fn as_text(status: &Value) -> String {
    let at = number(status, "at");
    let mut rows = vec![HEAD.map(str::to_owned)];
    let mut notes = Vec::new();
    let services = list(status, "services");
    for service in services {
        for credential in list(service, "credentials") {
            let tag = text(credential, "credential");
            let name = match services {
                [_] => tag.to_owned(),
                _ => format!("{}/{tag}", text(service, "service")),
            };
            notes.extend(note(&name, credential));
            rows.push(cells(name, credential, at));
        }
    }
    let side = |column: usize| if matches!(column, 2 | 4 | 8 | 9) { Side::Right } else { Side::Left };
    let mut text = lines(&rows, side);
    if !notes.is_empty() {
        text.push(String::new());
        text.extend(notes);
    }
    text.join("\n")
}

fn cells(name: String, credential: &Value, at: u64) -> [String; 10] {
    let window = |name: &str| {
        let window = &credential[name];
        // Rounded down: what is just below its cap is not at it.
        let used = window["used"].as_f64().map(f64::floor);
        let cap = window["cap"].as_f64().unwrap_or(100.0);
        let resets = window["resets_at"].as_u64().map_or("-".to_owned(), |resets| span(resets.saturating_sub(at)));
        match used {
            Some(used) => (format!("{used:.0}% of {cap:.0}%"), resets),
            // An API key has none, and those of others may not be told yet.
            None => ("-".to_owned(), "-".to_owned()),
        }
    };
    let (five_hour, five_hour_resets) = window("five_hour");
    let (weekly, weekly_resets) = window("weekly");
    let polled = credential["polled_at"].as_u64().map(|polled| format!("{} ago", span(at.saturating_sub(polled))));
    let polled = match (polled, credential["poll_failure"].as_str()) {
        (Some(polled), None) => polled,
        (Some(polled), Some(_)) => format!("{polled}, stale"),
        (None, Some(_)) => "failed".to_owned(),
        (None, None) => "-".to_owned(),
    };
    let plan = text(credential, "plan");
    [
        name,
        state(credential, at),
        five_hour,
        five_hour_resets,
        weekly,
        weekly_resets,
        if plan.is_empty() { "-".to_owned() } else { plan.to_owned() },
        polled,
        number(credential, "sessions").to_string(),
        number(credential, "in_flight").to_string(),
    ]
}

fn state(credential: &Value, at: u64) -> String {
    let until = || credential["until"].as_u64().map(|until| format!(" for {}", span(until.saturating_sub(at))));
    let until = until().unwrap_or_default();
    let window = credential["window"].as_str().map(|window| format!(" ({window})")).unwrap_or_default();
    match text(credential, "state") {
        "rate_limited" => format!("rate-limited{until}{window}"),
        "paused" => format!("paused at its cap{until}{window}"),
        "login_needed" => "login needed".to_owned(),
        "cannot_refresh" => "cannot refresh".to_owned(),
        other => other.to_owned(),
    }
}

/// What does not fit into a column: a reason, one line each.
fn note(name: &str, credential: &Value) -> Vec<String> {
    let state = text(credential, "state");
    let what = if state == "login_needed" { "log in again: " } else { "" };
    // That is the reason already.
    let refresh = if state == "cannot_refresh" { "" } else { "refresh_failure" };
    let reasons = [(what, "reason"), ("the last refresh: ", refresh), ("the last poll: ", "poll_failure")];
    reasons.into_iter().filter_map(|(what, key)| Some(format!("{name}: {what}{}", credential[key].as_str()?))).collect()
}

/// `3d 4h`, `2h 5m`, `7m`, `12s`: two units at most.
fn span(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_person_reads_states_and_spans() {
        let window = json!({"used": 41.6, "cap": 80.0, "resets_at": 7_500_000});
        let credential = |more: Value| {
            let mut whole = json!({"credential": "a", "kind": "oauth", "state": "ready", "five_hour": window,
                "weekly": window, "plan": "pro", "polled_at": 0, "sessions": 3, "in_flight": 1});
            whole.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            json!({"at": 0, "services": [{"service": "ocm", "credentials": [whole]}]})
        };
        let table = as_text(&credential(json!({})));
        let last = table.lines().last().expect("a row");
        assert_eq!(
            last,
            "a           ready  41% of 80%  2h 5m      41% of 80%  2h 5m      pro   0s ago         3          1"
        );
        let limited = json!({"state": "rate_limited", "until": 90_000_000, "window": "weekly"});
        assert!(as_text(&credential(limited)).contains("rate-limited for 1d 1h (weekly)"));
        let broken = json!({"state": "unreadable", "reason": "cannot read it", "poll_failure": "answered 500"});
        let broken = as_text(&credential(broken));
        assert!(broken.ends_with("a: cannot read it\na: the last poll: answered 500"), "{broken}");
        assert!(broken.contains("0s ago, stale"));
    }
}
