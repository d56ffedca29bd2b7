//! The values that are read from an event or body, and what they say about the response.

use crate::values::exchange::counts::TokenCounts;
use crate::values::exchange::{ExchangeEnd, MeteredResponse};
use crate::values::json::scan::{JsonScalar, ScanFlow, WantedKey};

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
/// The first number that a list with further keys may use.
pub(super) const FIRST_FREE: u8 = 10;

const INPUT_DETAILS: &[WantedKey] = &[
    WantedKey::scalar("cached_tokens", CACHED),
    WantedKey::scalar("cache_write_tokens", CACHE_WRITE),
];
const OUTPUT_DETAILS: &[WantedKey] = &[WantedKey::scalar("reasoning_tokens", REASONING)];

/// The usage of the Responses API and of chat completions.
pub(super) const USAGE_KEYS: &[WantedKey] = &[
    WantedKey::scalar("input_tokens", INPUT),
    WantedKey::within("input_tokens_details", INPUT_DETAILS),
    WantedKey::scalar("output_tokens", OUTPUT),
    WantedKey::within("output_tokens_details", OUTPUT_DETAILS),
    WantedKey::scalar("prompt_tokens", INPUT),
    WantedKey::within("prompt_tokens_details", INPUT_DETAILS),
    WantedKey::scalar("completion_tokens", OUTPUT),
    WantedKey::within("completion_tokens_details", OUTPUT_DETAILS),
];

/// The keys of a response: at the top in a body and in chat completions, under `response` in an
/// event.
pub(super) const RESPONSE_KEYS: &[WantedKey] = &[
    WantedKey::scalar("type", TYPE),
    WantedKey::scalar("id", ID),
    WantedKey::scalar("model", MODEL),
    WantedKey::scalar("service_tier", TIER),
    WantedKey::scalar("status", STATUS),
    WantedKey::within("usage", USAGE_KEYS),
    WantedKey::within(
        "response",
        &[
            WantedKey::scalar("id", ID),
            WantedKey::scalar("model", MODEL),
            WantedKey::scalar("service_tier", TIER),
            WantedKey::within("usage", USAGE_KEYS),
        ],
    ),
];

/// Whether a body continues after a piece, as far as its content says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyProgress {
    /// There is more to come.
    Open,
    /// The piece completes the response: its client may take it as complete.
    Complete,
}

/// The kind of an event, by its `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EventKind {
    /// It has no type: a chunk of chat completions.
    Untyped,
    /// `response.created`, which names the response.
    Created,
    /// The last event, and how the response ended.
    Last(ExchangeEnd),
    /// An error in the stream.
    Error,
}

/// What is known of a response so far.
#[derive(Debug)]
pub(super) struct ResponseReading {
    pub(super) metered: MeteredResponse,
    /// How the response ended, once its content has said so.
    pub(super) ended: Option<ExchangeEnd>,
    /// Whether the stream contained an `error` event.
    pub(super) has_error: bool,
    /// The kind of the current event.
    kind: EventKind,
    /// The counts of the current event, valid if `has_counts`.
    counts: TokenCounts,
    has_counts: bool,
}

impl Default for ResponseReading {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl ResponseReading {
    const EMPTY: Self = Self {
        metered: MeteredResponse {
            response_id: None,
            model: None,
            service_tier: None,
            counts: None,
            unknown: None,
        },
        ended: None,
        has_error: false,
        kind: EventKind::Untyped,
        counts: TokenCounts {
            input: 0,
            cached: 0,
            cache_write: 0,
            output: 0,
            reasoning: 0,
        },
        has_counts: false,
    };

    pub(super) const EMPTY_REF: &'static Self = &Self::EMPTY;

    /// Records a value of the current event.
    pub(super) fn record(&mut self, name: u8, scalar: JsonScalar<'_>) -> ScanFlow {
        match name {
            TYPE => return self.record_type(scalar),
            ID => set_once(&mut self.metered.response_id, scalar),
            MODEL => set_once(&mut self.metered.model, scalar),
            // Upstream may charge another tier than the first event names: the last one counts.
            TIER => {
                self.metered.service_tier =
                    scalar.text().or_else(|| self.metered.service_tier.take())
            }
            STATUS => self.record_status(scalar),
            _ => self.record_count(name, scalar),
        }
        ScanFlow::Continue
    }

    fn record_type(&mut self, scalar: JsonScalar<'_>) -> ScanFlow {
        let JsonScalar::Text(name) = scalar else {
            return ScanFlow::Continue;
        };
        self.kind = match name {
            b"response.created" => EventKind::Created,
            b"response.completed" => EventKind::Last(ExchangeEnd::Complete),
            b"response.incomplete" => EventKind::Last(ExchangeEnd::Incomplete),
            b"response.failed" => EventKind::Last(ExchangeEnd::Failed),
            // The last events of the other streams of the API, which have the usage at the top.
            b"image_generation.completed" | b"image_edit.completed" => {
                EventKind::Last(ExchangeEnd::Complete)
            }
            b"speech.audio.done" | b"transcript.text.done" => {
                EventKind::Last(ExchangeEnd::Complete)
            }
            b"error" => EventKind::Error,
            // Deltas and the like carry no usage and are most of a stream.
            _ => return ScanFlow::Stop,
        };
        ScanFlow::Continue
    }

    /// Returns how the current event ends the response, if it is the last one.
    pub(super) fn end_of_event(&self) -> Option<ExchangeEnd> {
        match self.kind {
            EventKind::Last(end) => Some(end),
            EventKind::Untyped | EventKind::Created | EventKind::Error => None,
        }
    }

    fn record_status(&mut self, scalar: JsonScalar<'_>) {
        let JsonScalar::Text(status) = scalar else {
            return;
        };
        match status {
            b"incomplete" => self.ended = Some(ExchangeEnd::Incomplete),
            b"failed" | b"cancelled" => self.ended = Some(ExchangeEnd::Failed),
            _ => {}
        }
    }

    fn record_count(&mut self, name: u8, scalar: JsonScalar<'_>) {
        let Some(count) = scalar.count() else { return };
        self.has_counts = true;
        match name {
            INPUT => self.counts.input = count,
            CACHED => self.counts.cached = count,
            CACHE_WRITE => self.counts.cache_write = count,
            OUTPUT => self.counts.output = count,
            REASONING => self.counts.reasoning = count,
            _ => {}
        }
    }

    /// Ends the current event.
    pub(super) fn end_event(&mut self) -> BodyProgress {
        if self.has_counts && self.kind != EventKind::Created {
            self.metered.counts = Some(self.counts);
        }
        match self.kind {
            EventKind::Last(end) => {
                self.ended = Some(end);
                return BodyProgress::Complete;
            }
            EventKind::Error => self.has_error = true,
            EventKind::Untyped | EventKind::Created => {}
        }
        BodyProgress::Open
    }

    /// Ends a body that is one JSON object.
    pub(super) fn end_body(&mut self) {
        if self.has_counts {
            self.metered.counts = Some(self.counts);
        }
    }

    /// Begins the next event.
    pub(super) fn begin_event(&mut self) {
        self.kind = EventKind::Untyped;
        self.counts = TokenCounts::default();
        self.has_counts = false;
    }
}

/// Sets a value that is not known yet. Every chunk of a stream repeats it, and only the first
/// allocates.
fn set_once(known: &mut Option<String>, scalar: JsonScalar<'_>) {
    if known.is_none() {
        *known = scalar.text().filter(|text| !text.is_empty());
    }
}
