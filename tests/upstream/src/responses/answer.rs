//! Turns a [`Reply`] into bytes: the head and the steps of the body.
//! Invariant: what does not depend on the request is built once, when the reply is scripted.

use std::collections::VecDeque;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};

use crate::requests::asked::Asked;
use crate::responses::body::Step;
use crate::responses::events::{self, Event, TurnResponse, filler};
use crate::responses::reply::{Content, Cut, End, Presence, Reply, Turn};
use crate::responses::sse::Spelling;
use crate::responses::standing::unix_now;

const JSON: &str = "application/json";
const EVENT_STREAM: &str = "text/event-stream";
const MODEL: &str = "scripted-model";
/// The events before a stream's first delta: created, in_progress, output_item.added,
/// content_part.added.
const EVENTS_BEFORE_DELTAS: usize = 4;
const MODELS: [&str; 3] = ["gpt-5.4", "gpt-5.3-codex", "gpt-4.1-mini"];

/// The endpoint of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Responses,
    Compact,
    ChatCompletions,
    Models,
    CodexModels,
    Usage,
    Token,
    Socket,
}

impl Route {
    /// Returns `true` if a model runs there.
    pub(crate) fn is_turn(self) -> bool {
        match self {
            Route::Responses | Route::Compact | Route::ChatCompletions => true,
            Route::Models | Route::CodexModels | Route::Usage | Route::Token | Route::Socket => {
                false
            }
        }
    }
}

/// What an answer is made from besides the reply.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) route: Route,
    pub(crate) asked: Asked,
    /// The body of a successful usage poll or refresh.
    pub(crate) body: Option<Value>,
    pub(crate) rate_limits: HeaderMap,
    pub(crate) number: u64,
}

/// What goes to the client.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) steps: VecDeque<Step>,
    pub(crate) length: Option<u64>,
}

/// A reply with its constant parts built.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) reply: Reply,
    text: String,
    delta_events: Vec<Bytes>,
    delta_events_joined: Bytes,
    /// The object `usage`, as JSON.
    usage: String,
}

/// A body before encoding, and its media type.
struct Whole {
    media: Option<&'static str>,
    parts: Vec<Bytes>,
}

impl Prepared {
    pub(crate) fn new(reply: Reply) -> Self {
        let turn = match &reply.content {
            Content::Natural(turn) => turn.clone(),
            Content::Error(_) | Content::Raw { .. } | Content::Garbage(_) => Turn {
                deltas: 0,
                ..Turn::default()
            },
        };
        let delta = filler(turn.delta_bytes);
        let (delta_events, delta_events_joined) = delta_events(reply.spelling, &delta, turn.deltas);
        let usage = turn
            .usage
            .as_ref()
            .map_or(Value::Null, |usage| usage.for_responses());
        let (text, usage) = (delta.repeat(turn.deltas), usage.to_string());
        Prepared {
            text,
            delta_events,
            delta_events_joined,
            usage,
            reply,
        }
    }

