//! Metering: reads a response on its way past, on the side, and finds out what it used.
//!
//! Owns the reading of SSE, JSON and compressed bodies; refuses to hold a byte back or to change one. Invariant: its
//! memory per stream is bounded, however long a body, a line or an event is, and an event that carries no usage costs
//! no allocation.

mod decode;
mod messages;
mod reading;
mod request;
mod sse;

use std::io::{self, Write};

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};

use crate::values::exchange::{End, Metered};
use crate::values::json_scan::{JsonScan, Progress};

use decode::{Chosen, Decoder};
use reading::{KEYS, Reading};
use sse::Sse;

pub use decode::decoded;
pub use messages::{Create, CreateScan, Event, EventScan};
pub use request::{Asked, RequestScan};

/// What a piece of a response means for whoever forwards it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// There is more to come.
    More,
    /// With this piece the response is whole: its client may take it as complete.
    Whole,
}

/// A meter on one response.
pub struct Meter {
    source: Source,
    fed: bool,
}

enum Source {
    Plain(Scanner),
    Encoded(Box<Decoder<Tap>>),
    /// Of no use to read.
    Blind(&'static str),
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meter").finish_non_exhaustive()
    }
}

impl Meter {
    /// A meter for a response with these headers, that decodes up to `decoded_bytes` of a compressed one.
    pub fn new(headers: &HeaderMap, decoded_bytes: u64) -> Self {
        let scanner = Scanner::for_type(
            headers
                .get(CONTENT_TYPE)
                .and_then(|value| value.to_str().ok()),
        );
        let encoding = headers
            .get(CONTENT_ENCODING)
            .map_or("", |value| value.to_str().unwrap_or("?"));
        let tap = Tap {
            scanner,
            left: decoded_bytes,
            signal: Signal::More,
            closed: false,
        };
        let source = match Decoder::choose(encoding, tap) {
            Chosen::Identity(tap) => Source::Plain(tap.scanner),
            Chosen::Decoder(decoder) => Source::Encoded(decoder),
            Chosen::Unknown(_) => {
                Source::Blind("the response has a content encoding that is not known")
            }
        };
        Self { source, fed: false }
    }

    /// Reads a piece of the body, as it is on the wire.
    pub fn feed(&mut self, piece: &[u8]) -> Signal {
        self.fed |= !piece.is_empty();
        match &mut self.source {
            Source::Plain(scanner) => scanner.feed(piece),
            Source::Encoded(decoder) => feed_encoded(decoder, piece),
            Source::Blind(_) => Signal::More,
        }
    }

    /// The body is at its end. Answers how the response ended, as far as its content tells.
    pub fn finish(&mut self) -> End {
        match &mut self.source {
            Source::Plain(scanner) => scanner.finish(),
            Source::Encoded(decoder) => {
                let tap = decoder.writer_mut();
                // Where reading was given up, the transport alone says how it ended.
                if tap.closed {
                    tap.scanner.reading().ended.unwrap_or(End::Complete)
                } else {
                    tap.scanner.finish()
                }
            }
            Source::Blind(_) => End::Complete,
        }
    }

    /// How the response ended, where its content told so already.
    pub fn ended(&self) -> Option<End> {
        self.scanner().and_then(|scanner| scanner.reading().ended)
    }

    /// What was found so far.
    pub fn metered(&self) -> Metered {
        match &self.source {
            Source::Blind(reason) => Metered {
                unknown: Some(reason),
                ..Metered::default()
            },
            _ => self
                .scanner()
                .map(|scanner| scanner.reading().metered.clone())
                .unwrap_or_default(),
        }
    }

    fn scanner(&self) -> Option<&Scanner> {
        match &self.source {
            Source::Plain(scanner) => Some(scanner),
            Source::Encoded(decoder) => Some(&decoder.writer().scanner),
            Source::Blind(_) => None,
        }
    }
}

fn feed_encoded(decoder: &mut Decoder<Tap>, piece: &[u8]) -> Signal {
    if decoder.writer().closed {
        return Signal::More;
    }
    let fed = decoder.feed(piece);
    let tap = decoder.writer_mut();
    if let Err(error) = fed {
        // What was read so far stays known.
        tap.closed = true;
        tap.scanner.reading_mut().metered.unknown = Some(match error.kind() {
            io::ErrorKind::FileTooLarge => {
                "the response is larger, decoded, than limits.decoded_bytes"
            }
            _ => "the response cannot be decoded",
        });
    }
    std::mem::replace(&mut tap.signal, Signal::More)
}

/// The end of a decoder: counts what comes out, and lets a scanner read it.
struct Tap {
    scanner: Scanner,
    left: u64,
    signal: Signal,
    closed: bool,
}

impl Write for Tap {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.closed {
            return Ok(bytes.len());
        }
        self.left = self
            .left
            .checked_sub(bytes.len() as u64)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        if self.scanner.feed(bytes) == Signal::Whole {
            self.signal = Signal::Whole;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a decoded body.
enum Scanner {
    Sse(Sse),
    Json(Json),
    /// Nothing said what it is: the first byte that is no white space tells.
    Unsure,
    /// Neither: an image, a page.
    Other(Reading),
}

struct Json {
    scan: JsonScan,
    reading: Reading,
}

impl Scanner {
    fn for_type(content_type: Option<&str>) -> Self {
        let essence = content_type.map(|text| {
            text.split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .to_ascii_lowercase()
        });
        match essence.as_deref() {
            Some("text/event-stream") => Self::Sse(Sse::new()),
            None | Some("") => Self::Unsure,
            Some(essence) if essence == "application/json" || essence.ends_with("+json") => {
                Self::json()
            }
            Some(_) => Self::Other(Reading::default()),
        }
    }

    fn json() -> Self {
        Self::Json(Json {
            scan: JsonScan::new(KEYS),
            reading: Reading::default(),
        })
    }

    fn feed(&mut self, piece: &[u8]) -> Signal {
        if let Self::Unsure = self {
            let Some(first) = piece.iter().find(|byte| !byte.is_ascii_whitespace()) else {
                return Signal::More;
            };
            *self = if *first == b'{' {
                Self::json()
            } else {
                Self::Sse(Sse::new())
            };
        }
        match self {
            Self::Sse(sse) => sse.feed(piece),
            Self::Json(Json { scan, reading }) => {
                if scan.progress() == Progress::Open
                    && scan.feed(piece, |name, scalar| reading.take(name, scalar)) == Progress::Done
                {
                    reading.whole_body();
                }
                // Only the transport tells where a JSON body ends.
                Signal::More
            }
            Self::Unsure | Self::Other(_) => Signal::More,
        }
    }

    fn finish(&mut self) -> End {
        match self {
            Self::Sse(sse) => sse.finish(),
            Self::Json(json) => json.reading.ended.unwrap_or(End::Complete),
            Self::Unsure | Self::Other(_) => End::Complete,
        }
    }

    fn reading(&self) -> &Reading {
        match self {
            Self::Sse(sse) => sse.reading(),
            Self::Json(json) => &json.reading,
            Self::Other(reading) => reading,
            Self::Unsure => Reading::NOTHING,
        }
    }

    fn reading_mut(&mut self) -> &mut Reading {
        if let Self::Unsure = self {
            *self = Self::Other(Reading::default());
        }
        match self {
            Self::Sse(sse) => sse.reading_mut(),
            Self::Json(json) => &mut json.reading,
            Self::Other(reading) => reading,
            Self::Unsure => unreachable!("replaced above"),
        }
    }
}

#[cfg(test)]
mod tests;
