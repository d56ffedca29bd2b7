//! The scanner of a request's body: the fields that decide about its routing and price.
//!
//! The body itself is never changed. A body that is not JSON yields no fields; rejecting it is left
//! to upstream.

use std::io::{self, Write};

use super::decode::{BodyDecoder, DecoderChoice};
use crate::values::json::scan::{JsonScalar, JsonScan, ScanFlow, WantedKey};

pub(super) const MODEL: u8 = 0;
pub(super) const TIER: u8 = 1;
pub(super) const CACHE_KEY: u8 = 2;
pub(super) const PREVIOUS: u8 = 3;
const STREAM: u8 = 4;
/// The first number that a list with further keys may use.
pub(super) const FIRST_FREE: u8 = 5;

const KEYS: &[WantedKey] = &[
    WantedKey::scalar("model", MODEL),
    WantedKey::scalar("service_tier", TIER),
    WantedKey::scalar("prompt_cache_key", CACHE_KEY),
    WantedKey::scalar("previous_response_id", PREVIOUS),
    WantedKey::scalar("stream", STREAM),
];

/// The fields of a request's body that the gateway reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestFields {
    /// The model that the request names.
    pub model: Option<String>,
    /// The requested service tier.
    pub service_tier: Option<String>,
    /// The key of the prompt cache, which is the same throughout a session.
    pub prompt_cache_key: Option<String>,
    /// The response that the request continues.
    pub previous_response_id: Option<String>,
    /// Whether the response should be streamed.
    pub stream: bool,
}

/// A scan of a request's body.
pub struct RequestScan {
    source: RequestSource,
}

enum RequestSource {
    Plain(DecodedRequest),
    Encoded(Box<BodyDecoder<DecodedRequest>>),
    /// The rest of the body cannot be read; these fields were read before.
    Closed(RequestFields),
}

/// The output of a decoder: scans the decoded bytes, up to a limit.
struct DecodedRequest {
    scan: JsonScan,
    fields: RequestFields,
    bytes_left: u64,
}

impl std::fmt::Debug for RequestScan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestScan").finish_non_exhaustive()
    }
}

impl RequestScan {
    /// Creates a scan of a body with this content encoding. Of the body it reads at most
    /// `decoded_bytes`, decoded.
    pub fn new(encoding: Option<&str>, decoded_bytes: u64) -> Self {
        let request = DecodedRequest {
            scan: JsonScan::new(KEYS),
            fields: RequestFields::default(),
            bytes_left: decoded_bytes,
        };
        let source = match BodyDecoder::choose(encoding.unwrap_or_default(), request) {
            DecoderChoice::Identity(request) => RequestSource::Plain(request),
            DecoderChoice::Decoder(decoder) => RequestSource::Encoded(decoder),
            DecoderChoice::Unknown(_) => RequestSource::Closed(RequestFields::default()),
        };
        Self { source }
    }

    /// Reads a piece of the body, as it was received.
    pub fn feed(&mut self, piece: &[u8]) {
        let read = match &mut self.source {
            RequestSource::Plain(request) => request.write_all(piece),
            RequestSource::Encoded(decoder) => decoder.feed(piece),
            RequestSource::Closed(_) => Ok(()),
        };
        if read.is_err() {
            self.source = RequestSource::Closed(self.fields().clone());
        }
    }

    /// Returns the fields that were found so far.
    pub fn fields(&self) -> &RequestFields {
        match &self.source {
            RequestSource::Plain(request) => &request.fields,
            RequestSource::Encoded(decoder) => &decoder.writer().fields,
            RequestSource::Closed(fields) => fields,
        }
    }
}

impl Write for DecodedRequest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes_left = self
            .bytes_left
            .checked_sub(bytes.len() as u64)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        let fields = &mut self.fields;
        self.scan
            .feed(bytes, |name, scalar| fields.record(name, scalar));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl RequestFields {
    pub(super) fn record(&mut self, name: u8, scalar: JsonScalar<'_>) -> ScanFlow {
        let text = || scalar.text().filter(|text| !text.is_empty());
        match name {
            MODEL => self.model = text(),
            TIER => self.service_tier = text(),
            CACHE_KEY => self.prompt_cache_key = text(),
            PREVIOUS => self.previous_response_id = text(),
            _ => self.stream = scalar.is_true(),
        }
        ScanFlow::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"model": "gpt-5.4", "input": [{"model": "no"}], "stream": true,
        "prompt_cache_key": "key", "previous_response_id": "resp_1", "service_tier": "flex"}"#;

    #[track_caller]
    fn check(encoding: Option<&str>, body: &[u8]) {
        for piece in [1, 5, 4096] {
            let mut scan = RequestScan::new(encoding, 1 << 20);
            for piece in body.chunks(piece) {
                scan.feed(piece);
            }
            let fields = scan.fields();
            assert_eq!(fields.model.as_deref(), Some("gpt-5.4"));
            assert_eq!(fields.service_tier.as_deref(), Some("flex"));
            assert_eq!(fields.prompt_cache_key.as_deref(), Some("key"));
            assert_eq!(fields.previous_response_id.as_deref(), Some("resp_1"));
            assert!(fields.stream);
        }
    }

    #[test]
    fn the_fields_are_read_from_plain_and_compressed_bodies() {
        check(None, BODY);
        check(
            Some("zstd"),
            &zstd::encode_all(BODY, 1).expect("zstd encodes"),
        );
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(BODY)
            .and_then(|()| gzip.flush())
            .expect("gzip encodes");
        check(Some("gzip"), &gzip.finish().expect("gzip encodes"));
    }

    #[test]
    fn a_body_that_is_not_json_has_no_fields() {
        for body in [
            &b""[..],
            b"hello",
            b"[1]",
            b"\xff\xfe",
            b"{\"model\": 5}",
            b"{\"model\": \"\"}",
        ] {
            let mut scan = RequestScan::new(None, 1 << 20);
            scan.feed(body);
            assert_eq!(scan.fields(), &RequestFields::default(), "{body:?}");
        }
    }

    #[test]
    fn a_body_that_expands_past_the_limit_is_read_no_further() {
        let huge = [
            br#"{"model":"m","input":""#.as_slice(),
            &vec![b'x'; 1 << 20],
            br#"","stream":true}"#,
        ]
        .concat();
        let mut scan = RequestScan::new(Some("zstd"), 1 << 16);
        for piece in zstd::encode_all(&*huge, 1)
            .expect("zstd encodes")
            .chunks(16)
        {
            scan.feed(piece);
        }
        assert!(!scan.fields().stream);
    }
}
