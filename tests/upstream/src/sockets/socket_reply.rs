//! What upstream does on a socket after a `response.create`: steps, in order. Owns the description;
//! `server/socket.rs` performs the steps.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::responses::reply::{End, Turn, Usage};
use crate::responses::standing::Standing;
use crate::waits::gate::Gate;

/// The code that stands for a close frame without one (RFC 6455, section 7.1.5). It is never sent.
pub const NO_CLOSE_CODE: u16 = 1005;

/// One scripted reply on a socket: [`ok`](Self::ok), or steps added to [`begun`](Self::begun) or
/// [`silent`](Self::silent) one by one. Each event is one text message.
#[derive(Clone, Debug)]
pub struct SocketReply {
    pub(crate) turn: Turn,
    pub(crate) output_bytes: Option<usize>,
    pub(crate) fragments: Vec<usize>,
    pub(crate) ping_within: Option<Bytes>,
    pub(crate) pause: Option<Duration>,
    pub(crate) steps: Vec<SocketStep>,
}

#[derive(Clone, Debug)]
pub(crate) enum SocketStep {
    /// The first event, `response.created`.
    Created,
    /// The events of the assistant's message, from `response.in_progress` to
    /// `response.output_item.done`.
    Message,
    End(End),
    Text(Bytes),
    Binary(Bytes),
    Ping(Bytes),
    Pong(Bytes),
    Raw(Bytes),
    Hold(Gate),
    Close {
        code: u16,
        reason: String,
    },
    Finish,
    Reset,
}

impl SocketReply {
    /// Creates a successful turn: [`begun`](Self::begun), then [`completed`](Self::completed).
    pub fn ok() -> Self {
        Self::begun().completed()
    }

    /// Creates a turn up to `response.output_item.done`, without its last event.
    pub fn begun() -> Self {
        Self::silent().then_begun()
    }

    /// Creates an empty reply: the turn stays open unless steps are added.
    pub fn silent() -> Self {
        SocketReply {
            turn: Turn::default(),
            output_bytes: None,
            fragments: Vec::new(),
            ping_within: None,
            pause: None,
            steps: Vec::new(),
        }
    }

    /// Creates the answer to a prewarm: created and completed, nothing in between, and no tokens.
    pub fn prewarm() -> Self {
        let nothing = Usage {
            input: 0,
            cached: 0,
            cache_write: 0,
            output: 0,
            reasoning: 0,
        };
        Self::silent()
            .step(SocketStep::Created)
            .completed()
            .usage(nothing)
    }

    /// Steps: those of [`begun`](Self::begun).
    pub fn then_begun(self) -> Self {
        self.step(SocketStep::Created).step(SocketStep::Message)
    }

    /// Step: the event `response.completed`.
    pub fn completed(self) -> Self {
        self.step(SocketStep::End(End::Completed))
    }

    /// Step: `response.incomplete`, out of output tokens.
    pub fn incomplete(self) -> Self {
        self.step(SocketStep::End(End::Incomplete))
    }

    /// Step: `response.failed`, a server error.
    pub fn failed(self) -> Self {
        self.step(SocketStep::End(End::Failed))
    }

    /// Step: an error event.
    pub fn error(self, error: SocketError) -> Self {
        self.event(&error.event())
    }

    /// Step: a `codex.rate_limits` event with these figures. It names the limit in
    /// `metered_limit_name`; for another form use [`event`](Self::event).
    pub fn rate_limits(self, standing: &Standing) -> Self {
        self.event(&standing.event())
    }

    /// Step: an event of any kind.
    pub fn event(self, event: &Value) -> Self {
        self.text(event.to_string())
    }

    /// Step: a text message. Bytes that are not UTF-8 are sent as they are.
    pub fn text(self, payload: impl Into<Bytes>) -> Self {
        self.step(SocketStep::Text(payload.into()))
    }

    /// Step: a binary message.
    pub fn binary(self, payload: impl Into<Bytes>) -> Self {
        self.step(SocketStep::Binary(payload.into()))
    }

    /// Step: a ping with this payload.
    pub fn ping(self, payload: impl Into<Bytes>) -> Self {
        self.step(SocketStep::Ping(payload.into()))
    }

    /// Step: an unsolicited pong.
    pub fn pong(self, payload: impl Into<Bytes>) -> Self {
        self.step(SocketStep::Pong(payload.into()))
    }

    /// Step: raw bytes on the connection.
    pub fn raw(self, bytes: impl Into<Bytes>) -> Self {
        self.step(SocketStep::Raw(bytes.into()))
    }

    /// Step: waits for the gate, with everything before it written. The client's messages are still
    /// read.
    pub fn hold(self, gate: &Gate) -> Self {
        self.step(SocketStep::Hold(gate.clone()))
    }

    /// Last step: a close frame; [`NO_CLOSE_CODE`] sends one without code and reason. The
    /// connection ends once the client's close frame has arrived.
    pub fn close(self, code: u16, reason: &str) -> Self {
        self.step(SocketStep::Close {
            code,
            reason: reason.to_owned(),
        })
    }

    /// Last step: FIN without a close frame. The client's messages are still read.
    pub fn finish(self) -> Self {
        self.step(SocketStep::Finish)
    }

    /// Last step: resets the connection (RST).
    pub fn reset(self) -> Self {
        self.step(SocketStep::Reset)
    }

    /// Sets how many deltas the message has (3 by default).
    pub fn deltas(mut self, count: usize) -> Self {
        self.turn.deltas = count;
        self
    }

    /// Sets how many bytes of text each delta has (5 by default).
    pub fn delta_bytes(mut self, bytes: usize) -> Self {
        self.turn.delta_bytes = bytes;
        self
    }

