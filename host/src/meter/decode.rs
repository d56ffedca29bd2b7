//! Decoding of a compressed body, piece by piece. The output goes to a writer, which limits it.

use std::io::{self, Write};

use brotli_decompressor::DecompressorWriter;
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

/// The largest window of a zstd frame that is decoded: 8 MiB, the maximum over HTTP (RFC 9659).
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
const BROTLI_BUFFER: usize = 4096;

/// A decoder that writes to a writer.
pub(super) enum BodyDecoder<W: Write> {
    Gzip(MultiGzDecoder<W>),
    Zlib(ZlibDecoder<W>),
    /// `deflate` without a zlib wrapper, as some servers send it.
    Deflate(DeflateDecoder<W>),
    /// `deflate` before the first byte, which decides between the two.
    DeflateUndecided(Option<W>),
    Brotli(Box<DecompressorWriter<W>>),
    Zstd(Box<zstd::stream::write::Decoder<'static, W>>),
}

/// The decoder for a content encoding.
pub(super) enum DecoderChoice<W: Write> {
    /// The body is not encoded.
    Identity(W),
    Decoder(Box<BodyDecoder<W>>),
    /// The encoding is unknown, or there are several.
    Unknown(W),
}

impl<W: Write> BodyDecoder<W> {
    pub(super) fn choose(encoding: &str, writer: W) -> DecoderChoice<W> {
        DecoderChoice::Decoder(Box::new(
            match encoding.trim().to_ascii_lowercase().as_str() {
                "" | "identity" => return DecoderChoice::Identity(writer),
                "gzip" | "x-gzip" => Self::Gzip(MultiGzDecoder::new(writer)),
                "deflate" => Self::DeflateUndecided(Some(writer)),
                "br" => Self::Brotli(Box::new(DecompressorWriter::new(writer, BROTLI_BUFFER))),
                "zstd" => Self::Zstd(Box::new(zstd_decoder(writer))),
                _ => return DecoderChoice::Unknown(writer),
            },
        ))
    }

    /// Decodes a piece and writes all of its output.
    ///
    /// # Errors
    /// The piece cannot be decoded, or the writer fails.
    pub(super) fn feed(&mut self, piece: &[u8]) -> io::Result<()> {
        let Some(first) = piece.first() else {
            return Ok(());
        };
        if let Self::DeflateUndecided(writer) = self
            && let Some(writer) = writer.take()
        {
            // RFC 1950: the low half of the first byte is the method, 8 for deflate; the high half
            // is at most 7.
            let zlib = first & 0x0f == 8 && first >> 4 <= 7;
            *self = if zlib {
                Self::Zlib(ZlibDecoder::new(writer))
            } else {
                Self::Deflate(DeflateDecoder::new(writer))
            };
        }
        let decoder: &mut dyn Write = match self {
            Self::Gzip(decoder) => decoder,
            Self::Zlib(decoder) => decoder,
            Self::Deflate(decoder) => decoder,
            Self::Brotli(decoder) => &mut **decoder,
            Self::Zstd(decoder) => &mut **decoder,
            Self::DeflateUndecided(_) => return Ok(()),
        };
        decoder.write_all(piece)?;
        decoder.flush()
    }

    pub(super) fn writer(&self) -> &W {
        match self {
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Zlib(decoder) => decoder.get_ref(),
            Self::Deflate(decoder) => decoder.get_ref(),
            Self::Brotli(decoder) => decoder.get_ref(),
            Self::Zstd(decoder) => decoder.get_ref(),
            Self::DeflateUndecided(writer) => writer
                .as_ref()
                .unwrap_or_else(|| unreachable!("taken only to be replaced in the same call")),
        }
    }

    pub(super) fn writer_mut(&mut self) -> &mut W {
        match self {
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zlib(decoder) => decoder.get_mut(),
            Self::Deflate(decoder) => decoder.get_mut(),
            Self::Brotli(decoder) => decoder.get_mut(),
            Self::Zstd(decoder) => decoder.get_mut(),
            Self::DeflateUndecided(writer) => writer
                .as_mut()
                .unwrap_or_else(|| unreachable!("taken only to be replaced in the same call")),
        }
    }
}

/// Creates a zstd decoder with a limited window, so that a hostile frame cannot make it allocate
/// more.
fn zstd_decoder<W: Write>(writer: W) -> zstd::stream::write::Decoder<'static, W> {
    let bounded = zstd::stream::write::Decoder::new(writer).and_then(|mut decoder| {
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        Ok(decoder)
    });
    // zstd knows the parameter and accepts the value, so this does not fail.
    bounded.unwrap_or_else(|error| {
        unreachable!("zstd accepts a window of 2^{ZSTD_WINDOW_LOG_MAX}: {error}")
    })
}

/// Decodes the first `bytes_max` bytes of a body. The result ends before the first byte that cannot
/// be decoded.
pub fn decode_body(encoding: Option<&str>, parts: &[bytes::Bytes], bytes_max: usize) -> Vec<u8> {
    let buffer = BoundedBuffer {
        bytes: Vec::new(),
        bytes_max,
    };
    match BodyDecoder::choose(encoding.unwrap_or_default(), buffer) {
        DecoderChoice::Identity(mut plain) | DecoderChoice::Unknown(mut plain) => {
            // An error means that the limit is reached: the buffer has what is wanted.
            let _ = parts.iter().try_for_each(|part| plain.write_all(part));
            plain.bytes
        }
        DecoderChoice::Decoder(mut decoder) => {
            let _ = parts.iter().try_for_each(|part| decoder.feed(part));
            std::mem::take(&mut decoder.writer_mut().bytes)
        }
    }
}

struct BoundedBuffer {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Write for BoundedBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let accepted = bytes.len().min(self.bytes_max - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..accepted]);
        Ok(accepted)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
