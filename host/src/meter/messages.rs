//! Messages of a WebSocket, read on their way past: what the client asks for, and what upstream answers to it.
//!
//! A message that can carry nothing of interest is read up to its `type`, and no further.

use std::time::Duration;

use super::reading::{self, Reading, USAGE};
use super::request::{self, Asked};
use crate::values::clock::Timestamp;
use crate::values::exchange::{End, Metered};
use crate::values::json_scan::{Flow, JsonScan, Scalar, Wanted};
use crate::values::windows::{self, SlotTold};

const PRIMARY: u8 = reading::FREE;
const SECONDARY: u8 = PRIMARY + SLOT_FIELDS;
const SLOT_FIELDS: u8 = 3;
const STATUS_CODE: u8 = SECONDARY + SLOT_FIELDS;
const RESETS_AT: u8 = STATUS_CODE + 1;
const RESETS_IN: u8 = RESETS_AT + 1;
const RETRY_AFTER: u8 = RESETS_IN + 1;

const fn slot(first: u8) -> [Wanted; SLOT_FIELDS as usize] {
    [
        Wanted::scalar("used_percent", first),
        Wanted::scalar("window_minutes", first + 1),
        Wanted::scalar("reset_at", first + 2),
    ]
}

const RATE_LIMITS: &[Wanted] = &[
    Wanted::within("primary", &slot(PRIMARY)),
    Wanted::within("secondary", &slot(SECONDARY)),
];

/// The fields that an error's `headers` has of a refused response.
const HEADERS: &[Wanted] = &[
    Wanted::scalar("x-codex-primary-used-percent", PRIMARY),
    Wanted::scalar("x-codex-primary-window-minutes", PRIMARY + 1),
    Wanted::scalar("x-codex-primary-reset-at", PRIMARY + 2),
    Wanted::scalar("x-codex-secondary-used-percent", SECONDARY),
    Wanted::scalar("x-codex-secondary-window-minutes", SECONDARY + 1),
    Wanted::scalar("x-codex-secondary-reset-at", SECONDARY + 2),
    Wanted::scalar("retry-after", RETRY_AFTER),
];

const EVENT_KEYS: &[Wanted] = &[
    Wanted::scalar("type", reading::TYPE),
    Wanted::within(
        "response",
        &[
            Wanted::scalar("id", reading::ID),
            Wanted::scalar("model", reading::MODEL),
            Wanted::scalar("service_tier", reading::TIER),
            Wanted::within("usage", USAGE),
        ],
    ),
    Wanted::within("rate_limits", RATE_LIMITS),
    Wanted::scalar("status", reading::STATUS),
    Wanted::scalar("status_code", STATUS_CODE),
    Wanted::within(
        "error",
        &[
            Wanted::scalar("resets_at", RESETS_AT),
            Wanted::scalar("resets_in_seconds", RESETS_IN),
        ],
    ),
    Wanted::within("headers", HEADERS),
];

/// What a message from upstream means.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Nothing for the gateway.
    Other,
    /// The response is over.
    Ended(End),
    /// The account's windows.
    RateLimits(windows::Reading),
    /// The response is refused.
    Error {
        /// The status, where it has one.
        status: Option<u16>,
        /// What it says of the account's windows.
        reading: windows::Reading,
        /// When the refusal ends, where it says so.
        until: Option<Timestamp>,
    },
}

/// Reads upstream's messages, one after another.
#[derive(Debug)]
pub struct EventScan {
    scan: JsonScan,
    /// The response that is under way, over all its messages.
    reading: Reading,
    told: Told,
}

/// What the message under way says beside what belongs to its response.
#[derive(Debug, Default)]
struct Told {
    kind: Kind,
    slots: [SlotTold; 2],
    status: Option<u16>,
    resets_at: Option<f64>,
    resets_in: Option<f64>,
    retry_after: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Kind {
    #[default]
    OfResponse,
    RateLimits,
    Error,
}

impl Default for EventScan {
    fn default() -> Self {
        Self {
            scan: JsonScan::new(EVENT_KEYS),
            reading: Reading::default(),
            told: Told::default(),
        }
    }
}

impl EventScan {
    /// A message begins.
    pub fn begin(&mut self) {
        self.scan.reset();
        self.reading.next_event();
        self.told = Told::default();
    }

    /// Reads a piece of it.
    pub fn feed(&mut self, piece: &[u8]) {
        let (reading, told) = (&mut self.reading, &mut self.told);
        self.scan
            .feed(piece, |name, scalar| take(reading, told, name, scalar));
    }

    /// The message is whole: what it means. The time is asked for only where it matters.
    pub fn end(&mut self, now: impl FnOnce() -> Timestamp) -> Event {
        match self.told.kind {
            Kind::OfResponse => {
                self.reading.event_whole();
                self.reading.last().map_or(Event::Other, Event::Ended)
            }
            Kind::RateLimits => Event::RateLimits(windows::Reading::from_slots(self.told.slots)),
            Kind::Error => Event::Error {
                status: self.told.status,
                reading: windows::Reading::from_slots(self.told.slots),
                until: self.told.until(now()),
            },
        }
    }