    /// Builds the head and the body for one request.
    pub(crate) fn answer(&self, call: Call) -> Answer {
        let whole = self.whole(&call);
        let mut headers = match self.reply.rate_limits {
            Presence::Present => call.rate_limits,
            Presence::Absent => HeaderMap::new(),
        };
        if let (Some(media), Presence::Present) = (whole.media, self.reply.content_type) {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
        }
        if let Some(encoding) = self.reply.encoding {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding.name()));
        }
        for (name, value) in &self.reply.headers {
            if name == CONTENT_TYPE {
                headers.insert(name, value.clone());
            } else {
                headers.append(name, value.clone());
            }
        }
        let streamed = whole.media == Some(EVENT_STREAM);
        let parts = self.reply.cut_up(whole.parts);
        let length = (!streamed).then(|| parts.iter().map(|part| part.len() as u64).sum());
        Answer {
            status: self.reply.status,
            headers,
            steps: self.reply.steps(parts),
            length,
        }
    }

    fn whole(&self, call: &Call) -> Whole {
        let turn = match &self.reply.content {
            Content::Natural(turn) => turn,
            Content::Error(fields) => return Whole::json(&json!({ "error": fields })),
            Content::Raw { body, media } => {
                return Whole {
                    media: *media,
                    parts: vec![body.clone()],
                };
            }
            Content::Garbage(_) => {
                return Whole {
                    media: None,
                    parts: Vec::new(),
                };
            }
        };
        match call.route {
            Route::Responses if call.asked.stream => Whole {
                media: Some(EVENT_STREAM),
                parts: self.events(turn, call),
            },
            Route::Responses => {
                Whole::json_text(self.response(turn, call, |response| response.object(turn.end)))
            }
            Route::Compact => Whole::json(&self.compaction(turn, call)),
            Route::ChatCompletions if call.asked.stream => Whole {
                media: Some(EVENT_STREAM),
                parts: self.chat_events(turn, call),
            },
            Route::ChatCompletions => Whole::json(&self.chat_completion(turn, call)),
            Route::Models => Whole::json(&models()),
            Route::CodexModels => Whole::json(&json!({ "models": [] })),
            Route::Usage | Route::Token | Route::Socket => {
                Whole::json(call.body.as_ref().unwrap_or(&Value::Null))
            }
        }
    }

    /// Builds the events of a Responses stream. If something waits between parts, the parts are:
    /// the events before the first delta, each delta, the events that end the message, the last
    /// event. Otherwise all is one part.
    fn events(&self, turn: &Turn, call: &Call) -> Vec<Bytes> {
        self.response(turn, call, |response| {
            let begun = std::iter::once(response.created()).chain(response.message_begun());
            let mut parts = vec![self.numbered(0, begun)];
            if self.reply.is_in_parts() {
                parts.extend(self.delta_events.iter().cloned());
            } else {
                parts.push(self.delta_events_joined.clone());
            }
            if let Some(ended) = response.ended(turn.end) {
                let sequence = EVENTS_BEFORE_DELTAS + turn.deltas;
                let done = response.message_done();
                let last = sequence + done.len();
                parts.push(self.numbered(sequence, done));
                parts.push(self.numbered(last, [ended]));
            }
            self.finish_events(parts)
        })
    }

    /// Encodes events, numbered from `sequence`.
    fn numbered(&self, sequence: usize, events: impl IntoIterator<Item = Event>) -> Bytes {
        let mut out = Vec::new();
        for (number, event) in (sequence..).zip(events) {
            self.reply
                .spelling
                .write(&mut out, Some(event.name), &event.data(number));
        }
        out.into()
    }

    fn finish_events(&self, mut parts: Vec<Bytes>) -> Vec<Bytes> {
        if let Some(last) = parts.last_mut() {
            let kept = self.reply.spelling.trim_last(last).len();
            last.truncate(kept);
        }
        if self.reply.is_in_parts() {
            parts
        } else {
            vec![join(&parts)]
        }
    }

    /// Calls `tell` with the response.
    fn response<T>(&self, turn: &Turn, call: &Call, tell: impl FnOnce(TurnResponse<'_>) -> T) -> T {
        tell(TurnResponse {
            id: &call.response_id(turn),
            model: turn.model(&call.asked),
            service_tier: turn.service_tier(&call.asked),
            text: Some(&self.text),
            usage: &self.usage,
        })
    }

    fn compaction(&self, turn: &Turn, call: &Call) -> Value {
        json!({
            "id": call.response_id(turn),
            "object": "response.compaction",
            "created_at": unix_now(),
            "model": turn.model(&call.asked),
            "service_tier": turn.service_tier(&call.asked),
            "output": [{"type": "compaction", "id": "cmp_scripted", "encrypted_content": self.text}],
            "usage": turn.usage.map(|usage| usage.for_responses()),
        })
    }

    fn chat_events(&self, turn: &Turn, call: &Call) -> Vec<Bytes> {
        let head = json!({
            "id": call.response_id(turn),
            "object": "chat.completion.chunk",
            "created": unix_now(),
            "model": turn.model(&call.asked),
            "service_tier": turn.service_tier(&call.asked),
        });
        let chunk = |choices: Value, usage: Option<Value>| {
            let mut chunk = head.clone();
            chunk["choices"] = choices;
            if call.asked.include_usage {
                chunk["usage"] = usage.unwrap_or(Value::Null);
            }
            event(self.reply.spelling, None, &chunk.to_string())
        };
        let choice = |delta: Value, finish: Value| json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
        let delta = filler(turn.delta_bytes);
        let mut parts = vec![chunk(
            choice(json!({"role": "assistant", "content": ""}), Value::Null),
            None,
        )];
        parts.extend(
            (0..turn.deltas).map(|_| chunk(choice(json!({"content": delta}), Value::Null), None)),
        );
        if turn.end != End::Missing {
            parts.push(chunk(
                choice(json!({}), json!(finish_reason(turn.end))),
                None,
            ));
            if let (true, Some(usage)) = (call.asked.include_usage, turn.usage) {
                parts.push(chunk(json!([]), Some(usage.for_chat())));
            }
            parts.push(event(self.reply.spelling, None, "[DONE]"));
        }
        self.finish_events(parts)
    }

    fn chat_completion(&self, turn: &Turn, call: &Call) -> Value {
        json!({
            "id": call.response_id(turn),
            "object": "chat.completion",
            "created": unix_now(),
            "model": turn.model(&call.asked),
            "service_tier": turn.service_tier(&call.asked),
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": self.text},
                "finish_reason": finish_reason(turn.end),
            }],
            "usage": turn.usage.map(|usage| usage.for_chat()),
        })
    }
}

