//! Content encodings of a response body. Invariant: each part decodes by itself, given those before
//! it.

use std::io::{self, Write};

#[cfg(feature = "brotli")]
use brotli::CompressorWriter;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};

const ZSTD_LEVEL: i32 = 3;

/// How a response body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Named `gzip` in `Content-Encoding`.
    Gzip,
    /// `deflate`, which on the web is zlib.
    Deflate,
    /// Named `zstd` in `Content-Encoding`.
    Zstd,
    /// Named `br` in `Content-Encoding`: Brotli.
    #[cfg(feature = "brotli")]
    Brotli,
}

impl Encoding {
    /// The value of Content-Encoding.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Gzip => "gzip",
            Encoding::Deflate => "deflate",
            Encoding::Zstd => "zstd",
            #[cfg(feature = "brotli")]
            Encoding::Brotli => "br",
        }
    }

    /// Compresses the parts as one stream, flushed after each, so that a client can read each as it
    /// comes.
    pub(crate) fn encode(self, parts: Vec<Bytes>) -> Vec<Bytes> {
        let encoded = match self {
            Encoding::Gzip => squeeze(GzEncoder::new(Vec::new(), Compression::default()), parts),
            Encoding::Deflate => {
                squeeze(ZlibEncoder::new(Vec::new(), Compression::default()), parts)
            }
            Encoding::Zstd => zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)
                .and_then(|encoder| squeeze(encoder, parts)),
            #[cfg(feature = "brotli")]
            Encoding::Brotli => squeeze(brotli_encoder(), parts),
        };
        encoded.expect("writing to memory does not fail")
    }
}

/// Returns an encoder with the settings that servers use for responses made on demand.
#[cfg(feature = "brotli")]
fn brotli_encoder() -> CompressorWriter<Vec<u8>> {
    const QUALITY: u32 = 4;
    const WINDOW_BITS: u32 = 22;
    const BUFFER_BYTES: usize = 64 << 10;
    CompressorWriter::new(Vec::new(), BUFFER_BYTES, QUALITY, WINDOW_BITS)
}

/// What the encoders have in common.
trait Squeeze: Write + Sized {
    fn written(&mut self) -> &mut Vec<u8>;
    fn end(self) -> io::Result<Vec<u8>>;
}

fn squeeze(mut encoder: impl Squeeze, parts: Vec<Bytes>) -> io::Result<Vec<Bytes>> {
    let mut encoded = Vec::with_capacity(parts.len());
    let last = parts.len().saturating_sub(1);
    for (index, part) in parts.into_iter().enumerate() {
        encoder.write_all(&part)?;
        // The last part takes the stream's own end with it.
        if index < last {
            encoder.flush()?;
            encoded.push(Bytes::from(std::mem::take(encoder.written())));
        }
    }
    encoded.push(Bytes::from(encoder.end()?));
    Ok(encoded)
}

impl Squeeze for GzEncoder<Vec<u8>> {
    fn written(&mut self) -> &mut Vec<u8> {
        self.get_mut()
    }
    fn end(self) -> io::Result<Vec<u8>> {
        self.finish()
    }
}

impl Squeeze for ZlibEncoder<Vec<u8>> {
    fn written(&mut self) -> &mut Vec<u8> {
        self.get_mut()
    }
    fn end(self) -> io::Result<Vec<u8>> {
        self.finish()
    }
}

impl Squeeze for zstd::stream::write::Encoder<'_, Vec<u8>> {
    fn written(&mut self) -> &mut Vec<u8> {
        self.get_mut()
    }
    fn end(self) -> io::Result<Vec<u8>> {
        self.finish()
    }
}

#[cfg(feature = "brotli")]
impl Squeeze for CompressorWriter<Vec<u8>> {
    fn written(&mut self) -> &mut Vec<u8> {
        self.get_mut()
    }
    fn end(self) -> io::Result<Vec<u8>> {
        // It writes its end as it lets go of what it wrote to.
        Ok(self.into_inner())
    }
}