    /// What was found of the response that is over. The next one begins.
    pub fn take_metered(&mut self) -> Metered {
        std::mem::take(&mut self.reading).metered
    }
}

fn take(reading: &mut Reading, told: &mut Told, name: u8, scalar: Scalar<'_>) -> Flow {
    match name {
        reading::TYPE => match scalar {
            Scalar::Text(b"codex.rate_limits") => told.kind = Kind::RateLimits,
            Scalar::Text(b"error") => told.kind = Kind::Error,
            _ => return reading.take(name, scalar),
        },
        reading::STATUS | STATUS_CODE => {
            let status = scalar.count().and_then(|status| u16::try_from(status).ok());
            told.status = told.status.or(status);
        }
        RESETS_AT => told.resets_at = number(scalar),
        RESETS_IN => told.resets_in = number(scalar),
        RETRY_AFTER => told.retry_after = number(scalar),
        name if (PRIMARY..SECONDARY + SLOT_FIELDS).contains(&name) => {
            let place = name - PRIMARY;
            let slot = &mut told.slots[usize::from(place / SLOT_FIELDS)];
            let field = match place % SLOT_FIELDS {
                0 => &mut slot.used_percent,
                1 => &mut slot.window_minutes,
                _ => &mut slot.reset_at,
            };
            *field = number(scalar);
        }
        _ => return reading.take(name, scalar),
    }
    Flow::Continue
}

/// A number, or a text that is one, as headers have it.
fn number(scalar: Scalar<'_>) -> Option<f64> {
    scalar
        .number()
        .or_else(|| scalar.text()?.trim().parse().ok())
        .filter(|number: &f64| number.is_finite())
}

impl Told {
    fn until(&self, now: Timestamp) -> Option<Timestamp> {
        let sound = |number: &f64| *number > 0.0 && *number < 1e12;
        let at = self
            .resets_at
            .filter(sound)
            .map(|seconds| Timestamp((seconds * 1e3) as u64));
        let within = self.resets_in.or(self.retry_after).filter(sound);
        at.or_else(|| within.map(|seconds| now.after(Duration::from_secs_f64(seconds))))
    }
}

const TYPE: u8 = request::FREE;
const GENERATE: u8 = TYPE + 1;

const CREATE_KEYS: &[Wanted] = &[
    Wanted::scalar("type", TYPE),
    Wanted::scalar("generate", GENERATE),
    Wanted::scalar("model", request::MODEL),
    Wanted::scalar("service_tier", request::TIER),
    Wanted::scalar("prompt_cache_key", request::CACHE_KEY),
    Wanted::scalar("previous_response_id", request::PREVIOUS),
];

/// A `response.create`: what it asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Create {
    /// As a request's body does.
    pub asked: Asked,
    /// Whether nothing shall be generated: Codex warms a connection so.
    pub prewarm: bool,
}

/// Reads the client's messages, one after another.
#[derive(Debug)]
pub struct CreateScan {
    scan: JsonScan,
    create: Create,
    is_create: bool,
}

impl Default for CreateScan {
    fn default() -> Self {
        Self {
            scan: JsonScan::new(CREATE_KEYS),
            create: Create::default(),
            is_create: false,
        }
    }
}

impl CreateScan {
    /// A message begins.
    pub fn begin(&mut self) {
        self.scan.reset();
        self.create = Create::default();
        self.is_create = false;
    }

    /// Reads a piece of it.
    pub fn feed(&mut self, piece: &[u8]) {
        let (create, is_create) = (&mut self.create, &mut self.is_create);
        self.scan.feed(piece, |name, scalar| match name {
            TYPE => {
                *is_create = scalar == Scalar::Text(b"response.create");
                if *is_create {
                    Flow::Continue
                } else {
                    Flow::Stop
                }
            }
            GENERATE => {
                create.prewarm = scalar == Scalar::Bare(b"false");
                Flow::Continue
            }
            _ => create.asked.take(name, scalar),
        });
    }

