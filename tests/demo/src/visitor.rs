//! A user's client: one turn over SSE, with the headers and the body of Codex.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::outcome::Outcome;
use crate::scene::User;

const TURN_WAIT_MAX: Duration = Duration::from_secs(30);

/// One conversation of one user.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) user: User,
    /// Its name in the tour.
    pub(crate) name: String,
    /// Its name for Codex: the header `session-id` and the body's `prompt_cache_key`.
    pub(crate) id: String,
    pub(crate) model: &'static str,
}

/// The answer to a turn.
pub(crate) struct Turn {
    pub(crate) response_id: String,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
}

/// Sends turns to the gateway.
pub(crate) struct Visitor {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
}

impl Visitor {
    /// Creates a client of the gateway at `url`.
    pub(crate) fn new(url: &str) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Visitor {
            client,
            url: format!("{url}/v1/responses"),
        }
    }

    /// Sends one turn and reads the whole answer. Anything but 200 and a completed response is a
    /// failure.
    pub(crate) async fn send(&self, session: &Session, says: &str) -> Outcome<Turn> {
        let name = format!("a turn of session {} ({})", session.name, session.user.name);
        let (status, body) = tokio::time::timeout(TURN_WAIT_MAX, self.exchange(session, says))
            .await
            .map_err(|_| format!("{name}: no whole answer within {TURN_WAIT_MAX:?}"))?
            .map_err(|error| format!("{name}: {error}"))?;
        let text = String::from_utf8_lossy(&body);
        if status != StatusCode::OK {
            return Err(format!(
                "{name}: expected status 200, found {status}: {text}"
            ));
        }
        completed(&text)
            .ok_or_else(|| format!("{name}: expected the event response.completed, found: {text}"))
    }

    async fn exchange(&self, session: &Session, says: &str) -> Outcome<(StatusCode, Bytes)> {
        let response = self
            .client
            .request(request(&self.url, session, says))
            .await
            .map_err(|error| {
                let cause = std::error::Error::source(&error)
                    .map(|cause| format!(": {cause}"))
                    .unwrap_or_default();
                format!("{error}{cause}")
            })?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| format!("the answer broke off: {error}"))?;
        Ok((status, body.to_bytes()))
    }
}

fn request(url: &str, session: &Session, says: &str) -> Request<Full<Bytes>> {
    let id = &session.id;
    Request::post(url)
        .header("authorization", format!("Bearer {}", session.user.token))
        .header("content-type", "application/json")
        .header("accept", "text/event-stream")
        .header("originator", "codex_exec")
        .header("session-id", id)
        .header("thread-id", id)
        .header("x-client-request-id", id)
        .header("x-codex-window-id", format!("{id}:0"))
        .body(Full::new(Bytes::from(body(session, says).to_string())))
        .expect("a URL from the ready file and headers of plain text")
}

fn body(session: &Session, says: &str) -> Value {
    json!({
        "model": session.model,
        "instructions": "You are a coding agent.",
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": says}]}],
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": true,
        "reasoning": {"effort": "medium"},
        "store": false,
        "stream": true,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": session.id,
        "client_metadata": {"session_id": session.id},
    })
}

/// Returns the figures of the stream's `response.completed`.
fn completed(stream: &str) -> Option<Turn> {
    let mut events = stream
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data:")?).ok());
    let completed = events.find(|event| event["type"] == "response.completed")?;
    let response = &completed["response"];
    Some(Turn {
        response_id: response["id"].as_str()?.to_owned(),
        input_tokens: response["usage"]["input_tokens"].as_u64()?,
        output_tokens: response["usage"]["output_tokens"].as_u64()?,
    })
}