    /// Sets how many bytes of text the whole message has, as in the last event: those of the deltas
    /// by default.
    pub fn output_bytes(mut self, bytes: usize) -> Self {
        self.output_bytes = Some(bytes);
        self
    }

    /// Sets the model that the answer names, instead of the requested one.
    pub fn model(mut self, model: &str) -> Self {
        self.turn.model = Some(model.to_owned());
        self
    }

    /// Sets the service tier that the answer names, instead of the requested one.
    pub fn service_tier(mut self, tier: &str) -> Self {
        self.turn.service_tier = Some(tier.to_owned());
        self
    }

    /// Sets the response's id, instead of a new one.
    pub fn response_id(mut self, id: &str) -> Self {
        self.turn.response_id = Some(id.to_owned());
        self
    }

    /// Sets the token counts of the last event.
    pub fn usage(mut self, usage: Usage) -> Self {
        self.turn.usage = Some(usage);
        self
    }

    /// Omits the token counts.
    pub fn without_usage(mut self) -> Self {
        self.turn.usage = None;
        self
    }

    /// Sends each message in frames of these sizes, used in turn until it ends. Characters may be
    /// split.
    ///
    /// # Panics
    /// Panics if all sizes are 0.
    pub fn fragments(mut self, sizes: &[usize]) -> Self {
        assert!(
            sizes.iter().any(|size| *size > 0),
            "scripted upstream: frames of 0 bytes never end a message"
        );
        self.fragments = sizes.to_vec();
        self
    }

    /// Sends a ping after the first frame of each message with several frames.
    pub fn ping_within(mut self, payload: impl Into<Bytes>) -> Self {
        self.ping_within = Some(payload.into());
        self
    }

    /// Waits this long before each message: for the demo and benchmarks, not for tests.
    pub fn pause_between(mut self, pause: Duration) -> Self {
        self.pause = Some(pause);
        self
    }

    fn step(mut self, step: SocketStep) -> Self {
        self.steps.push(step);
        self
    }
}

impl From<SocketError> for SocketReply {
    fn from(error: SocketError) -> Self {
        SocketReply::silent().error(error)
    }
}

/// An error event: `{"type": "error", "status", "error": {"type", "code", "message", …}, "headers":
/// {…}}`.
#[derive(Clone, Debug)]
pub struct SocketError {
    status: u16,
    status_field: Option<&'static str>,
    fields: Map<String, Value>,
    headers: Map<String, Value>,
}

impl SocketError {
    /// Creates an error of this status, type and message; its code is null.
    pub fn new(status: u16, error_type: &str, message: &str) -> Self {
        let fields = [
            ("type", json!(error_type)),
            ("code", Value::Null),
            ("message", json!(message)),
        ];
        SocketError {
            status,
            status_field: Some("status"),
            fields: fields
                .map(|(name, value)| (name.to_owned(), value))
                .into_iter()
                .collect(),
            headers: Map::new(),
        }
    }

    /// Creates a 429 `usage_limit_reached`. Add when it ends.
    pub fn usage_limit_reached() -> Self {
        Self::new(
            429,
            "usage_limit_reached",
            "The usage limit has been reached",
        )
        .field("plan_type", json!("plus"))
    }

    /// Creates a 400 `previous_response_not_found`.
    pub fn previous_response_not_found(id: &str) -> Self {
        let message = format!("Previous response with id '{id}' not found.");
        let error = Self::new(400, "invalid_request_error", &message)
            .field("param", json!("previous_response_id"));
        error.code("previous_response_not_found")
    }

    /// Creates a 400 `websocket_connection_limit_reached`: the socket has reached its age limit.
    pub fn connection_limit_reached() -> Self {
        let message = "Responses websocket connection limit reached (60 minutes). \
                       Create a new websocket connection to continue.";
        Self::new(400, "invalid_request_error", message).code("websocket_connection_limit_reached")
    }

    /// Sets the error's `code`.
    pub fn code(self, code: &str) -> Self {
        self.field("code", json!(code))
    }

    /// Adds `resets_at` (Unix seconds) to the error.
    pub fn resets_at(self, unix_seconds: u64) -> Self {
        self.field("resets_at", json!(unix_seconds))
    }

    /// Adds `resets_in_seconds` to the error.
    pub fn resets_in_seconds(self, seconds: u64) -> Self {
        self.field("resets_in_seconds", json!(seconds))
    }

    /// Adds a field to the error, or changes one.
    pub fn field(mut self, name: &str, value: Value) -> Self {
        self.fields.insert(name.to_owned(), value);
        self
    }

    /// Adds a header to the event's `headers`, which are omitted if empty.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.to_owned(), json!(value));
        self
    }

    /// Adds the standing's rate-limit headers to the event's.
    pub fn headers_of(self, standing: &Standing) -> Self {
        standing
            .headers()
            .iter()
            .fold(self, |error, (name, value)| {
                error.header(
                    name.as_str(),
                    value.to_str().expect("a standing's headers are text"),
                )
            })
    }

    /// Writes the status as `status_code`.
    pub fn with_status_code(mut self) -> Self {
        self.status_field = Some("status_code");
        self
    }

    /// Omits the field `status` of the event.
    pub fn without_status(mut self) -> Self {
        self.status_field = None;
        self
    }

    /// Returns the error as an event.
    pub fn event(&self) -> Value {
        let mut event = json!({ "type": "error" });
        if let Some(field) = self.status_field {
            event[field] = json!(self.status);
        }
        event["error"] = Value::Object(self.fields.clone());
        if !self.headers.is_empty() {
            event["headers"] = Value::Object(self.headers.clone());
        }
        event
    }
}
