//! WebSocket frames (RFC 6455) on their way past: where messages begin and end, and whether what is sent may be.
//!
//! Owns the reading of frames and the few that the gateway makes itself; refuses to hold, copy or change a byte of those
//! that pass, and to know what they mean. Invariant: its memory does not grow with a frame or a message.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha1::{Digest, Sha1};

mod utf8;

use utf8::Utf8;

/// What a key is joined with before it is hashed (RFC 6455, section 1.3).
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The longest header: two bytes, a length of eight and a mask of four.
const HEADER_BYTES: usize = 14;

/// The longest payload of a control frame.
const CONTROL_BYTES: usize = 125;

/// Masked payload is read in pieces of this size.
const UNMASKED_BYTES: usize = 1024;

/// Which side sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// Its frames are masked.
    Client,
    /// Its are not.
    Server,
}

/// What passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// A message begins, of text or of binary data.
    Begin {
        /// Whether it is text.
        text: bool,
    },
    /// A piece of a message, unmasked.
    Data(&'a [u8]),
    /// The message is whole.
    End,
    /// A ping.
    Ping,
    /// A pong.
    Pong,
    /// The last frame of its sender's.
    Close {
        /// Why, where it says.
        code: Option<u16>,
    },
}

/// What the reader of parts wants after one that ends something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The next part.
    Go,
    /// Nothing for now: the rest of the input is left.
    Pause,
}

/// Why a connection cannot go on: the code to close it with (RFC 6455, section 7.4.1), and what was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Violation {
    /// The code.
    pub code: u16,
    /// What was wrong.
    pub what: &'static str,
}

/// The peer broke the protocol.
pub const PROTOCOL_ERROR: u16 = 1002;
/// A text is no UTF-8.
pub const INVALID_PAYLOAD: u16 = 1007;
/// A rule of the gateway's was broken.
pub const POLICY_VIOLATION: u16 = 1008;
/// A message is larger than `limits.websocket_message_bytes`.
pub const TOO_BIG: u16 = 1009;
/// Something failed behind the gateway.
pub const INTERNAL_ERROR: u16 = 1011;
/// Connect again (IANA's registry: "Service Restart").
pub const RESTART: u16 = 1012;
/// Connect again later (IANA's registry: "Try Again Later").
pub const TRY_LATER: u16 = 1013;
/// The sender goes away.
pub const GOING_AWAY: u16 = 1001;

const fn wrong(what: &'static str) -> Violation {
    Violation {
        code: PROTOCOL_ERROR,
        what,
    }
}

/// How far an input was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// So many bytes were read.
    pub read: usize,
    /// The message that is under way, or was the last to end, began there in the input; 0 where it began before.
    pub message_at: usize,
}

/// An input that breaks the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken {
    /// So many bytes before the frame that does are sound.
    pub sound: usize,
    /// What is wrong with that one.
    pub violation: Violation,
}

impl From<Broken> for Violation {
    fn from(broken: Broken) -> Self {
        broken.violation
    }
}

/// A reader of one side's frames.
#[derive(Debug)]
pub struct Frames {
    sender: Sender,
    message_bytes_max: u64,
    state: State,
    control: Control,
    /// The message that is under way.
    message: Option<Message>,
    closed: bool,
    /// Nothing can be read any more.
    broken: Option<Violation>,
}

#[derive(Debug)]
struct Message {
    bytes: u64,
    text: Option<Utf8>,
}

#[derive(Debug)]
enum State {
    Header {
        bytes: [u8; HEADER_BYTES],
        have: usize,
    },
    Payload(Payload),
}

#[derive(Debug)]
struct Payload {
    opcode: Opcode,
    fin: bool,
    left: u64,
    mask: Option<[u8; 4]>,
    /// Where in the mask the next byte is.
    mask_at: usize,
}

