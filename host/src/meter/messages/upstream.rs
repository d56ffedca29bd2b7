//! Messages from upstream: the events of a response, rate limits and errors.

use std::time::Duration;

use crate::meter::reading::{self, ResponseReading, USAGE_KEYS};
use crate::values::clock::Timestamp;
use crate::values::credential::windows::{self, SlotReading};
use crate::values::exchange::{ExchangeEnd, MeteredResponse};
use crate::values::json::scan::{JsonScalar, JsonScan, ScanFlow, WantedKey};

const PRIMARY: u8 = reading::FIRST_FREE;
const SECONDARY: u8 = PRIMARY + SLOT_FIELDS;
const SLOT_FIELDS: u8 = 3;
const STATUS_CODE: u8 = SECONDARY + SLOT_FIELDS;
const RESETS_AT: u8 = STATUS_CODE + 1;
const RESETS_IN: u8 = RESETS_AT + 1;
const RETRY_AFTER: u8 = RESETS_IN + 1;

const fn slot_keys(first: u8) -> [WantedKey; SLOT_FIELDS as usize] {
    [
        WantedKey::scalar("used_percent", first),
        WantedKey::scalar("window_minutes", first + 1),
        WantedKey::scalar("reset_at", first + 2),
    ]
}

const RATE_LIMIT_KEYS: &[WantedKey] = &[
    WantedKey::within("primary", &slot_keys(PRIMARY)),
    WantedKey::within("secondary", &slot_keys(SECONDARY)),
];

/// The header fields of a rejected response, which an error has under `headers`.
const HEADER_KEYS: &[WantedKey] = &[
    WantedKey::scalar("x-codex-primary-used-percent", PRIMARY),
    WantedKey::scalar("x-codex-primary-window-minutes", PRIMARY + 1),
    WantedKey::scalar("x-codex-primary-reset-at", PRIMARY + 2),
    WantedKey::scalar("x-codex-secondary-used-percent", SECONDARY),
    WantedKey::scalar("x-codex-secondary-window-minutes", SECONDARY + 1),
    WantedKey::scalar("x-codex-secondary-reset-at", SECONDARY + 2),
    WantedKey::scalar("retry-after", RETRY_AFTER),
];

const EVENT_KEYS: &[WantedKey] = &[
    WantedKey::scalar("type", reading::TYPE),
    WantedKey::within(
        "response",
        &[
            WantedKey::scalar("id", reading::ID),
            WantedKey::scalar("model", reading::MODEL),
            WantedKey::scalar("service_tier", reading::TIER),
            WantedKey::within("usage", USAGE_KEYS),
        ],
    ),
    WantedKey::within("rate_limits", RATE_LIMIT_KEYS),
    WantedKey::scalar("status", reading::STATUS),
    WantedKey::scalar("status_code", STATUS_CODE),
    WantedKey::within(
        "error",
        &[
            WantedKey::scalar("resets_at", RESETS_AT),
            WantedKey::scalar("resets_in_seconds", RESETS_IN),
        ],
    ),
    WantedKey::within("headers", HEADER_KEYS),
];

/// The meaning of a message from upstream.
#[derive(Debug, Clone, PartialEq)]
pub enum UpstreamMessage {
    /// A message without a meaning to the gateway.
    Other,
    /// The last event of a response.
    Ended(ExchangeEnd),
    /// The account's rate-limit windows.
    RateLimits(windows::WindowReading),
    /// Upstream rejects the response.
    Error {
        /// The status, if the message has one.
        status: Option<u16>,
        /// The account's rate-limit windows, as far as the message has them.
        reading: windows::WindowReading,
        /// The end of the rejection, if the message has one.
        until: Option<Timestamp>,
    },
}

/// Reads the messages from upstream, one after another.
#[derive(Debug)]
pub struct UpstreamMessageScan {
    scan: JsonScan,
    /// The current response, over all its messages.
    reading: ResponseReading,
    fields: MessageFields,
}

