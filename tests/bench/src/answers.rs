//! The bytes that the bench upstream sends. They are built once and sent unchanged.
//!
//! Owns the shapes of traffic and the bytes of the answer to each; does not know connections. The
//! load generator builds the same answers and checks that each body is complete: a forwarder that
//! drops or rewrites bytes fails the run instead of winning it.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::frames::{Sender, text_frame};

/// The model of requests and answers, which Tollgate's pricer knows.
pub const MODEL: &str = "gpt-5.4";

/// A kind of traffic: one measure of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// A small JSON answer with usage.
    Json,
    /// An event stream, one event per write of the upstream.
    Sse,
    /// An event stream, many events per write of the upstream, each its own HTTP chunk.
    Burst,
    /// A head and one event; then the stream stays open and silent.
    Idle,
    /// Turns over a WebSocket, one message per write of the upstream.
    Socket,
    /// A WebSocket that is open and silent after a short turn.
    IdleSocket,
}

impl Shape {
    /// All shapes in the order of measurement and output.
    pub const ALL: [Shape; 6] = [
        Shape::Json,
        Shape::Sse,
        Shape::Burst,
        Shape::Socket,
        Shape::Idle,
        Shape::IdleSocket,
    ];

    /// Returns the short name, as in `--only`, in the JSON report and in the request's query.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Json => "json",
            Shape::Sse => "sse",
            Shape::Burst => "burst",
            Shape::Idle => "idle",
            Shape::Socket => "socket",
            Shape::IdleSocket => "idle-socket",
        }
    }

    /// Whether memory is measured, not CPU time.
    pub fn is_idle(self) -> bool {
        match self {
            Shape::Idle | Shape::IdleSocket => true,
            Shape::Json | Shape::Sse | Shape::Burst | Shape::Socket => false,
        }
    }

    /// Whether the traffic uses WebSockets.
    pub fn is_socket(self) -> bool {
        match self {
            Shape::Socket | Shape::IdleSocket => true,
            Shape::Json | Shape::Sse | Shape::Burst | Shape::Idle => false,
        }
    }

    /// Returns the shape with this name.
    pub fn named(name: &str) -> Option<Shape> {
        Self::ALL.into_iter().find(|shape| shape.name() == name)
    }

    /// Returns the request target. Its query says how upstream answers; every forwarder passes it
    /// on.
    pub fn target(self) -> &'static str {
        match self {
            Shape::Json => "/v1/responses?shape=json",
            Shape::Sse => "/v1/responses?shape=sse",
            Shape::Burst => "/v1/responses?shape=burst",
            Shape::Idle => "/v1/responses?shape=idle",
            Shape::Socket => "/v1/responses?shape=socket",
            Shape::IdleSocket => "/v1/responses?shape=idle-socket",
        }
    }

    /// Returns the shape that the query of a request target names.
    pub fn of_target(target: &str) -> Option<Shape> {
        let (_, query) = target.split_once('?')?;
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix("shape="))
            .and_then(Shape::named)
    }
}

/// The length of the streams, and how their events are spread over upstream's writes.
#[derive(Clone, Copy, Debug)]
pub struct StreamPlan {
    /// Deltas in a stream, beside the few events around them. Over a socket they are spread over
    /// [`SOCKET_TURNS`].
    pub deltas: usize,
    /// Events per write in [`Shape::Burst`], at least 1.
    pub burst: usize,
}

/// Turns of a socket in one measurement. Each ends with a row in the ledger, as a stream does.
pub const SOCKET_TURNS: usize = 4;

/// Every answer: a complete HTTP/1.1 response, or the frames of a turn.
#[derive(Debug)]
pub struct Answers {
    json: Answer,
    sse: Answer,
    burst: Answer,
    idle: Answer,
    socket: Answer,
    idle_socket: Answer,
    usage_poll: Bytes,
    upgrade_fields: String,
}

/// The answer to one request, or to one message from a client.
#[derive(Debug)]
pub struct Answer {
    /// The bytes of each of upstream's writes.
    pub writes: Vec<Bytes>,
    /// What a client counts: requests for JSON and idle streams, otherwise events or messages.
    pub units: u64,
    /// The bytes of body or payload that a client must receive; `None` if the answer has no end.
    pub body_bytes: Option<usize>,
}

