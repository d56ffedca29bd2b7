//! What upstream parses from a request's body or a socket's message. Both are recorded as they
//! came.

use std::borrow::Cow;
use std::io::Read;

use http::HeaderMap;
use serde::Deserialize;

/// The fields of a request that decide its answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) model: Option<String>,
    pub(crate) service_tier: Option<String>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, default)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    service_tier: Option<Cow<'a, str>>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

/// A `response.create` received on a socket.
#[derive(Clone, Debug, Default)]
pub(crate) struct Create {
    pub(crate) asked: Asked,
    /// `generate` is false: the model must not run.
    pub(crate) is_prewarm: bool,
    pub(crate) previous_response_id: Option<String>,
}

#[derive(Deserialize)]
struct CreateFields<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    service_tier: Option<Cow<'a, str>>,
    #[serde(default)]
    generate: Option<bool>,
    #[serde(borrow, default)]
    previous_response_id: Option<Cow<'a, str>>,
}

impl Create {
    /// Returns `None` if the message is another one.
    pub(crate) fn read(text: &[u8]) -> Option<Self> {
        let fields: CreateFields<'_> = serde_json::from_slice(text).ok()?;
        (fields.kind == "response.create").then(|| Create {
            asked: Asked {
                model: fields.model.map(Cow::into_owned),
                service_tier: fields.service_tier.map(Cow::into_owned),
                ..Asked::default()
            },
            is_prewarm: fields.generate == Some(false),
            previous_response_id: fields.previous_response_id.map(Cow::into_owned),
        })
    }
}

/// The longest decoded request body.
const DECODED_BYTES_MAX: u64 = 256 << 20;

impl Asked {
    /// Returns `None` if the body is not a JSON object of the right types.
    pub(crate) fn read(headers: &HeaderMap, body: &[u8]) -> Option<Self> {
        let body = decode(headers, body)?;
        let fields: Fields<'_> = serde_json::from_slice(&body).ok()?;
        Some(Asked {
            model: fields.model.map(Cow::into_owned),
            service_tier: fields.service_tier.map(Cow::into_owned),
            stream: fields.stream.unwrap_or(false),
            include_usage: fields
                .stream_options
                .and_then(|options| options.include_usage)
                .unwrap_or(false),
        })
    }
}

fn decode<'a>(headers: &HeaderMap, body: &'a [u8]) -> Option<Cow<'a, [u8]>> {
    let Some(encoding) = headers.get(http::header::CONTENT_ENCODING) else {
        return Some(Cow::Borrowed(body));
    };
    let reader: Box<dyn Read + 'a> = match encoding.as_bytes() {
        b"gzip" => Box::new(flate2::read::MultiGzDecoder::new(body)),
        b"zstd" => Box::new(zstd::stream::read::Decoder::new(body).ok()?),
        b"identity" => return Some(Cow::Borrowed(body)),
        _ => return None,
    };
    let mut decoded = Vec::new();
    reader
        .take(DECODED_BYTES_MAX)
        .read_to_end(&mut decoded)
        .ok()?;
    Some(Cow::Owned(decoded))
}
