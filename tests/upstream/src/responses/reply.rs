//! What upstream answers, as a builder. Owns the description, not its bytes (`answer` makes those).

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Map, Value, json};

use crate::responses::body::Break;
use crate::responses::encoding::Encoding;
use crate::responses::sse::Spelling;
use crate::waits::gate::Gate;

const DELTAS: usize = 3;
const DELTA_BYTES: usize = 5;

/// One scripted reply. By default a successful turn; each method changes one thing about it.
#[derive(Clone, Debug)]
pub struct Reply {
    pub(crate) content: Content,
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) rate_limits: Presence,
    pub(crate) content_type: Presence,
    pub(crate) spelling: Spelling,
    pub(crate) encoding: Option<Encoding>,
    pub(crate) chunk_bytes: Vec<usize>,
    pub(crate) head_gate: Option<Gate>,
    pub(crate) gates: Vec<(usize, Gate)>,
    pub(crate) pause: Option<Duration>,
    pub(crate) cut: Option<Cut>,
    pub(crate) cut_by: Break,
}

#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// What the route answers on success.
    Natural(Turn),
    /// An object `{"error": {…}}` with these fields.
    Error(Map<String, Value>),
    /// These bytes as the body.
    Raw {
        body: Bytes,
        media: Option<&'static str>,
    },
    /// These bytes instead of HTTP.
    Garbage(Bytes),
}

/// The figures of a successful turn.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    pub(crate) deltas: usize,
    pub(crate) delta_bytes: usize,
    pub(crate) model: Option<String>,
    pub(crate) service_tier: Option<String>,
    pub(crate) response_id: Option<String>,
    pub(crate) usage: Option<Usage>,
    pub(crate) end: End,
}

/// Whether a header is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Present,
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    BeforeHead,
    AfterBytes(usize),
}

/// How a Responses stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It ends with `response.completed`.
    Completed,
    /// `response.incomplete`, out of output tokens.
    Incomplete,
    /// `response.failed`, a server error.
    Failed,
    /// No last event: the body ends after the deltas.
    Missing,
}

/// Tokens of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// `input_tokens`, cached ones included.
    pub input: u64,
    /// `input_tokens_details.cached_tokens`, a part of the input.
    pub cached: u64,
    /// `input_tokens_details.cache_write_tokens`, a part of the input.
    pub cache_write: u64,
    /// `output_tokens`, reasoning ones included.
    pub output: u64,
    /// `output_tokens_details.reasoning_tokens`, a part of the output.
    pub reasoning: u64,
}

impl Default for Usage {
    fn default() -> Self {
        Usage {
            input: 1200,
            cached: 800,
            cache_write: 0,
            output: 150,
            reasoning: 50,
        }
    }
}

impl Default for Reply {
    fn default() -> Self {
        Self::ok()
    }
}

impl Reply {
    /// Creates what the route answers on success: a stream or one object, as the request asks.
    pub fn ok() -> Self {
        Self::with_content(StatusCode::OK, Content::Natural(Turn::default()))
    }

    /// Creates a response of this status with these bytes as its body. It has no Content-Type; add
    /// one with [`header`](Self::header).
    ///
    /// # Panics
    /// Panics if `status` is not an HTTP status.
    pub fn raw(status: u16, body: impl Into<Bytes>) -> Self {
        Self::with_content(
            status_code(status),
            Content::Raw {
                body: body.into(),
                media: None,
            },
        )
    }

    /// Creates a response of this status with a JSON body.
    ///
    /// # Panics
    /// Panics if `status` is not an HTTP status.
    pub fn json(status: u16, body: &Value) -> Self {
        let content = Content::Raw {
            body: body.to_string().into(),
            media: Some("application/json"),
        };
        Self::with_content(status_code(status), content)
    }

    /// Creates a 200 with these bytes as the event stream.
    pub fn sse(body: impl Into<Bytes>) -> Self {
        let content = Content::Raw {
            body: body.into(),
            media: Some("text/event-stream"),
        };
        Self::with_content(StatusCode::OK, content)
    }

    /// Creates an error in OpenAI's form: `{"error": {"message", "type", "code": null}}`.
    ///
    /// # Panics
    /// Panics if `status` is not an HTTP status.
    pub fn error(status: u16, error_type: &str, message: &str) -> Self {
        Self::with_content(
            status_code(status),
            Content::Error(Map::from_iter([
                ("message".to_owned(), json!(message)),
                ("type".to_owned(), json!(error_type)),
                ("code".to_owned(), Value::Null),
            ])),
        )
    }