    /// The message is whole: what it asks for, where it asks for a response.
    pub fn end(&mut self) -> Option<Create> {
        let create = std::mem::take(&mut self.create);
        self.is_create.then_some(create)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::values::windows::{Span, Windows};

    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn event(text: &str) -> (Event, Metered) {
        let mut found = None;
        for size in [1, 7, 4096] {
            let mut scan = EventScan::default();
            scan.begin();
            text.as_bytes()
                .chunks(size)
                .for_each(|piece| scan.feed(piece));
            let now = (scan.end(|| NOW), scan.take_metered());
            assert_eq!(
                *found.get_or_insert(now.clone()),
                now,
                "in pieces of {size}"
            );
        }
        found.expect("three readings")
    }

    #[test]
    fn the_last_event_tells_usage_wherever_its_type_stands() {
        let response = r#""response": {"id": "r1", "model": "m", "usage": {"input_tokens": 5, "output_tokens": 7}}"#;
        for text in [
            format!(r#"{{"type": "response.completed", {response}}}"#),
            format!(r#"{{{response}, "type": "response.completed"}}"#),
        ] {
            let (event, metered) = event(&text);
            assert_eq!(event, Event::Ended(End::Complete));
            assert_eq!(metered.response_id.as_deref(), Some("r1"));
            assert_eq!(metered.counts.expect("usage").output, 7);
        }
        assert_eq!(
            event(r#"{"type": "response.incomplete"}"#).0,
            Event::Ended(End::Incomplete)
        );
        assert_eq!(
            event(r#"{"type": "response.failed"}"#).0,
            Event::Ended(End::Failed)
        );
    }

    #[test]
    fn other_messages_mean_nothing() {
        for text in [
            "",
            "x",
            "[]",
            "{}",
            r#"{"type": "response.output_text.delta", "status": 429}"#,
            r#"{"type": 5}"#,
        ] {
            assert_eq!(event(text).0, Event::Other, "{text}");
        }
    }

    #[test]
    fn rate_limits_tell_both_windows() {
        let (event, _) = event(
            r#"{"type": "codex.rate_limits", "limit_name": "codex", "rate_limits": {
                "primary": {"used_percent": 12, "window_minutes": 10080, "reset_at": 2000000},
                "secondary": {"used_percent": 34.5, "window_minutes": 300, "reset_at": 2000000}}}"#,
        );
        let Event::RateLimits(reading) = event else {
            panic!("{event:?}")
        };
        let mut windows = Windows::default();
        windows.observe(&reading, NOW);
        assert_eq!(
            (
                windows.used(Span::FiveHour, NOW),
                windows.used(Span::Weekly, NOW)
            ),
            (34.5, 12.0)
        );
    }

    #[test]
    fn an_error_tells_its_status_under_either_name_and_its_end() {
        let check = |text: &str, status: Option<u16>, until: Option<u64>| {
            let (event, _) = event(text);
            let Event::Error {
                status: found,
                until: end,
                ..
            } = event
            else {
                panic!("{event:?}")
            };
            assert_eq!((found, end), (status, until.map(Timestamp)), "{text}");
        };
        check(
            r#"{"type": "error", "status": 429, "error": {"resets_in_seconds": 60}}"#,
            Some(429),
            Some(1_000_060_000),
        );
        check(
            r#"{"type": "error", "status_code": 429, "error": {"resets_at": 2000000}}"#,
            Some(429),
            Some(2_000_000_000),
        );
        check(
            r#"{"error": {}, "status": 400, "type": "error"}"#,
            Some(400),
            None,
        );
        check(
            r#"{"type": "error", "status": 429, "headers": {"retry-after": "30"}}"#,
            Some(429),
            Some(1_000_030_000),
        );
        check(r#"{"type": "error"}"#, None, None);
    }

    #[test]
    fn a_create_is_read_and_other_messages_are_not() {
        let create = |text: &str| {
            let mut scan = CreateScan::default();
            scan.begin();
            text.as_bytes().chunks(3).for_each(|piece| scan.feed(piece));
            scan.end()
        };
        let found = create(
            r#"{"type": "response.create", "model": "m", "input": [{"model": "no"}], "previous_response_id": "r0",
                "generate": false, "service_tier": "flex"}"#,
        );
        let found = found.expect("a create");
        assert!(found.prewarm);
        assert_eq!(found.asked.model.as_deref(), Some("m"));
        assert_eq!(found.asked.previous_response_id.as_deref(), Some("r0"));
        assert_eq!(found.asked.service_tier.as_deref(), Some("flex"));
        assert!(
            !create(r#"{"type": "response.create"}"#)
                .expect("a create")
                .prewarm
        );
        assert_eq!(create(r#"{"type": "response.cancel", "model": "m"}"#), None);
        assert_eq!(create("hello"), None);
    }

    proptest! {
        #[test]
        fn whatever_is_sent_is_read_the_same_in_any_pieces(text in ".{0,200}", at in 0_usize..200) {
            let read = |pieces: &[&[u8]]| {
                let (mut events, mut creates) = (EventScan::default(), CreateScan::default());
                events.begin();
                creates.begin();
                for piece in pieces {
                    events.feed(piece);
                    creates.feed(piece);
                }
                (events.end(|| NOW), events.take_metered(), creates.end())
            };
            for text in [text.clone(), format!(r#"{{"type": "response.completed", {text}"#), format!(r#"{{"type": "error",{text}"#)] {
                let (before, after) = text.as_bytes().split_at(at.min(text.len()));
                prop_assert_eq!(read(&[text.as_bytes()]), read(&[before, after]));
            }
        }
    }
}
