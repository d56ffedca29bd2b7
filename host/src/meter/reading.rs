//! What is looked for in an event or body, and what it means.

use crate::values::counts::TokenCounts;
use crate::values::exchange::{End, Metered};
use crate::values::json_scan::{Flow, Scalar, Wanted};

pub(super) const TYPE: u8 = 0;
pub(super) const ID: u8 = 1;
pub(super) const MODEL: u8 = 2;
pub(super) const TIER: u8 = 3;
pub(super) const STATUS: u8 = 4;
const INPUT: u8 = 5;
const CACHED: u8 = 6;
const CACHE_WRITE: u8 = 7;
const OUTPUT: u8 = 8;
const REASONING: u8 = 9;
/// Names from here on are free for who reads more.
pub(super) const FREE: u8 = 10;

const INPUT_DETAILS: &[Wanted] = &[
    Wanted::scalar("cached_tokens", CACHED),
    Wanted::scalar("cache_write_tokens", CACHE_WRITE),
];
const OUTPUT_DETAILS: &[Wanted] = &[Wanted::scalar("reasoning_tokens", REASONING)];

/// The usage of the Responses API and that of chat completions.
pub(super) const USAGE: &[Wanted] = &[
    Wanted::scalar("input_tokens", INPUT),
    Wanted::within("input_tokens_details", INPUT_DETAILS),
    Wanted::scalar("output_tokens", OUTPUT),
    Wanted::within("output_tokens_details", OUTPUT_DETAILS),
    Wanted::scalar("prompt_tokens", INPUT),
    Wanted::within("prompt_tokens_details", INPUT_DETAILS),
    Wanted::scalar("completion_tokens", OUTPUT),
    Wanted::within("completion_tokens_details", OUTPUT_DETAILS),
];

/// What is looked for: at the top for a body and for chat completions, under `response` for an event.
pub(super) const KEYS: &[Wanted] = &[
    Wanted::scalar("type", TYPE),
    Wanted::scalar("id", ID),
    Wanted::scalar("model", MODEL),
    Wanted::scalar("service_tier", TIER),
    Wanted::scalar("status", STATUS),
    Wanted::within("usage", USAGE),
    Wanted::within(
        "response",
        &[
            Wanted::scalar("id", ID),
            Wanted::scalar("model", MODEL),
            Wanted::scalar("service_tier", TIER),
            Wanted::within("usage", USAGE),
        ],
    ),
];

/// What an event is, by its `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It has none: a chunk of chat completions.
    Untyped,
    /// `response.created`: it names the response.
    Created,
    /// The last one, and how the response ended.
    Last(End),
    /// An error in the stream.
    Error,
}

/// What is known of a response so far.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) metered: Metered,
    /// How it ended, once its content has told so.
    pub(super) ended: Option<End>,
    /// An `error` event came by.
    pub(super) error_seen: bool,
    kind: Kind,
    counts: TokenCounts,
    counted: bool,
}

impl Default for Reading {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl Reading {
    const EMPTY: Self = Self {
        metered: Metered {
            response_id: None,
            model: None,
            service_tier: None,
            counts: None,
            unknown: None,
        },
        ended: None,
        error_seen: false,
        kind: Kind::Untyped,
        counts: TokenCounts {
            input: 0,
            cached: 0,
            cache_write: 0,
            output: 0,
            reasoning: 0,
        },
        counted: false,
    };

    /// A reading of nothing.
    pub(super) const NOTHING: &'static Self = &Self::EMPTY;

    /// Takes a value of the event under way.
    pub(super) fn take(&mut self, name: u8, scalar: Scalar<'_>) -> Flow {
        match name {
            TYPE => return self.take_type(scalar),
            ID => fill(&mut self.metered.response_id, scalar),
            MODEL => fill(&mut self.metered.model, scalar),
            // Upstream may charge another tier than the first event said: the last word counts.
            TIER => {
                self.metered.service_tier =
                    scalar.text().or_else(|| self.metered.service_tier.take())
            }
            STATUS => self.take_status(scalar),
            _ => self.take_count(name, scalar),
        }
        Flow::Continue
    }

    fn take_type(&mut self, scalar: Scalar<'_>) -> Flow {
        let Scalar::Text(name) = scalar else {
            return Flow::Continue;
        };
        self.kind = match name {
            b"response.created" => Kind::Created,
            b"response.completed" => Kind::Last(End::Complete),
            b"response.incomplete" => Kind::Last(End::Incomplete),
            b"response.failed" => Kind::Last(End::Failed),
            // The ends of the API's other streams, which tell usage at the top.
            b"image_generation.completed" | b"image_edit.completed" => Kind::Last(End::Complete),
            b"speech.audio.done" | b"transcript.text.done" => Kind::Last(End::Complete),
            b"error" => Kind::Error,
            // All others: deltas and the like. They carry no usage, and are most of a stream.
            _ => return Flow::Stop,
        };
        Flow::Continue
    }

    /// How the event that is whole ended the response.
    pub(super) fn last(&self) -> Option<End> {
        match self.kind {
            Kind::Last(end) => Some(end),
            Kind::Untyped | Kind::Created | Kind::Error => None,
        }
    }

    fn take_status(&mut self, scalar: Scalar<'_>) {
        let Scalar::Text(status) = scalar else { return };
        match status {
            b"incomplete" => self.ended = Some(End::Incomplete),
            b"failed" | b"cancelled" => self.ended = Some(End::Failed),
            _ => {}
        }
    }

    fn take_count(&mut self, name: u8, scalar: Scalar<'_>) {
        let Some(count) = scalar.count() else { return };
        self.counted = true;
        match name {
            INPUT => self.counts.input = count,
            CACHED => self.counts.cached = count,
            CACHE_WRITE => self.counts.cache_write = count,
            OUTPUT => self.counts.output = count,
            REASONING => self.counts.reasoning = count,
            _ => {}
        }
    }

    /// The event under way is whole. Answers whether the response is, too.
    pub(super) fn event_whole(&mut self) -> bool {
        if self.counted && !matches!(self.kind, Kind::Created) {
            self.metered.counts = Some(self.counts);
        }
        match self.kind {
            Kind::Last(end) => self.ended = Some(end),
            Kind::Error => self.error_seen = true,
            Kind::Untyped | Kind::Created => {}
        }
        matches!(self.kind, Kind::Last(_))
    }

    /// A body that is one JSON object is whole.
    pub(super) fn whole_body(&mut self) {
        if self.counted {
            self.metered.counts = Some(self.counts);
        }
    }

    /// An event begins.
    pub(super) fn next_event(&mut self) {
        self.kind = Kind::Untyped;
        self.counts = TokenCounts::default();
        self.counted = false;
    }
}

/// Fills what is not known yet. A stream's chunks all repeat it.
fn fill(known: &mut Option<String>, scalar: Scalar<'_>) {
    if known.is_none() {
        *known = scalar.text().filter(|text| !text.is_empty());
    }
}