    /// Creates a 5xx with the backend's text.
    ///
    /// # Panics
    /// Panics if `status` is not an HTTP status.
    pub fn server_error(status: u16) -> Self {
        Self::error(
            status,
            "server_error",
            "The server had an error while processing your request.",
        )
    }

    /// Creates a 429 `usage_limit_reached`. Add when it ends: [`resets_at`](Self::resets_at),
    /// [`resets_in_seconds`](Self::resets_in_seconds), [`retry_after`](Self::retry_after), or
    /// nothing.
    pub fn usage_limit_reached() -> Self {
        Self::error(
            429,
            "usage_limit_reached",
            "The usage limit has been reached",
        )
        .error_field("plan_type", json!("plus"))
    }

    /// Sends bytes that are not HTTP, then closes the connection.
    pub fn garbage(bytes: impl Into<Bytes>) -> Self {
        Self::with_content(StatusCode::OK, Content::Garbage(bytes.into()))
    }

    /// Closes the connection instead of answering.
    pub fn close_before_head() -> Self {
        Reply {
            cut: Some(Cut::BeforeHead),
            ..Self::ok()
        }
    }

    /// Adds `resets_at` (Unix seconds) to an error.
    pub fn resets_at(self, unix_seconds: u64) -> Self {
        self.error_field("resets_at", json!(unix_seconds))
    }

    /// Adds `resets_in_seconds` to an error.
    pub fn resets_in_seconds(self, seconds: u64) -> Self {
        self.error_field("resets_in_seconds", json!(seconds))
    }

    /// Adds a field to an error, or changes one (`code`, for example).
    ///
    /// # Panics
    /// Panics if the reply is not an error.
    pub fn error_field(mut self, name: &str, value: Value) -> Self {
        let Content::Error(fields) = &mut self.content else {
            panic!("scripted upstream: only an error has the field {name:?}");
        };
        fields.insert(name.to_owned(), value);
        self
    }

    /// Adds Retry-After: seconds or a date.
    pub fn retry_after(self, value: &str) -> Self {
        self.header("retry-after", value)
    }

    /// Sets the status alone.
    ///
    /// # Panics
    /// Panics if `status` is not an HTTP status.
    pub fn status(mut self, status: u16) -> Self {
        self.status = status_code(status);
        self
    }

