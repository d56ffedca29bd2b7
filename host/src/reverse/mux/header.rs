//! The header that each frame begins with: version, type, flags, stream id and length, 12 bytes.

use super::end::MuxViolation;

pub(super) const HEADER_BYTES: usize = 12;

/// The first frame of a stream, or a ping that asks for an answer.
pub(super) const SYN: u16 = 1;
/// A stream is accepted, or the answer to a ping.
pub(super) const ACK: u16 = 2;
/// The sender sends no more data on the stream.
pub(super) const FIN: u16 = 4;
/// The stream is aborted.
pub(super) const RST: u16 = 8;

/// The type of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MuxFrameKind {
    /// `length` bytes of a stream follow.
    Data,
    /// `length` is the credit to add.
    WindowUpdate,
    /// `length` is an opaque value to give back.
    Ping,
    /// `length` is a code: 0 normal, 1 protocol error, 2 internal error.
    GoAway,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MuxHeader {
    pub(super) kind: MuxFrameKind,
    pub(super) flags: u16,
    pub(super) stream: u32,
    pub(super) length: u32,
}

impl MuxHeader {
    pub(super) fn new(kind: MuxFrameKind, flags: u16, stream: u32, length: u32) -> Self {
        Self {
            kind,
            flags,
            stream,
            length,
        }
    }

    /// Reads a header.
    ///
    /// # Errors
    /// The version or the type is unknown.
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, MuxViolation> {
        let [version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = *bytes;
        if version != 0 {
            return Err(MuxViolation::Version(version));
        }
        let kind = match kind {
            0 => MuxFrameKind::Data,
            1 => MuxFrameKind::WindowUpdate,
            2 => MuxFrameKind::Ping,
            3 => MuxFrameKind::GoAway,
            unknown => return Err(MuxViolation::Kind(unknown)),
        };
        Ok(Self {
            kind,
            flags: u16::from_be_bytes([f0, f1]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let kind = match self.kind {
            MuxFrameKind::Data => 0,
            MuxFrameKind::WindowUpdate => 1,
            MuxFrameKind::Ping => 2,
            MuxFrameKind::GoAway => 3,
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes[1] = kind;
        bytes[2..4].copy_from_slice(&self.flags.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.stream.to_be_bytes());
        bytes[8..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    pub(super) fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header = MuxHeader::new(MuxFrameKind::WindowUpdate, SYN | FIN, 0x0102_0304, 0x0506);
        let bytes = header.to_bytes();
        assert_eq!(bytes, [0, 1, 0, 5, 1, 2, 3, 4, 0, 0, 5, 6]);
        assert_eq!(MuxHeader::parse(&bytes), Ok(header));
    }

    #[test]
    fn unknown_versions_and_types_are_violations() {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = 1;
        assert_eq!(MuxHeader::parse(&bytes), Err(MuxViolation::Version(1)));
        bytes[..2].copy_from_slice(&[0, 4]);
        assert_eq!(MuxHeader::parse(&bytes), Err(MuxViolation::Kind(4)));
    }
}
