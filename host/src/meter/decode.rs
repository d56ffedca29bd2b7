//! Decoding a compressed body on the side, piece by piece, with a bound on what comes out.

use std::io::{self, Write};

use brotli_decompressor::DecompressorWriter;
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

use super::{Scanner, Signal};

/// The largest window of a zstd frame that is decoded: 8 MiB, the most that RFC 9659 allows over HTTP.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
const BROTLI_BUFFER: usize = 4096;

/// The end of a decoder: counts what comes out, and lets a scanner read it.
pub(super) struct Tap {
    pub(super) scanner: Scanner,
    left: u64,
    signal: Signal,
    closed: bool,
}

impl Tap {
    pub(super) fn new(scanner: Scanner, decoded_bytes: u64) -> Self {
        Self { scanner, left: decoded_bytes, signal: Signal::More, closed: false }
    }

    pub(super) fn into_scanner(self) -> Scanner {
        self.scanner
    }
}

impl Write for Tap {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.closed {
            return Ok(bytes.len());
        }
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        if self.scanner.feed(bytes) == Signal::Whole {
            self.signal = Signal::Whole;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A decoder in front of a tap.
pub(super) enum Decoder {
    Gzip(MultiGzDecoder<Tap>),
    Zlib(ZlibDecoder<Tap>),
    /// `deflate` without its zlib wrapper, as some servers send it.
    Deflate(DeflateDecoder<Tap>),
    /// `deflate`, before its first byte tells which.
    DeflateUnsure(Option<Tap>),
    Brotli(Box<DecompressorWriter<Tap>>),
    Zstd(Box<zstd::stream::write::Decoder<'static, Tap>>),
}

/// What a content encoding asks for.
pub(super) enum Chosen {
    /// No decoding.
    Identity(Tap),
    /// This decoder.
    Decoder(Decoder),
    /// One that is not known, or more than one.
    Unknown,
}

impl Decoder {
    pub(super) fn choose(encoding: &str, tap: Tap) -> Chosen {
        Chosen::Decoder(match encoding.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => return Chosen::Identity(tap),
            "gzip" | "x-gzip" => Self::Gzip(MultiGzDecoder::new(tap)),
            "deflate" => Self::DeflateUnsure(Some(tap)),
            "br" => Self::Brotli(Box::new(DecompressorWriter::new(tap, BROTLI_BUFFER))),
            "zstd" => match zstd_decoder(tap) {
                Some(decoder) => Self::Zstd(Box::new(decoder)),
                None => return Chosen::Unknown,
            },
            _ => return Chosen::Unknown,
        })
    }

    /// # Errors
    /// Why the rest is not read.
    pub(super) fn feed(&mut self, piece: &[u8]) -> Result<Signal, &'static str> {
        if self.tap().closed || piece.is_empty() {
            return Ok(Signal::More);
        }
        if let Self::DeflateUnsure(tap) = self
            && let Some(tap) = tap.take()
        {
            // RFC 1950: the method is deflate and the header a multiple of 31; its first byte is then 0x?8.
            let zlib = piece[0] & 0x0f == 8 && piece[0] >> 4 <= 7;
            *self = if zlib { Self::Zlib(ZlibDecoder::new(tap)) } else { Self::Deflate(DeflateDecoder::new(tap)) };
        }
        let writer: &mut dyn Write = match self {
            Self::Gzip(decoder) => decoder,
            Self::Zlib(decoder) => decoder,
            Self::Deflate(decoder) => decoder,
            Self::Brotli(decoder) => &mut **decoder,
            Self::Zstd(decoder) => &mut **decoder,
            Self::DeflateUnsure(_) => return Ok(Signal::More),
        };
        match writer.write_all(piece).and_then(|()| writer.flush()) {
            Ok(()) => Ok(std::mem::replace(&mut self.tap_mut().signal, Signal::More)),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                Err("the response is larger, decoded, than limits.decoded_bytes")
            }
            Err(_) => Err("the response cannot be decoded"),
        }
    }

    /// Reads nothing more.
    pub(super) fn close(&mut self) {
        self.tap_mut().closed = true;
    }

    pub(super) fn tap(&self) -> &Tap {
        match self {
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Zlib(decoder) => decoder.get_ref(),
            Self::Deflate(decoder) => decoder.get_ref(),
            Self::Brotli(decoder) => decoder.get_ref(),
            Self::Zstd(decoder) => decoder.get_ref(),
            Self::DeflateUnsure(tap) => tap.as_ref().unwrap_or_else(|| unreachable!("taken only to be replaced")),
        }
    }

    pub(super) fn tap_mut(&mut self) -> &mut Tap {
        match self {
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zlib(decoder) => decoder.get_mut(),
            Self::Deflate(decoder) => decoder.get_mut(),
            Self::Brotli(decoder) => decoder.get_mut(),
            Self::Zstd(decoder) => decoder.get_mut(),
            Self::DeflateUnsure(tap) => tap.as_mut().unwrap_or_else(|| unreachable!("taken only to be replaced")),
        }
    }
}

/// A zstd decoder that a hostile frame cannot make allocate more than its window's bound.
pub(super) fn zstd_decoder<W: Write>(writer: W) -> Option<zstd::stream::write::Decoder<'static, W>> {
    let mut decoder = zstd::stream::write::Decoder::new(writer).ok()?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).ok()?;
    Some(decoder)
}
