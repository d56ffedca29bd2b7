//! WebSocket frames (RFC 6455), as far as the bench needs them: messages that are built once, and a
//! count of what arrives.
//!
//! Only lengths are read: both ends of the bench know what the other sends.

use bytes::Bytes;

/// The longest header: two bytes, a length of eight and a mask of four.
const HEADER_BYTES_MAX: usize = 14;
/// One mask for all frames: masks protect nothing here.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;

/// The side that sends a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The client, which masks its frames.
    Client,
    /// The server, which does not.
    Server,
}

/// Returns a text message in one frame.
pub fn text_frame(sender: Sender, payload: &[u8]) -> Bytes {
    let masked = if sender == Sender::Client { MASKED } else { 0 };
    let mut frame = vec![FIN | TEXT];
    match payload.len() {
        length @ 0..=125 => frame.push(masked | length as u8),
        length @ 126..=0xffff => {
            frame.push(masked | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(masked | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    match sender {
        Sender::Client => {
            frame.extend_from_slice(&MASK);
            frame.extend(
                payload
                    .iter()
                    .zip(MASK.iter().cycle())
                    .map(|(byte, mask)| byte ^ mask),
            );
        }
        Sender::Server => frame.extend_from_slice(payload),
    }
    Bytes::from(frame)
}

/// A count of what arrived on a socket.
#[derive(Debug, Default)]
pub struct FrameCount {
    /// The number of complete messages.
    pub messages: u64,
    /// Bytes of payload, including those of an incomplete message. Control frames do not count.
    pub payload_bytes: usize,
    /// Whether a close frame arrived.
    pub is_closed: bool,
    header: [u8; HEADER_BYTES_MAX],
    header_have: usize,
    /// The bytes of the current frame's payload that have not arrived.
    left: usize,
}

impl FrameCount {
    /// Counts the frames in `piece`.
    pub fn feed(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            if !self.has_header() {
                self.header[self.header_have] = piece[0];
                self.header_have += 1;
                piece = &piece[1..];
                if self.has_header() {
                    self.left = self.length();
                }
            }
            if self.has_header() {
                let taken = self.left.min(piece.len());
                self.left -= taken;
                self.payload_bytes += if self.opcode() < CLOSE { taken } else { 0 };
                piece = &piece[taken..];
                if self.left == 0 {
                    self.messages += u64::from(self.opcode() < CLOSE && self.header[0] & FIN != 0);
                    self.is_closed |= self.opcode() == CLOSE;
                    self.header_have = 0;
                }
            }
        }
    }

    fn opcode(&self) -> u8 {
        self.header[0] & 0x0f
    }

    fn has_header(&self) -> bool {
        let mask_bytes = if self.header[1] & MASKED == 0 {
            0
        } else {
            MASK.len()
        };
        self.header_have >= 2 && self.header_have == 2 + self.length_bytes() + mask_bytes
    }

    fn length_bytes(&self) -> usize {
        match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        }
    }

    fn length(&self) -> usize {
        match self.length_bytes() {
            0 => usize::from(self.header[1] & 0x7f),
            bytes => self.header[2..2 + bytes]
                .iter()
                .fold(0, |length, byte| length << 8 | usize::from(*byte)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FrameCount, Sender, text_frame};

    #[test]
    fn messages_are_counted_in_any_pieces() {
        let lengths = [0, 1, 125, 126, 0xffff, 0x1_0000];
        for sender in [Sender::Client, Sender::Server] {
            let frames: Vec<u8> = lengths
                .iter()
                .flat_map(|&length| text_frame(sender, &vec![b'x'; length]))
                .collect();
            for size in [1, 3, 4096, frames.len()] {
                let mut count = FrameCount::default();
                frames.chunks(size).for_each(|piece| count.feed(piece));
                assert_eq!(
                    (count.messages, count.payload_bytes),
                    (6, lengths.iter().sum()),
                    "{sender:?}, {size}"
                );
            }
        }
    }

    #[test]
    fn control_frames_are_no_messages() {
        let mut count = FrameCount::default();
        count.feed(b"\x89\x02hi\x81\x01x\x88\x02\x03\xe8");
        assert_eq!(
            (count.messages, count.payload_bytes, count.is_closed),
            (1, 1, true)
        );
    }
}
