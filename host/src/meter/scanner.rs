//! The scanner of a decoded body, chosen by its content type.

use super::reading::{BodyProgress, RESPONSE_KEYS, ResponseReading};
use super::sse::SseScanner;
use crate::values::exchange::ExchangeEnd;
use crate::values::json::scan::{JsonScan, ScanProgress};

pub(super) enum BodyScanner {
    Sse(SseScanner),
    Json(JsonBody),
    /// The response has no content type: the first byte that is not white space decides.
    Undecided,
    /// Neither of them, such as an image.
    Other(ResponseReading),
}

pub(super) struct JsonBody {
    scan: JsonScan,
    reading: ResponseReading,
}

impl JsonBody {
    fn feed(&mut self, piece: &[u8]) {
        if self.scan.progress() != ScanProgress::Open {
            return;
        }
        let reading = &mut self.reading;
        let progress = self
            .scan
            .feed(piece, |name, scalar| reading.record(name, scalar));
        if progress == ScanProgress::Done {
            reading.end_body();
        }
    }
}

impl BodyScanner {
    pub(super) fn for_type(content_type: Option<&str>) -> Self {
        let essence = content_type.map(|text| {
            text.split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .to_ascii_lowercase()
        });
        match essence.as_deref() {
            Some("text/event-stream") => Self::Sse(SseScanner::new()),
            None | Some("") => Self::Undecided,
            Some(essence) if essence == "application/json" || essence.ends_with("+json") => {
                Self::json()
            }
            Some(_) => Self::Other(ResponseReading::default()),
        }
    }

    fn json() -> Self {
        Self::Json(JsonBody {
            scan: JsonScan::new(RESPONSE_KEYS),
            reading: ResponseReading::default(),
        })
    }

    pub(super) fn feed(&mut self, piece: &[u8]) -> BodyProgress {
        if let Self::Undecided = self {
            let Some(first) = piece.iter().find(|byte| !byte.is_ascii_whitespace()) else {
                return BodyProgress::Open;
            };
            *self = if *first == b'{' {
                Self::json()
            } else {
                Self::Sse(SseScanner::new())
            };
        }
        match self {
            Self::Sse(sse) => sse.feed(piece),
            Self::Json(json) => {
                json.feed(piece);
                // Only the transport knows where a JSON body ends.
                BodyProgress::Open
            }
            Self::Undecided | Self::Other(_) => BodyProgress::Open,
        }
    }

    pub(super) fn finish(&mut self) -> ExchangeEnd {
        match self {
            Self::Sse(sse) => sse.finish(),
            Self::Json(json) => json.reading.ended.unwrap_or(ExchangeEnd::Complete),
            Self::Undecided | Self::Other(_) => ExchangeEnd::Complete,
        }
    }

    pub(super) fn reading(&self) -> &ResponseReading {
        match self {
            Self::Sse(sse) => sse.reading(),
            Self::Json(json) => &json.reading,
            Self::Other(reading) => reading,
            Self::Undecided => ResponseReading::EMPTY_REF,
        }
    }

    pub(super) fn reading_mut(&mut self) -> &mut ResponseReading {
        if let Self::Undecided = self {
            *self = Self::Other(ResponseReading::default());
        }
        match self {
            Self::Sse(sse) => sse.reading_mut(),
            Self::Json(json) => &mut json.reading,
            Self::Other(reading) => reading,
            Self::Undecided => unreachable!("replaced above"),
        }
    }
}