impl Reply {
    /// Returns `true` if something happens between one part and the next.
    fn is_in_parts(&self) -> bool {
        !self.gates.is_empty() || self.pause.is_some()
    }

    /// Encodes the parts and cuts them into the configured chunks.
    fn cut_up(&self, parts: Vec<Bytes>) -> Vec<Bytes> {
        let parts = match self.encoding {
            Some(encoding) => encoding.encode(parts),
            None => parts,
        };
        if self.chunk_bytes.is_empty() {
            return parts;
        }
        let mut rest = join(&parts);
        let mut chunks = Vec::new();
        for &size in self.chunk_bytes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            chunks.push(rest.split_to(size.min(rest.len())));
        }
        chunks
    }

    fn steps(&self, parts: Vec<Bytes>) -> VecDeque<Step> {
        let mut room = match self.cut {
            Some(Cut::AfterBytes(bytes)) => bytes,
            Some(Cut::BeforeHead) | None => usize::MAX,
        };
        let mut steps = VecDeque::new();
        self.hold_after_part(0, &mut steps);
        for (index, part) in parts.into_iter().enumerate() {
            if index > 0 {
                self.step_between(&mut steps);
            }
            let sent = part.slice(..part.len().min(room));
            let whole = sent.len() == part.len();
            room -= sent.len();
            if !sent.is_empty() {
                steps.push_back(Step::Send(sent));
            }
            if !whole {
                break;
            }
            self.hold_after_part(index + 1, &mut steps);
        }
        if matches!(self.cut, Some(Cut::AfterBytes(_))) {
            steps.extend([Step::Flush, Step::Break(self.cut_by)]);
        }
        steps
    }

    fn step_between(&self, steps: &mut VecDeque<Step>) {
        if !self.chunk_bytes.is_empty() {
            steps.push_back(Step::Flush);
        }
        if let Some(pause) = self.pause {
            steps.push_back(Step::Pause(pause));
        }
    }

    fn hold_after_part(&self, part: usize, steps: &mut VecDeque<Step>) {
        let gates = self.gates.iter().filter(|(after, _)| *after == part);
        steps.extend(gates.map(|(_, gate)| Step::Hold(gate.clone())));
    }
}

impl Call {
    fn response_id(&self, turn: &Turn) -> String {
        let prefix = if self.route == Route::ChatCompletions {
            "chatcmpl"
        } else {
            "resp"
        };
        turn.response_id
            .clone()
            .unwrap_or_else(|| format!("{prefix}_{:032x}", self.number))
    }
}

impl Turn {
    pub(crate) fn model<'a>(&'a self, asked: &'a Asked) -> &'a str {
        self.model
            .as_deref()
            .or(asked.model.as_deref())
            .unwrap_or(MODEL)
    }

    pub(crate) fn service_tier<'a>(&'a self, asked: &'a Asked) -> &'a str {
        let asked = asked.service_tier.as_deref().filter(|tier| *tier != "auto");
        self.service_tier.as_deref().or(asked).unwrap_or("default")
    }
}

impl Whole {
    fn json(value: &Value) -> Self {
        Self::json_text(value.to_string())
    }

    fn json_text(text: String) -> Self {
        Whole {
            media: Some(JSON),
            parts: vec![Bytes::from(text)],
        }
    }
}

fn delta_events(spelling: Spelling, delta: &str, count: usize) -> (Vec<Bytes>, Bytes) {
    let event = events::delta(delta);
    let mut joined = Vec::new();
    let mut ends = Vec::with_capacity(count);
    for sequence in (EVENTS_BEFORE_DELTAS..).take(count) {
        spelling.write(&mut joined, Some(event.name), &event.data(sequence));
        ends.push(joined.len());
    }
    let joined = Bytes::from(joined);
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let events = starts
        .zip(&ends)
        .map(|(start, &end)| joined.slice(start..end))
        .collect();
    (events, joined)
}

fn event(spelling: Spelling, name: Option<&str>, data: &str) -> Bytes {
    let mut out = Vec::with_capacity(data.len() + 64);
    spelling.write(&mut out, name, data);
    out.into()
}

fn join(parts: &[Bytes]) -> Bytes {
    match parts {
        [one] => one.clone(),
        parts => parts.concat().into(),
    }
}

fn finish_reason(end: End) -> &'static str {
    match end {
        End::Completed | End::Missing => "stop",
        End::Incomplete => "length",
        End::Failed => "content_filter",
    }
}

fn models() -> Value {
    let models = MODELS.map(
        |id| json!({"id": id, "object": "model", "created": 1_700_000_000, "owned_by": "scripted"}),
    );
    json!({ "object": "list", "data": models })
}