/// The fields of the current message that do not belong to its response.
#[derive(Debug, Default)]
struct MessageFields {
    subject: MessageSubject,
    slots: [SlotReading; 2],
    status: Option<u16>,
    resets_at: Option<f64>,
    resets_in: Option<f64>,
    retry_after: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum MessageSubject {
    #[default]
    Response,
    RateLimits,
    Error,
}

impl Default for UpstreamMessageScan {
    fn default() -> Self {
        Self {
            scan: JsonScan::new(EVENT_KEYS),
            reading: ResponseReading::default(),
            fields: MessageFields::default(),
        }
    }
}

impl UpstreamMessageScan {
    /// Begins a message, and forgets the one before it.
    pub fn begin(&mut self) {
        self.scan.reset();
        self.reading.begin_event();
        self.fields = MessageFields::default();
    }

    /// Reads a piece of the message.
    pub fn feed(&mut self, piece: &[u8]) {
        let (reading, fields) = (&mut self.reading, &mut self.fields);
        self.scan
            .feed(piece, |name, scalar| record(reading, fields, name, scalar));
    }

    /// Ends the message and returns its meaning. Calls `now` only if the message depends on the
    /// time.
    pub fn end(&mut self, now: impl FnOnce() -> Timestamp) -> UpstreamMessage {
        match self.fields.subject {
            MessageSubject::Response => {
                self.reading.end_event();
                self.reading
                    .end_of_event()
                    .map_or(UpstreamMessage::Other, UpstreamMessage::Ended)
            }
            MessageSubject::RateLimits => {
                UpstreamMessage::RateLimits(windows::WindowReading::from_slots(self.fields.slots))
            }
            MessageSubject::Error => UpstreamMessage::Error {
                status: self.fields.status,
                reading: windows::WindowReading::from_slots(self.fields.slots),
                until: self.fields.until(now()),
            },
        }
    }

    /// Returns what was found out about the current response, and begins the next one.
    pub fn finish_response(&mut self) -> MeteredResponse {
        std::mem::take(&mut self.reading).metered
    }
}

fn record(
    reading: &mut ResponseReading,
    fields: &mut MessageFields,
    name: u8,
    scalar: JsonScalar<'_>,
) -> ScanFlow {
    match name {
        reading::TYPE => match scalar {
            JsonScalar::Text(b"codex.rate_limits") => fields.subject = MessageSubject::RateLimits,
            JsonScalar::Text(b"error") => fields.subject = MessageSubject::Error,
            _ => return reading.record(name, scalar),
        },
        reading::STATUS | STATUS_CODE => {
            let status = scalar.count().and_then(|status| u16::try_from(status).ok());
            fields.status = fields.status.or(status);
        }
        RESETS_AT => fields.resets_at = number(scalar),
        RESETS_IN => fields.resets_in = number(scalar),
        RETRY_AFTER => fields.retry_after = number(scalar),
        name if (PRIMARY..SECONDARY + SLOT_FIELDS).contains(&name) => {
            let index = name - PRIMARY;
            let slot = &mut fields.slots[usize::from(index / SLOT_FIELDS)];
            let field = match index % SLOT_FIELDS {
                0 => &mut slot.used_percent,
                1 => &mut slot.window_minutes,
                _ => &mut slot.reset_at,
            };
            *field = number(scalar);
        }
        _ => return reading.record(name, scalar),
    }
    ScanFlow::Continue
}

/// Returns a number, also from a text, as header fields are.
fn number(scalar: JsonScalar<'_>) -> Option<f64> {
    scalar
        .number()
        .or_else(|| scalar.text()?.trim().parse().ok())
        .filter(|number: &f64| number.is_finite())
}

impl MessageFields {
    fn until(&self, now: Timestamp) -> Option<Timestamp> {
        let is_plausible = |number: &f64| *number > 0.0 && *number < 1e12;
        let at = self
            .resets_at
            .filter(is_plausible)
            .map(|seconds| Timestamp((seconds * 1e3) as u64));
        let within = self.resets_in.or(self.retry_after).filter(is_plausible);
        at.or_else(|| within.map(|seconds| now.after(Duration::from_secs_f64(seconds))))
    }
}
