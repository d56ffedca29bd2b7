//! From a wish ([`Reply`]) to bytes: the head and the steps of the body.
//! Invariant: what does not depend on the request is built once, when the reply is scripted.

use std::collections::VecDeque;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};

use crate::asked::Asked;
use crate::body::Step;
use crate::reply::{Content, Cut, End, Presence, Reply, Turn};
use crate::sse::Spelling;
use crate::standing::unix_now;

const JSON: &str = "application/json";
const EVENT_STREAM: &str = "text/event-stream";
const MODEL: &str = "scripted-model";
/// The events before a stream's first delta: created, in_progress, output_item.added, content_part.added.
const EVENTS_BEFORE_DELTAS: usize = 4;
/// Where in the response the text stands.
const IN_MESSAGE: &str = r#""item_id":"msg_scripted","output_index":0,"content_index":0"#;
const MODELS: [&str; 3] = ["gpt-5.4", "gpt-5.3-codex", "gpt-4.1-mini"];

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Responses,
    Compact,
    ChatCompletions,
    Models,
    CodexModels,
    Usage,
    Token,
}

impl Route {
    /// Whether a model runs there.
    pub(crate) fn is_turn(self) -> bool {
        match self {
            Route::Responses | Route::Compact | Route::ChatCompletions => true,
            Route::Models | Route::CodexModels | Route::Usage | Route::Token => false,
        }
    }
}

