//! The Responses API's response object and the events of a turn, as JSON. Knows nothing of the
//! transport: SSE and sockets number and frame the events. Invariant: a turn's events are the same
//! on every transport.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use crate::responses::reply::End;
use crate::responses::standing::unix_now;

/// The position of the text in the response.
const IN_MESSAGE: &str = r#""item_id":"msg_scripted","output_index":0,"content_index":0"#;

/// The counter for response numbers: one for the process, so that ids differ between upstreams too.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

#[derive(Clone, Copy, Debug)]
pub(crate) struct TurnResponse<'a> {
    pub(crate) id: &'a str,
    pub(crate) model: &'a str,
    pub(crate) service_tier: &'a str,
    /// The assistant's message: letters and spaces, which need no escapes. `None` if there is no
    /// message.
    pub(crate) text: Option<&'a str>,
    /// The object `usage`, as JSON.
    pub(crate) usage: &'a str,
}

/// An event without its sequence number.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) name: &'static str,
    fields: String,
}

impl Event {
    /// Returns the event as JSON.
    pub(crate) fn data(&self, sequence: usize) -> String {
        let Event { name, fields } = self;
        format!(r#"{{"type":"{name}","sequence_number":{sequence},{fields}}}"#)
    }
}

impl TurnResponse<'_> {
    pub(crate) fn created(&self) -> Event {
        Event {
            name: "response.created",
            fields: format!(r#""response":{}"#, self.in_progress()),
        }
    }

    /// Returns the events between `response.created` and the first delta. Codex and the SDKs'
    /// stream helpers add a delta to the item that `response.output_item.added` names.
    pub(crate) fn message_begun(&self) -> [Event; 3] {
        let item = r#"{"type":"message","id":"msg_scripted","status":"in_progress","role":"assistant","content":[]}"#;
        [
            Event {
                name: "response.in_progress",
                fields: format!(r#""response":{}"#, self.in_progress()),
            },
            Event {
                name: "response.output_item.added",
                fields: format!(r#""output_index":0,"item":{item}"#),
            },
            Event {
                name: "response.content_part.added",
                fields: format!(r#"{IN_MESSAGE},"part":{}"#, text_part("")),
            },
        ]
    }

    /// Returns the events between the last delta and the last event.
    pub(crate) fn message_done(&self) -> [Event; 3] {
        let text = self.text.unwrap_or_default();
        [
            Event {
                name: "response.output_text.done",
                fields: format!(r#"{IN_MESSAGE},"text":"{text}","logprobs":[]"#),
            },
            Event {
                name: "response.content_part.done",
                fields: format!(r#"{IN_MESSAGE},"part":{}"#, text_part(text)),
            },
            Event {
                name: "response.output_item.done",
                fields: format!(r#""output_index":0,"item":{}"#, message(text)),
            },
        ]
    }

    /// Returns the last event, if there is one.
    pub(crate) fn ended(&self, end: End) -> Option<Event> {
        let name = match end {
            End::Completed => "response.completed",
            End::Incomplete => "response.incomplete",
            End::Failed => "response.failed",
            End::Missing => return None,
        };
        Some(Event {
            name,
            fields: format!(r#""response":{}"#, self.object(end)),
        })
    }

    /// Returns the response object at its end.
    pub(crate) fn object(&self, end: End) -> String {
        let (status, more) = match end {
            End::Completed | End::Missing => ("completed", ""),
            End::Incomplete => (
                "incomplete",
                r#","incomplete_details":{"reason":"max_output_tokens"}"#,
            ),
            End::Failed => (
                "failed",
                r#","error":{"code":"server_error","message":"The model failed, as scripted."}"#,
            ),
        };
        let output = self
            .text
            .map_or_else(|| "[]".to_owned(), |text| format!("[{}]", message(text)));
        self.object_with(status, &output, self.usage, more)
    }

    fn in_progress(&self) -> String {
        self.object_with("in_progress", "[]", "null", "")
    }

    fn object_with(&self, status: &str, output: &str, usage: &str, more: &str) -> String {
        let [id, model, tier] = [self.id, self.model, self.service_tier].map(quoted);
        let created_at = unix_now();
        format!(
            r#"{{"id":{id},"object":"response","created_at":{created_at},"status":"{status}","model":{model},"output":{output},"parallel_tool_calls":true,"tool_choice":"auto","tools":[],"service_tier":{tier},"usage":{usage}{more}}}"#,
        )
    }
}

/// Returns a new number for a response's id.
pub(crate) fn next_number() -> u64 {
    NEXT_NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// Returns a piece of the message: letters and spaces.
pub(crate) fn delta(text: &str) -> Event {
    Event {
        name: "response.output_text.delta",
        fields: format!(r#"{IN_MESSAGE},"delta":"{text}","logprobs":[]"#),
    }
}

/// Letters and spaces, which JSON does not escape.
pub(crate) fn filler(bytes: usize) -> String {
    "tick ".chars().cycle().take(bytes).collect()
}

fn message(text: &str) -> String {
    format!(
        r#"{{"type":"message","id":"msg_scripted","status":"completed","role":"assistant","content":[{}]}}"#,
        text_part(text),
    )
}

fn text_part(text: &str) -> String {
    format!(r#"{{"type":"output_text","text":"{text}","annotations":[],"logprobs":[]}}"#)
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