impl Answers {
    /// Builds every answer. The rate-limit windows end some days from now.
    pub fn new(plan: StreamPlan) -> Self {
        let now_s = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let limits = rate_limit_headers(now_s);
        let events: Vec<String> = turn(plan.deltas).iter().map(event).collect();
        let first = events.first().cloned().unwrap_or_default();
        Self {
            json: sized_answer(&limits, &json_body()),
            sse: chunked_answer(&limits, &events, 1),
            burst: chunked_answer(&limits, &events, plan.burst.max(1)),
            idle: Answer {
                writes: vec![Bytes::from([stream_head(&limits), chunk(&first)].concat())],
                units: 1,
                body_bytes: None,
            },
            socket: framed_answer(&turn(plan.deltas.div_ceil(SOCKET_TURNS))),
            idle_socket: framed_answer(&turn(0)),
            usage_poll: sized_answer(&limits, &usage_poll_body(now_s))
                .writes
                .concat()
                .into(),
            upgrade_fields: limits,
        }
    }

    /// Returns the answer for `shape`. That for [`Shape::Idle`] has no end; that for a socket is
    /// one turn.
    pub fn of(&self, shape: Shape) -> &Answer {
        match shape {
            Shape::Json => &self.json,
            Shape::Sse => &self.sse,
            Shape::Burst => &self.burst,
            Shape::Idle => &self.idle,
            Shape::Socket => &self.socket,
            Shape::IdleSocket => &self.idle_socket,
        }
    }

    /// Returns the answer to Tollgate's polls of `wham/usage`.
    pub fn usage_poll(&self) -> &Bytes {
        &self.usage_poll
    }

    /// Returns the answer to a WebSocket handshake.
    pub fn upgrade(&self, accept: &str) -> String {
        let fields = &self.upgrade_fields;
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-accept: {accept}\r\n{fields}\r\n"
        )
    }
}

fn rate_limit_headers(now_s: u64) -> String {
    let primary_reset = now_s + 4 * 3600;
    let secondary_reset = now_s + 4 * 86_400;
    format!(
        "x-codex-active-limit: codex\r\n\
         x-codex-primary-used-percent: 12.5\r\n\
         x-codex-primary-window-minutes: 300\r\n\
         x-codex-primary-reset-at: {primary_reset}\r\n\
         x-codex-secondary-used-percent: 7.5\r\n\
         x-codex-secondary-window-minutes: 10080\r\n\
         x-codex-secondary-reset-at: {secondary_reset}\r\n\
         x-request-id: req_0123456789abcdef0123456789abcdef\r\n\
         openai-model: {MODEL}\r\n\
         date: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
    )
}

fn sized_answer(limits: &str, body: &str) -> Answer {
    let length = body.len();
    let whole = Bytes::from(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{limits}\r\n{body}"
    ));
    Answer {
        writes: vec![whole],
        units: 1,
        body_bytes: Some(length),
    }
}

fn stream_head(limits: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n\
         transfer-encoding: chunked\r\n{limits}\r\n"
    )
}

/// One event is one chunk, as servers that flush each event send it.
fn chunk(event: &str) -> String {
    format!("{:x}\r\n{event}\r\n", event.len())
}

fn chunked_answer(limits: &str, events: &[String], events_per_write: usize) -> Answer {
    let mut writes: Vec<String> = events
        .chunks(events_per_write)
        .map(|group| group.iter().map(|event| chunk(event)).collect())
        .collect();
    if let Some(first) = writes.first_mut() {
        first.insert_str(0, &stream_head(limits));
    }
    if let Some(last) = writes.last_mut() {
        last.push_str("0\r\n\r\n");
    }
    Answer {
        writes: writes.into_iter().map(Bytes::from).collect(),
        units: events.len() as u64,
        body_bytes: Some(events.iter().map(String::len).sum()),
    }
}

/// One message is one frame and one write.
fn framed_answer(turn: &[Value]) -> Answer {
    let messages: Vec<String> = turn.iter().map(Value::to_string).collect();
    Answer {
        writes: messages
            .iter()
            .map(|message| text_frame(Sender::Server, message.as_bytes()))
            .collect(),
        units: messages.len() as u64,
        body_bytes: Some(messages.iter().map(String::len).sum()),
    }
}

const RESPONSE_ID: &str = "resp_0123456789abcdef0123456789abcdef";
const MESSAGE_ID: &str = "msg_0123456789abcdef0123456789abcdef";
const DELTA: &str = " gateway";

