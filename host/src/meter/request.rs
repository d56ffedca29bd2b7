//! What a request asks for, read from its body on the side. The body itself is never changed, and one that is no JSON
//! is upstream's to refuse.

use std::io::{self, Write};

use super::decode::{Chosen, Decoder};
use crate::values::json_scan::{Flow, JsonScan, Scalar, Wanted};

pub(super) const MODEL: u8 = 0;
pub(super) const TIER: u8 = 1;
pub(super) const CACHE_KEY: u8 = 2;
pub(super) const PREVIOUS: u8 = 3;
const STREAM: u8 = 4;
/// Names from here on are free for who reads more.
pub(super) const FREE: u8 = 5;

const KEYS: &[Wanted] = &[
    Wanted::scalar("model", MODEL),
    Wanted::scalar("service_tier", TIER),
    Wanted::scalar("prompt_cache_key", CACHE_KEY),
    Wanted::scalar("previous_response_id", PREVIOUS),
    Wanted::scalar("stream", STREAM),
];

/// What a request's body asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// The model.
    pub model: Option<String>,
    /// The service tier.
    pub service_tier: Option<String>,
    /// The key of its prompt cache: the same over a session.
    pub prompt_cache_key: Option<String>,
    /// The response that it continues.
    pub previous_response_id: Option<String>,
    /// Whether the answer shall be streamed.
    pub stream: bool,
}

/// A scan of a request's body.
pub struct RequestScan {
    source: Source,
}

enum Source {
    Plain(Tap),
    Encoded(Box<Decoder<Tap>>),
    /// Not to be read any further; what was read stays.
    Closed(Asked),
}

struct Tap {
    scan: JsonScan,
    asked: Asked,
    left: u64,
}

impl std::fmt::Debug for RequestScan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestScan").finish_non_exhaustive()
    }
}

impl RequestScan {
    /// A scan of a body with that content encoding, that decodes up to `decoded_bytes` of it.
    pub fn new(encoding: Option<&str>, decoded_bytes: u64) -> Self {
        let tap = Tap {
            scan: JsonScan::new(KEYS),
            asked: Asked::default(),
            left: decoded_bytes,
        };
        let source = match Decoder::choose(encoding.unwrap_or_default(), tap) {
            Chosen::Identity(tap) => Source::Plain(tap),
            Chosen::Decoder(decoder) => Source::Encoded(decoder),
            Chosen::Unknown(_) => Source::Closed(Asked::default()),
        };
        Self { source }
    }

    /// Reads a piece of the body, as it is on the wire.
    pub fn feed(&mut self, piece: &[u8]) {
        let read = match &mut self.source {
            Source::Plain(tap) => tap.write_all(piece),
            Source::Encoded(decoder) => decoder.feed(piece),
            Source::Closed(_) => Ok(()),
        };
        if read.is_err() {
            self.source = Source::Closed(self.asked().clone());
        }
    }

    /// What was found so far.
    pub fn asked(&self) -> &Asked {
        match &self.source {
            Source::Plain(tap) => &tap.asked,
            Source::Encoded(decoder) => &decoder.writer().asked,
            Source::Closed(asked) => asked,
        }
    }
}

impl Write for Tap {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self
            .left
            .checked_sub(bytes.len() as u64)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        let asked = &mut self.asked;
        self.scan
            .feed(bytes, |name, scalar| asked.take(name, scalar));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Asked {
    pub(super) fn take(&mut self, name: u8, scalar: Scalar<'_>) -> Flow {
        let text = || scalar.text().filter(|text| !text.is_empty());
        match name {
            MODEL => self.model = text(),
            TIER => self.service_tier = text(),
            CACHE_KEY => self.prompt_cache_key = text(),
            PREVIOUS => self.previous_response_id = text(),
            _ => self.stream = scalar.is_true(),
        }
        Flow::Continue
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
            let asked = scan.asked();
            assert_eq!(asked.model.as_deref(), Some("gpt-5.4"));
            assert_eq!(asked.service_tier.as_deref(), Some("flex"));
            assert_eq!(asked.prompt_cache_key.as_deref(), Some("key"));
            assert_eq!(asked.previous_response_id.as_deref(), Some("resp_1"));
            assert!(asked.stream);
        }
    }

    #[test]
    fn what_is_asked_is_read_plain_and_compressed() {
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
    fn what_is_no_json_asks_for_nothing() {
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
            assert_eq!(scan.asked(), &Asked::default(), "{body:?}");
        }
    }

    #[test]
    fn a_body_that_expands_past_the_bound_is_read_no_further() {
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
        assert!(!scan.asked().stream);
    }
}
