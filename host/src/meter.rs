//! Metering: reads responses and messages while they pass, and finds out what they used.
//!
//! Owns the reading of SSE, JSON and compressed bodies; does not hold back or change a byte.
//! Invariant: the memory per stream is bounded, however long a body, a line or an event is, and an
//! event that carries no usage costs no allocation.

mod decode;
mod messages;
mod reading;
mod request;
mod scanner;
mod sse;

use std::io::{self, Write};

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};

use crate::values::exchange::{ExchangeEnd, MeteredResponse, UnknownUsage};

use decode::{BodyDecoder, DecoderChoice};
use scanner::BodyScanner;

pub use decode::decode_body;
pub use messages::{ClientMessageScan, ResponseCreate, UpstreamMessage, UpstreamMessageScan};
pub use reading::BodyProgress;
pub use request::{RequestFields, RequestScan};

/// A meter of one response.
pub struct Meter {
    source: MeterSource,
}

enum MeterSource {
    Plain(BodyScanner),
    Encoded(Box<BodyDecoder<DecodedResponse>>),
    /// The body cannot be read, for this reason.
    Unreadable(UnknownUsage),
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meter").finish_non_exhaustive()
    }
}

impl Meter {
    /// Creates a meter for a response with these headers. Of a compressed body it decodes at most
    /// `decoded_bytes`.
    pub fn new(headers: &HeaderMap, decoded_bytes: u64) -> Self {
        let content_type = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let encoding = headers
            .get(CONTENT_ENCODING)
            .map_or("", |value| value.to_str().unwrap_or("?"));
        let response = DecodedResponse {
            scanner: BodyScanner::for_type(content_type),
            bytes_left: decoded_bytes,
            progress: BodyProgress::Open,
            is_abandoned: false,
        };
        let source = match BodyDecoder::choose(encoding, response) {
            DecoderChoice::Identity(response) => MeterSource::Plain(response.scanner),
            DecoderChoice::Decoder(decoder) => MeterSource::Encoded(decoder),
            DecoderChoice::Unknown(_) => MeterSource::Unreadable(UnknownUsage::UnknownEncoding),
        };
        Self { source }
    }

    /// Reads a piece of the body, as it was received.
    pub fn feed(&mut self, piece: &[u8]) -> BodyProgress {
        match &mut self.source {
            MeterSource::Plain(scanner) => scanner.feed(piece),
            MeterSource::Encoded(decoder) => feed_encoded(decoder, piece),
            MeterSource::Unreadable(_) => BodyProgress::Open,
        }
    }

    /// Ends the body. Returns how the response ended, as far as its content says.
    pub fn finish(&mut self) -> ExchangeEnd {
        match &mut self.source {
            MeterSource::Plain(scanner) => scanner.finish(),
            MeterSource::Encoded(decoder) => {
                let response = decoder.writer_mut();
                // Once decoding was abandoned, only the transport knows how the body ended.
                if response.is_abandoned {
                    response
                        .scanner
                        .reading()
                        .ended
                        .unwrap_or(ExchangeEnd::Complete)
                } else {
                    response.scanner.finish()
                }
            }
            MeterSource::Unreadable(_) => ExchangeEnd::Complete,
        }
    }

    /// Returns how the response ended, if its content has said so.
    pub fn ended(&self) -> Option<ExchangeEnd> {
        self.scanner().and_then(|scanner| scanner.reading().ended)
    }

    /// Returns what was found so far.
    pub fn metered(&self) -> MeteredResponse {
        match &self.source {
            MeterSource::Unreadable(reason) => MeteredResponse {
                unknown: Some(*reason),
                ..MeteredResponse::default()
            },
            MeterSource::Plain(scanner) => scanner.reading().metered.clone(),
            MeterSource::Encoded(decoder) => decoder.writer().scanner.reading().metered.clone(),
        }
    }

    fn scanner(&self) -> Option<&BodyScanner> {
        match &self.source {
            MeterSource::Plain(scanner) => Some(scanner),
            MeterSource::Encoded(decoder) => Some(&decoder.writer().scanner),
            MeterSource::Unreadable(_) => None,
        }
    }
}

fn feed_encoded(decoder: &mut BodyDecoder<DecodedResponse>, piece: &[u8]) -> BodyProgress {
    if decoder.writer().is_abandoned {
        return BodyProgress::Open;
    }
    let fed = decoder.feed(piece);
    let response = decoder.writer_mut();
    if let Err(error) = fed {
        // What was read so far remains known.
        response.is_abandoned = true;
        response.scanner.reading_mut().metered.unknown = Some(match error.kind() {
            io::ErrorKind::FileTooLarge => UnknownUsage::TooLarge,
            _ => UnknownUsage::Undecodable,
        });
    }
    std::mem::replace(&mut response.progress, BodyProgress::Open)
}

/// The output of a decoder: passes the decoded bytes to a scanner, up to a limit.
struct DecodedResponse {
    scanner: BodyScanner,
    bytes_left: u64,
    progress: BodyProgress,
    /// Decoding failed or reached the limit: nothing more is read.
    is_abandoned: bool,
}

impl Write for DecodedResponse {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_abandoned {
            return Ok(bytes.len());
        }
        self.bytes_left = self
            .bytes_left
            .checked_sub(bytes.len() as u64)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        if self.scanner.feed(bytes) == BodyProgress::Complete {
            self.progress = BodyProgress::Complete;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