    /// Adds a header. A Content-Type replaces the default one.
    ///
    /// # Panics
    /// Panics if HTTP does not allow the name or the value.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::try_from(name).expect("a header name");
        self.headers
            .push((name, HeaderValue::try_from(value).expect("a header value")));
        self
    }

    /// Omits the account's rate-limit headers.
    pub fn without_rate_limits(mut self) -> Self {
        self.rate_limits = Presence::Absent;
        self
    }

    /// Omits the header field `Content-Type`.
    pub fn without_content_type(mut self) -> Self {
        self.content_type = Presence::Absent;
        self
    }

    /// Sets how many deltas the answer has (3 by default).
    pub fn deltas(self, count: usize) -> Self {
        self.turn(|turn| turn.deltas = count)
    }

    /// Sets how many bytes of text a delta has (5 by default).
    pub fn delta_bytes(self, bytes: usize) -> Self {
        self.turn(|turn| turn.delta_bytes = bytes)
    }

    /// Sets the model that the answer names, instead of the request's.
    pub fn model(self, model: &str) -> Self {
        self.turn(|turn| turn.model = Some(model.to_owned()))
    }

    /// Sets the service tier that the answer names, instead of the request's (or `default`).
    pub fn service_tier(self, tier: &str) -> Self {
        self.turn(|turn| turn.service_tier = Some(tier.to_owned()))
    }

    /// Sets the response's id, instead of a new one.
    pub fn response_id(self, id: &str) -> Self {
        self.turn(|turn| turn.response_id = Some(id.to_owned()))
    }

    /// Sets the token counts of the answer.
    pub fn usage(self, usage: Usage) -> Self {
        self.turn(|turn| turn.usage = Some(usage))
    }

    /// Omits the token counts.
    pub fn without_usage(self) -> Self {
        self.turn(|turn| turn.usage = None)
    }

    /// Sets how the answer ends.
    pub fn end(self, end: End) -> Self {
        self.turn(|turn| turn.end = end)
    }

    /// Compresses the body, and says so in `Content-Encoding`.
    pub fn encoded(mut self, encoding: Encoding) -> Self {
        self.encoding = Some(encoding);
        self
    }

    /// Ends the lines of events with CRLF.
    pub fn crlf(mut self) -> Self {
        self.spelling.crlf = true;
        self
    }

    /// Puts a comment line before each event.
    pub fn comments(mut self) -> Self {
        self.spelling.comments = true;
        self
    }

    /// Puts no space after a field's colon (`data:{…}`).
    pub fn without_space(mut self) -> Self {
        self.spelling.no_space = true;
        self
    }

    /// Omits the last event's line end.
    pub fn without_final_newline(mut self) -> Self {
        self.spelling.no_final_newline = true;
        self
    }

    /// Writes the body in chunks of these sizes, used in turn until it ends. Each is sent once the
    /// one before is written.
    ///
    /// # Panics
    /// Panics if a size is 0.
    pub fn chunks(mut self, sizes: &[usize]) -> Self {
        assert!(
            !sizes.contains(&0),
            "scripted upstream: a chunk of 0 bytes would end the body"
        );
        self.chunk_bytes = sizes.to_vec();
        self
    }

    /// Sends nothing, not even the head, until the gate opens. If the gate never opens, upstream
    /// never answers.
    pub fn hold_head(mut self, gate: &Gate) -> Self {
        self.head_gate = Some(gate.clone());
        self
    }

    /// Sends the head and `parts` parts, then waits for the gate. The events before the first delta
    /// are one part, each delta is one, those that end the message are one, and the last event is
    /// one. With [`chunks`](Self::chunks), a part is a chunk. A body that is not a stream is one
    /// part: over HTTP/2, a gate after it delays the end of the stream.
    pub fn hold_after(mut self, parts: usize, gate: &Gate) -> Self {
        self.gates.push((parts, gate.clone()));
        self
    }

    /// Waits this long between parts: for the demo and benchmarks, not for tests.
    pub fn pause_between(mut self, pause: Duration) -> Self {
        self.pause = Some(pause);
        self
    }

    /// Closes the connection once `bytes` bytes of the (compressed) body are sent.
    pub fn close_after(mut self, bytes: usize) -> Self {
        self.cut = Some(Cut::AfterBytes(bytes));
        self
    }

    /// Makes a reply that closes the connection send RST instead of FIN.
    pub fn by_reset(mut self) -> Self {
        self.cut_by = Break::Reset;
        self
    }

    /// Makes a reply that closes the connection reset its stream instead. Over HTTP/1.1 it still
    /// closes the connection.
    pub fn by_stream_reset(mut self, reason: Reason) -> Self {
        self.cut_by = Break::ResetStream(reason);
        self
    }

    /// Makes a reply that closes the connection send GOAWAY. Before the head, its own request and
    /// later ones count as not processed, and the connection stays open for earlier ones. In the
    /// body, every request counts as processed, and the connection closes. Over HTTP/1.1 it only
    /// closes the connection.
    pub fn by_go_away(mut self, reason: Reason) -> Self {
        self.cut_by = Break::GoAway(reason);
        self
    }

    fn with_content(status: StatusCode, content: Content) -> Self {
        Reply {
            content,
            status,
            headers: Vec::new(),
            rate_limits: Presence::Present,
            content_type: Presence::Present,
            spelling: Spelling::default(),
            encoding: None,
            chunk_bytes: Vec::new(),
            head_gate: None,
            gates: Vec::new(),
            pause: None,
            cut: None,
            cut_by: Break::Close,
        }
    }

    fn turn(mut self, change: impl FnOnce(&mut Turn)) -> Self {
        let Content::Natural(turn) = &mut self.content else {
            panic!("scripted upstream: only a reply from Reply::ok() has figures of a turn");
        };
        change(turn);
        self
    }
}

impl Default for Turn {
    fn default() -> Self {
        Turn {
            deltas: DELTAS,
            delta_bytes: DELTA_BYTES,
            model: None,
            service_tier: None,
            response_id: None,
            usage: Some(Usage::default()),
            end: End::Completed,
        }
    }
}

impl Usage {
    /// Returns the counts as the Responses API writes them.
    pub(crate) fn for_responses(&self) -> Value {
        json!({
            "input_tokens": self.input,
            "input_tokens_details": {"cached_tokens": self.cached, "cache_write_tokens": self.cache_write},
            "output_tokens": self.output,
            "output_tokens_details": {"reasoning_tokens": self.reasoning},
            "total_tokens": self.input + self.output,
        })
    }

    /// Returns the counts as the chat completions API writes them.
    pub(crate) fn for_chat(&self) -> Value {
        json!({
            "prompt_tokens": self.input,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens": self.output,
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
            "total_tokens": self.input + self.output,
        })
    }
}

fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status)
        .unwrap_or_else(|_| panic!("scripted upstream: {status} is no HTTP status"))
}