/// What an answer is made from beside the reply.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) route: Route,
    pub(crate) asked: Asked,
    /// What a usage poll or a refresh is told when all goes well.
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
    usage: Value,
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
            Content::Error(_) | Content::Raw { .. } | Content::Garbage(_) => Turn { deltas: 0, ..Turn::default() },
        };
        let delta = filler(turn.delta_bytes);
        let (delta_events, delta_events_joined) = delta_events(reply.spelling, &delta, turn.deltas);
        let usage = turn.usage.as_ref().map_or(Value::Null, |usage| usage.for_responses());
        Prepared { text: delta.repeat(turn.deltas), delta_events, delta_events_joined, usage, reply }
    }

    /// The head and the body for one request.
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
        Answer { status: self.reply.status, headers, steps: self.reply.steps(parts), length }
    }

    fn whole(&self, call: &Call) -> Whole {
        let turn = match &self.reply.content {
            Content::Natural(turn) => turn,
            Content::Error(fields) => return Whole::json(&json!({ "error": fields })),
            Content::Raw { body, media } => {
                return Whole { media: *media, parts: vec![body.clone()] };
            }
            Content::Garbage(_) => {
                return Whole { media: None, parts: Vec::new() };
            }
        };
        match call.route {
            Route::Responses if call.asked.stream => {
                Whole { media: Some(EVENT_STREAM), parts: self.events(turn, call) }
            }
            Route::Responses => Whole::json_text(self.response(turn, call, turn.end)),
            Route::Compact => Whole::json(&self.compaction(turn, call)),
            Route::ChatCompletions if call.asked.stream => {
                Whole { media: Some(EVENT_STREAM), parts: self.chat_events(turn, call) }
            }
            Route::ChatCompletions => Whole::json(&self.chat_completion(turn, call)),
            Route::Models => Whole::json(&models()),
            Route::CodexModels => Whole::json(&json!({ "models": [] })),
            Route::Usage | Route::Token => Whole::json(call.body.as_ref().unwrap_or(&Value::Null)),
        }
    }

    /// The events of a Responses stream. Where somebody waits between parts, they are: the events before the first
    /// delta, each delta, the events that end the message, the last event. Else all is one part.
    fn events(&self, turn: &Turn, call: &Call) -> Vec<Bytes> {
        let mut parts = vec![self.beginning(turn, call)];
        if self.reply.is_in_parts() {
            parts.extend(self.delta_events.iter().cloned());
        } else {
            parts.push(self.delta_events_joined.clone());
        }
        if let Some(name) = end_event(turn.end) {
            let sequence = EVENTS_BEFORE_DELTAS + turn.deltas;
            parts.push(self.message_done(sequence));
            let ended = format!(
                r#"{{"type":"{name}","sequence_number":{},"response":{}}}"#,
                sequence + 3,
                self.response(turn, call, turn.end),
            );
            parts.push(event(self.reply.spelling, Some(name), &ended));
        }
        self.finish_events(parts)
    }

    /// What stands before the first delta. Codex and the SDKs' stream helpers put a delta into the item that
    /// `response.output_item.added` names.
    fn beginning(&self, turn: &Turn, call: &Call) -> Bytes {
        let response = self.response_with(turn, call, "in_progress", "[]", "null", "");
        let item = r#"{"type":"message","id":"msg_scripted","status":"in_progress","role":"assistant","content":[]}"#;
        self.numbered_events(
            0,
            [
                ("response.created", format!(r#""response":{response}"#)),
                ("response.in_progress", format!(r#""response":{response}"#)),
                ("response.output_item.added", format!(r#""output_index":0,"item":{item}"#)),
                ("response.content_part.added", format!(r#"{IN_MESSAGE},"part":{}"#, text_part(""))),
            ],
        )
    }

    fn message_done(&self, sequence: usize) -> Bytes {
        self.numbered_events(
            sequence,
            [
                ("response.output_text.done", format!(r#"{IN_MESSAGE},"text":"{}","logprobs":[]"#, self.text)),
                ("response.content_part.done", format!(r#"{IN_MESSAGE},"part":{}"#, text_part(&self.text))),
                ("response.output_item.done", format!(r#""output_index":0,"item":{}"#, self.message())),
            ],
        )
    }

    /// Events with these names and fields, numbered from `sequence`.
    fn numbered_events<const N: usize>(&self, sequence: usize, events: [(&str, String); N]) -> Bytes {
        let mut out = Vec::new();
        for (number, (name, fields)) in (sequence..).zip(events) {
            let data = format!(r#"{{"type":"{name}","sequence_number":{number},{fields}}}"#);
            self.reply.spelling.write(&mut out, Some(name), &data);
        }
        out.into()
    }

    fn finish_events(&self, mut parts: Vec<Bytes>) -> Vec<Bytes> {
        if let Some(last) = parts.last_mut() {
            let kept = self.reply.spelling.trim_last(last).len();
            last.truncate(kept);
        }
        if self.reply.is_in_parts() { parts } else { vec![join(&parts)] }
    }

    /// The response object at its end.
    fn response(&self, turn: &Turn, call: &Call, end: End) -> String {
        let (status, more) = match end {
            End::Completed | End::Missing => ("completed", ""),
            End::Incomplete => ("incomplete", r#","incomplete_details":{"reason":"max_output_tokens"}"#),
            End::Failed => ("failed", r#","error":{"code":"server_error","message":"The model failed, as scripted."}"#),
        };
        let output = format!("[{}]", self.message());
        self.response_with(turn, call, status, &output, &self.usage.to_string(), more)
    }

    fn response_with(&self, turn: &Turn, call: &Call, status: &str, output: &str, usage: &str, more: &str) -> String {
        let (id, model) = (quoted(&call.response_id(turn)), quoted(call.model(turn)));
        let (tier, created_at) = (quoted(call.service_tier(turn)), unix_now());
        format!(
            r#"{{"id":{id},"object":"response","created_at":{created_at},"status":"{status}","model":{model},"output":{output},"parallel_tool_calls":true,"tool_choice":"auto","tools":[],"service_tier":{tier},"usage":{usage}{more}}}"#,
        )
    }

    fn message(&self) -> String {
        format!(
            r#"{{"type":"message","id":"msg_scripted","status":"completed","role":"assistant","content":[{}]}}"#,
            text_part(&self.text),
        )
    }

    fn compaction(&self, turn: &Turn, call: &Call) -> Value {
        json!({
            "id": call.response_id(turn),
            "object": "response.compaction",
            "created_at": unix_now(),
            "model": call.model(turn),
            "service_tier": call.service_tier(turn),
            "output": [{"type": "compaction", "id": "cmp_scripted", "encrypted_content": self.text}],
            "usage": self.usage,
        })
    }

    fn chat_events(&self, turn: &Turn, call: &Call) -> Vec<Bytes> {
        let head = json!({
            "id": call.response_id(turn),
            "object": "chat.completion.chunk",
            "created": unix_now(),
            "model": call.model(turn),
            "service_tier": call.service_tier(turn),
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
        let mut parts = vec![chunk(choice(json!({"role": "assistant", "content": ""}), Value::Null), None)];
        parts.extend((0..turn.deltas).map(|_| chunk(choice(json!({"content": delta}), Value::Null), None)));
        if turn.end != End::Missing {
            parts.push(chunk(choice(json!({}), json!(finish_reason(turn.end))), None));
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
            "model": call.model(turn),
            "service_tier": call.service_tier(turn),
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
    /// Whether something happens between one part and the next.
    fn is_in_parts(&self) -> bool {
        !self.gates.is_empty() || self.pause.is_some()
    }

    /// The parts as they go out: encoded, and in the chunks that were asked for.
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
        let prefix = if self.route == Route::ChatCompletions { "chatcmpl" } else { "resp" };
        turn.response_id.clone().unwrap_or_else(|| format!("{prefix}_{:032x}", self.number))
    }

    fn model<'a>(&'a self, turn: &'a Turn) -> &'a str {
        turn.model.as_deref().or(self.asked.model.as_deref()).unwrap_or(MODEL)
    }

    fn service_tier<'a>(&'a self, turn: &'a Turn) -> &'a str {
        let asked = self.asked.service_tier.as_deref().filter(|tier| *tier != "auto");
        turn.service_tier.as_deref().or(asked).unwrap_or("default")
    }
}

impl Whole {
    fn json(value: &Value) -> Self {
        Self::json_text(value.to_string())
    }

    fn json_text(text: String) -> Self {
        Whole { media: Some(JSON), parts: vec![Bytes::from(text)] }
    }
}

/// The text is letters and spaces: no escapes.
fn text_part(text: &str) -> String {
    format!(r#"{{"type":"output_text","text":"{text}","annotations":[],"logprobs":[]}}"#)
}

fn delta_events(spelling: Spelling, delta: &str, count: usize) -> (Vec<Bytes>, Bytes) {
    let mut joined = Vec::new();
    let mut ends = Vec::with_capacity(count);
    for sequence in (EVENTS_BEFORE_DELTAS..).take(count) {
        let data = format!(
            r#"{{"type":"response.output_text.delta","sequence_number":{sequence},{IN_MESSAGE},"delta":"{delta}","logprobs":[]}}"#,
        );
        spelling.write(&mut joined, Some("response.output_text.delta"), &data);
        ends.push(joined.len());
    }
    let joined = Bytes::from(joined);
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let events = starts.zip(&ends).map(|(start, &end)| joined.slice(start..end)).collect();
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

/// Letters and spaces, so that it stands in JSON as it is.
fn filler(bytes: usize) -> String {
    "tick ".chars().cycle().take(bytes).collect()
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn end_event(end: End) -> Option<&'static str> {
    match end {
        End::Completed => Some("response.completed"),
        End::Incomplete => Some("response.incomplete"),
        End::Failed => Some("response.failed"),
        End::Missing => None,
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
    let models =
        MODELS.map(|id| json!({"id": id, "object": "model", "created": 1_700_000_000, "owned_by": "scripted"}));
    json!({ "object": "list", "data": models })
}
