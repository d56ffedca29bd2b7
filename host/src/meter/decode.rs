//! Decoding a compressed body on the side, piece by piece. What comes out is written to a writer, which bounds it.

use std::io::{self, Write};

use brotli_decompressor::DecompressorWriter;
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

/// The largest window of a zstd frame that is decoded: 8 MiB, the most that RFC 9659 allows over HTTP.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
const BROTLI_BUFFER: usize = 4096;

/// A decoder in front of a writer.
pub(super) enum Decoder<W: Write> {
    Gzip(MultiGzDecoder<W>),
    Zlib(ZlibDecoder<W>),
    /// `deflate` without its zlib wrapper, as some servers send it.
    Deflate(DeflateDecoder<W>),
    /// `deflate`, before its first byte tells which.
    DeflateUnsure(Option<W>),
    Brotli(Box<DecompressorWriter<W>>),
    Zstd(Box<zstd::stream::write::Decoder<'static, W>>),
}

/// What a content encoding asks for.
pub(super) enum Chosen<W: Write> {
    /// No decoding.
    Identity(W),
    /// This decoder.
    Decoder(Box<Decoder<W>>),
    /// One that is not known, or more than one.
    Unknown(W),
}

impl<W: Write> Decoder<W> {
    pub(super) fn choose(encoding: &str, writer: W) -> Chosen<W> {
        Chosen::Decoder(Box::new(
            match encoding.trim().to_ascii_lowercase().as_str() {
                "" | "identity" => return Chosen::Identity(writer),
                "gzip" | "x-gzip" => Self::Gzip(MultiGzDecoder::new(writer)),
                "deflate" => Self::DeflateUnsure(Some(writer)),
                "br" => Self::Brotli(Box::new(DecompressorWriter::new(writer, BROTLI_BUFFER))),
                "zstd" => Self::Zstd(Box::new(zstd_decoder(writer))),
                _ => return Chosen::Unknown(writer),
            },
        ))
    }

    /// Decodes a piece; all that comes of it is written before this returns.
    ///
    /// # Errors
    /// The piece cannot be decoded, or the writer takes no more.
    pub(super) fn feed(&mut self, piece: &[u8]) -> io::Result<()> {
        let Some(first) = piece.first() else {
            return Ok(());
        };
        if let Self::DeflateUnsure(writer) = self
            && let Some(writer) = writer.take()
        {
            // RFC 1950: the low half of the first byte is the method, 8 for deflate; the high half is at most 7.
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
            Self::DeflateUnsure(_) => return Ok(()),
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
            Self::DeflateUnsure(writer) => writer
                .as_ref()
                .unwrap_or_else(|| unreachable!("taken only to be replaced")),
        }
    }

    pub(super) fn writer_mut(&mut self) -> &mut W {
        match self {
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zlib(decoder) => decoder.get_mut(),
            Self::Deflate(decoder) => decoder.get_mut(),
            Self::Brotli(decoder) => decoder.get_mut(),
            Self::Zstd(decoder) => decoder.get_mut(),
            Self::DeflateUnsure(writer) => writer
                .as_mut()
                .unwrap_or_else(|| unreachable!("taken only to be replaced")),
        }
    }
}

/// A zstd decoder that a hostile frame cannot make allocate more than its window's bound.
fn zstd_decoder<W: Write>(writer: W) -> zstd::stream::write::Decoder<'static, W> {
    let bounded = zstd::stream::write::Decoder::new(writer).and_then(|mut decoder| {
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        Ok(decoder)
    });
    // Fails only for a parameter that zstd does not know.
    bounded.unwrap_or_else(|error| {
        unreachable!("zstd takes a window of 2^{ZSTD_WINDOW_LOG_MAX}: {error}")
    })
}

/// Decodes a whole body that was read already, as far as `bytes_max`. What cannot be decoded is left out.
pub fn decoded(encoding: Option<&str>, parts: &[bytes::Bytes], bytes_max: usize) -> Vec<u8> {
    let into = Bounded {
        bytes: Vec::new(),
        bytes_max,
    };
    match Decoder::choose(encoding.unwrap_or_default(), into) {
        Chosen::Identity(mut plain) | Chosen::Unknown(mut plain) => {
            // Past the bound nothing more is taken: what is there is what is wanted.
            let _ = parts.iter().try_for_each(|part| plain.write_all(part));
            plain.bytes
        }
        Chosen::Decoder(mut decoder) => {
            let _ = parts.iter().try_for_each(|part| decoder.feed(part));
            std::mem::take(&mut decoder.writer_mut().bytes)
        }
    }
}

struct Bounded {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.bytes_max - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