fn usage() -> Value {
    json!({
        "input_tokens": 1200,
        "input_tokens_details": {"cached_tokens": 1024},
        "output_tokens": 340,
        "output_tokens_details": {"reasoning_tokens": 128},
        "total_tokens": 1540,
    })
}

fn response(status: &str, text: &str, usage: Option<Value>) -> Value {
    json!({
        "id": RESPONSE_ID,
        "object": "response",
        "created_at": 1_767_225_600,
        "status": status,
        "model": MODEL,
        "service_tier": "default",
        "output": [{
            "id": MESSAGE_ID,
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "annotations": [], "text": text}],
        }],
        "usage": usage,
    })
}

fn json_body() -> String {
    response("completed", "The gateway is open.", Some(usage())).to_string()
}

fn usage_poll_body(now_s: u64) -> String {
    json!({
        "plan_type": "pro",
        "rate_limit": {
            "allowed": true,
            "limit_reached": false,
            "primary_window": {
                "used_percent": 12, "limit_window_seconds": 18_000, "reset_at": now_s + 4 * 3600,
            },
            "secondary_window": {
                "used_percent": 7, "limit_window_seconds": 604_800, "reset_at": now_s + 4 * 86_400,
            },
        },
    })
    .to_string()
}

fn event(data: &Value) -> String {
    let name = data["type"].as_str().unwrap_or_default();
    format!("event: {name}\ndata: {data}\n\n")
}

/// Returns the events of a turn: opening ones, the deltas, and a `response.completed` with the
/// output and the usage.
fn turn(deltas: usize) -> Vec<Value> {
    let text = DELTA.repeat(deltas);
    let item = json!({"id": MESSAGE_ID, "type": "message", "role": "assistant", "content": []});
    let whole = response("completed", &text, Some(usage()));
    let mut events = Vec::with_capacity(deltas + 4);
    events.push(json!({"type": "response.created", "response": response("in_progress", "", None)}));
    events.push(json!({"type": "response.output_item.added", "output_index": 0, "item": item}));
    events.extend((0..deltas).map(delta));
    events.push(
        json!({"type": "response.output_item.done", "output_index": 0, "item": whole["output"][0]}),
    );
    events.push(json!({"type": "response.completed", "response": whole}));
    events
}

fn delta(sequence: usize) -> Value {
    json!({
        "type": "response.output_text.delta",
        "sequence_number": sequence + 2,
        "item_id": MESSAGE_ID,
        "output_index": 0,
        "content_index": 0,
        "delta": DELTA,
        "logprobs": [],
    })
}

#[cfg(test)]
mod tests {
    use super::{Answers, SOCKET_TURNS, Shape, StreamPlan, delta, event, turn};
    use crate::frames::FrameCount;

    #[test]
    fn a_delta_is_about_two_hundred_bytes() {
        for length in [event(&delta(1000)).len(), delta(1000).to_string().len()] {
            assert!((170..=240).contains(&length), "{length}");
        }
    }

    #[test]
    fn both_streams_carry_the_same_bytes() {
        let answers = Answers::new(StreamPlan {
            deltas: 100,
            burst: 16,
        });
        let [sse, burst] = [Shape::Sse, Shape::Burst].map(|shape| &answers.of(shape).writes);
        assert_eq!(sse.concat(), burst.concat());
        assert_eq!(sse.len(), turn(100).len());
        assert_eq!(burst.len(), turn(100).len().div_ceil(16));
    }

    #[test]
    fn a_turn_over_a_socket_is_counted_as_it_was_made() {
        let answers = Answers::new(StreamPlan {
            deltas: 100,
            burst: 16,
        });
        let answer = answers.of(Shape::Socket);
        assert_eq!(answer.writes.len(), turn(100 / SOCKET_TURNS).len());
        let mut frames = FrameCount::default();
        answer
            .writes
            .concat()
            .chunks(7)
            .for_each(|piece| frames.feed(piece));
        assert_eq!(
            (frames.messages, Some(frames.payload_bytes)),
            (answer.units, answer.body_bytes)
        );
        assert!(!frames.is_closed);
    }

    #[test]
    fn a_target_names_its_shape_under_any_path() {
        for shape in Shape::ALL {
            let mapped = shape.target().replace("/v1/", "/backend-api/codex/");
            assert_eq!(Shape::of_target(&mapped), Some(shape));
        }
        assert_eq!(Shape::of_target("/v1/responses"), None);
    }
}