/// What a control frame said so far.
#[derive(Debug)]
struct Control {
    bytes: [u8; CONTROL_BYTES],
    have: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    fn of(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// A frame's header.
struct Header {
    opcode: Opcode,
    fin: bool,
    length: u64,
    mask: Option<[u8; 4]>,
    /// Its own length, in bytes.
    bytes: usize,
}

impl Frames {
    /// A reader of what `sender` sends, in messages of at most `message_bytes_max`.
    pub fn new(sender: Sender, message_bytes_max: u64) -> Self {
        let control = Control {
            bytes: [0; CONTROL_BYTES],
            have: 0,
        };
        Self {
            sender,
            message_bytes_max,
            state: State::new(),
            control,
            message: None,
            closed: false,
            broken: None,
        }
    }

    /// Whether the sender has said that it sends nothing more.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the sender broke the protocol: nothing that it sends can be understood any more.
    pub fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Whether a frame of the gateway's may be sent here: no frame is under way.
    pub fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Header { have: 0, .. })
    }

    /// Whether a message is under way.
    pub fn is_in_message(&self) -> bool {
        self.message.is_some()
    }

    /// Reads `input` to its end, to the sender's last frame, or until `each` wants to pause.
    ///
    /// # Errors
    /// The sender breaks the protocol, now or before.
    pub fn read(
        &mut self,
        input: &[u8],
        each: impl FnMut(Part<'_>) -> Next,
    ) -> Result<Progress, Broken> {
        // Where the frame under way began in the input; 0 where it began before.
        let mut frame_at = 0;
        let read = match self.broken {
            None => self.read_on(input, &mut frame_at, each),
            Some(violation) => Err(violation),
        };
        read.map_err(|violation| {
            self.broken = Some(violation);
            Broken {
                sound: frame_at,
                violation,
            }
        })
    }

    fn read_on(
        &mut self,
        input: &[u8],
        frame_at: &mut usize,
        mut each: impl FnMut(Part<'_>) -> Next,
    ) -> Result<Progress, Violation> {
        let mut at = 0;
        let mut message_at = 0;
        while at < input.len() && !self.closed {
            match &mut self.state {
                State::Header { bytes, have } => {
                    if *have == 0 {
                        *frame_at = at;
                        if self.message.is_none() {
                            message_at = at;
                        }
                    }
                    let header = if *have == 0 {
                        // The usual case: it is there whole.
                        let header = header(&input[at..], self.sender)?;
                        at += header.as_ref().map_or(0, |header| header.bytes);
                        header
                    } else {
                        None
                    };
                    let header = match header {
                        Some(header) => header,
                        None => {
                            bytes[*have] = input[at];
                            *have += 1;
                            at += 1;
                            let Some(header) = self::header(&bytes[..*have], self.sender)? else {
                                continue;
                            };
                            header
                        }
                    };
                    self.begin(&header, &mut each)?;
                }
                State::Payload(_) => {}
            }
            if let State::Payload(payload) = &mut self.state {
                let length = payload.left.min((input.len() - at) as u64) as usize;
                payload.left -= length as u64;
                let piece = &input[at..at + length];
                at += length;
                if payload.opcode.is_control() {
                    self.control.keep(piece);
                } else {
                    pass(payload, self.message.as_mut(), piece, &mut each)?;
                }
                if payload.left == 0 && self.end(&mut each)? == Next::Pause {
                    return Ok(Progress {
                        read: at,
                        message_at,
                    });
                }
            }
        }
        Ok(Progress {
            read: at,
            message_at,
        })
    }

    fn begin(
        &mut self,
        header: &Header,
        each: &mut impl FnMut(Part<'_>) -> Next,
    ) -> Result<(), Violation> {
        match header.opcode {
            Opcode::Text | Opcode::Binary => {
                if self.message.is_some() {
                    return Err(wrong("a message began within another"));
                }
                let text = header.opcode == Opcode::Text;
                self.message = Some(Message {
                    bytes: 0,
                    text: text.then(Utf8::default),
                });
                each(Part::Begin { text });
            }
            Opcode::Continuation if self.message.is_none() => {
                return Err(wrong("a message continued that had not begun"));
            }
            Opcode::Continuation | Opcode::Close | Opcode::Ping | Opcode::Pong => {}
        }
        if let Some(message) = self
            .message
            .as_mut()
            .filter(|_| !header.opcode.is_control())
        {
            message.bytes = message.bytes.saturating_add(header.length);
            if message.bytes > self.message_bytes_max {
                return Err(Violation {
                    code: TOO_BIG,
                    what: "a message is too big",
                });
            }
        }
        self.control.have = 0;
        self.state = State::Payload(Payload {
            opcode: header.opcode,
            fin: header.fin,
            left: header.length,
            mask: header.mask,
            mask_at: 0,
        });
        Ok(())
    }

    /// The frame under way is whole.
    fn end(&mut self, each: &mut impl FnMut(Part<'_>) -> Next) -> Result<Next, Violation> {
        let State::Payload(payload) = std::mem::replace(&mut self.state, State::new()) else {
            return Ok(Next::Go);
        };
        match payload.opcode {
            Opcode::Ping => Ok(each(Part::Ping)),
            Opcode::Pong => Ok(each(Part::Pong)),
            Opcode::Close => {
                let code = close_code(&self.control.unmasked(payload.mask))?;
                self.closed = true;
                Ok(each(Part::Close { code }))
            }
            Opcode::Continuation | Opcode::Text | Opcode::Binary if payload.fin => {
                if self
                    .message
                    .take()
                    .and_then(|message| message.text)
                    .is_some_and(|text| !text.is_whole())
                {
                    return Err(NO_UTF8);
                }
                Ok(each(Part::End))
            }
            Opcode::Continuation | Opcode::Text | Opcode::Binary => Ok(Next::Go),
        }
    }
}

const NO_UTF8: Violation = Violation {
    code: INVALID_PAYLOAD,
    what: "a text is no UTF-8",
};

impl State {
    fn new() -> Self {
        Self::Header {
            bytes: [0; HEADER_BYTES],
            have: 0,
        }
    }
}

impl Control {
    fn keep(&mut self, piece: &[u8]) {
        // A longer one was refused by its header.
        let room = &mut self.bytes[self.have..][..piece.len()];
        room.copy_from_slice(piece);
        self.have += piece.len();
    }

    fn unmasked(&self, mask: Option<[u8; 4]>) -> Vec<u8> {
        let mut bytes = self.bytes[..self.have].to_vec();
        if let Some(mask) = mask {
            unmask(&mut bytes, mask, 0);
        }
        bytes
    }
}

/// A piece of a message's payload passes.
fn pass(
    payload: &mut Payload,
    message: Option<&mut Message>,
    piece: &[u8],
    each: &mut impl FnMut(Part<'_>) -> Next,
) -> Result<(), Violation> {
    let mut text = message.and_then(|message| message.text.as_mut());
    let mut tell = |data: &[u8]| {
        if let Some(text) = &mut text
            && !text.feed(data)
        {
            return Err(NO_UTF8);
        }
        each(Part::Data(data));
        Ok(())
    };
    let Some(mask) = payload.mask else {
        return tell(piece);
    };
    let mut unmasked = [0; UNMASKED_BYTES];
    for piece in piece.chunks(UNMASKED_BYTES) {
        let unmasked = &mut unmasked[..piece.len()];
        unmasked.copy_from_slice(piece);
        payload.mask_at = unmask(unmasked, mask, payload.mask_at);
        tell(unmasked)?;
    }
    Ok(())
}

/// Applies `mask` from its place `at` on. Answers the place after.
fn unmask(bytes: &mut [u8], mask: [u8; 4], at: usize) -> usize {
    let turned = [
        mask[at % 4],
        mask[(at + 1) % 4],
        mask[(at + 2) % 4],
        mask[(at + 3) % 4],
    ];
    let wide = u64::from(u32::from_ne_bytes(turned));
    let wide = wide << 32 | wide;
    let mut words = bytes.chunks_exact_mut(8);
    for word in &mut words {
        let mut eight = [0; 8];
        eight.copy_from_slice(word);
        word.copy_from_slice(&(u64::from_ne_bytes(eight) ^ wide).to_ne_bytes());
    }
    words
        .into_remainder()
        .iter_mut()
        .enumerate()
        .for_each(|(place, byte)| *byte ^= turned[place % 4]);
    (at + bytes.len()) % 4
}

/// Reads a header, as far as it is there. None where it is not whole.
fn header(input: &[u8], sender: Sender) -> Result<Option<Header>, Violation> {
    let [first, rest @ ..] = input else {
        return Ok(None);
    };
    if first & 0x70 != 0 {
        return Err(wrong("a reserved bit is set"));
    }
    let opcode = Opcode::of(first & 0x0f).ok_or(wrong("an opcode is reserved"))?;
    let fin = first & 0x80 != 0;
    let [second, rest @ ..] = rest else {
        return Ok(None);
    };
    let masked = second & 0x80 != 0;
    match (sender, masked) {
        (Sender::Client, false) => return Err(wrong("a client's frame is not masked")),
        (Sender::Server, true) => return Err(wrong("a server's frame is masked")),
        (Sender::Client, true) | (Sender::Server, false) => {}
    }
    let short = u64::from(second & 0x7f);
    if opcode.is_control() && (short > CONTROL_BYTES as u64 || !fin) {
        return Err(wrong("a control frame is too long or in parts"));
    }
    let (length, rest) = match short {
        126 => {
            let Some((length, rest)) = rest.split_first_chunk::<2>() else {
                return Ok(None);
            };
            (u64::from(u16::from_be_bytes(*length)), rest)
        }
        127 => {
            let Some((length, rest)) = rest.split_first_chunk::<8>() else {
                return Ok(None);
            };
            (u64::from_be_bytes(*length), rest)
        }
        short => (short, rest),
    };
    let is_shortest = match short {
        126 => length > 125,
        127 => length > 0xffff && length >> 63 == 0,
        _ => true,
    };
    if !is_shortest {
        return Err(wrong("a length is not in its shortest form"));
    }
    let (mask, rest) = match masked {
        true => match rest.split_first_chunk::<4>() {
            Some((mask, rest)) => (Some(*mask), rest),
            None => return Ok(None),
        },
        false => (None, rest),
    };
    Ok(Some(Header {
        opcode,
        fin,
        length,
        mask,
        bytes: input.len() - rest.len(),
    }))
}

/// What a close frame says (RFC 6455, sections 5.5.1 and 7.4).
fn close_code(payload: &[u8]) -> Result<Option<u16>, Violation> {
    match payload {
        [] => Ok(None),
        [_] => Err(wrong("a close frame has half a code")),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(wrong("a close frame has a code that none may have"));
            }
            if std::str::from_utf8(reason).is_err() {
                return Err(NO_UTF8);
            }
            Ok(Some(code))
        }
    }
}

/// A close frame of `sender`'s.
pub fn close_frame(sender: Sender, code: u16, reason: &str) -> Vec<u8> {
    let reason = &reason[..reason.floor_char_boundary(CONTROL_BYTES - 2)];
    control_frame(
        sender,
        0x8,
        &[&code.to_be_bytes(), reason.as_bytes()].concat(),
    )
}

/// A ping of `sender`'s.
pub fn ping_frame(sender: Sender) -> Vec<u8> {
    control_frame(sender, 0x9, &[])
}

fn control_frame(sender: Sender, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u8;
    match sender {
        Sender::Server => [&[0x80 | opcode, length], payload].concat(),
        Sender::Client => {
            let random = uuid::Uuid::new_v4();
            let mut mask = [0; 4];
            mask.copy_from_slice(&random.as_bytes()[..4]);
            let mut payload = payload.to_vec();
            unmask(&mut payload, mask, 0);
            [&[0x80 | opcode, 0x80 | length], mask.as_slice(), &payload].concat()
        }
    }
}

/// A new `Sec-WebSocket-Key`.
pub fn new_key() -> String {
    BASE64_STANDARD.encode(uuid::Uuid::new_v4().as_bytes())
}

/// Whether `key` is one: 16 bytes in base64.
pub fn is_key(key: &[u8]) -> bool {
    BASE64_STANDARD
        .decode(key)
        .is_ok_and(|bytes| bytes.len() == 16)
}

/// The `Sec-WebSocket-Accept` that answers `key`.
pub fn accept_of(key: &[u8]) -> String {
    BASE64_STANDARD.encode(
        Sha1::new()
            .chain_update(key)
            .chain_update(ACCEPT_GUID)
            .finalize(),
    )
}

#[cfg(test)]
mod tests;
