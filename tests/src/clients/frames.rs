//! WebSocket frames (RFC 6455, section 5) as bytes, sound and broken.

/// The bit of a message's last frame.
pub const FIN: u8 = 0x80;
/// The opcode of a fragment after the first.
pub const CONTINUATION: u8 = 0x0;
/// The opcode of a text message.
pub const TEXT: u8 = 0x1;
/// The opcode of a binary message.
pub const BINARY: u8 = 0x2;
/// The opcode of a close frame.
pub const CLOSE: u8 = 0x8;
/// The opcode of a ping.
pub const PING: u8 = 0x9;
/// The opcode of a pong.
pub const PONG: u8 = 0xa;
/// The mask of every client's frame here.
pub const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// How a header states a length.
#[derive(Clone, Copy)]
pub enum Length {
    /// In the seven bits of the second byte.
    Short(u8),
    /// In two bytes, after the value 126.
    Two(u16),
    /// In eight bytes, after the value 127.
    Eight(u64),
}

/// Returns the shortest form of a length.
pub fn shortest(length: usize) -> Length {
    match length {
        0..=125 => Length::Short(length as u8),
        126..=0xffff => Length::Two(length as u16),
        _ => Length::Eight(length as u64),
    }
}

/// Returns a header with this first byte; `masked` is 0x80 in a client's frame, or 0.
pub fn header(first: u8, masked: u8, length: Length) -> Vec<u8> {
    match length {
        Length::Short(length) => vec![first, masked | length],
        Length::Two(length) => [&[first, masked | 126], &length.to_be_bytes()[..]].concat(),
        Length::Eight(length) => [&[first, masked | 127], &length.to_be_bytes()[..]].concat(),
    }
}

/// Returns the payload under [`MASK`].
pub fn masked(payload: &[u8]) -> Vec<u8> {
    payload
        .iter()
        .zip(MASK.iter().cycle())
        .map(|(byte, mask)| byte ^ mask)
        .collect()
}

/// Returns a client's frame whose header states `length`, whatever the length of its payload.
pub fn lying(first: u8, length: Length, payload: &[u8]) -> Vec<u8> {
    [header(first, 0x80, length), MASK.to_vec(), masked(payload)].concat()
}

/// Returns a client's frame.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    lying(first, shortest(payload.len()), payload)
}

/// Returns a server's frame.
pub fn served(first: u8, payload: &[u8]) -> Vec<u8> {
    [&header(first, 0, shortest(payload.len())), payload].concat()
}

/// Returns a text message of a client in one frame.
pub fn text(payload: impl AsRef<[u8]>) -> Vec<u8> {
    frame(FIN | TEXT, payload.as_ref())
}

/// Returns a message in a frame for each piece, with `between` between the frames.
pub fn fragments_with<'a>(
    opcode: u8,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    between: &[u8],
) -> Vec<u8> {
    let pieces: Vec<&[u8]> = pieces.into_iter().collect();
    let frames = pieces.iter().enumerate().map(|(place, piece)| {
        let fin = if place + 1 == pieces.len() { FIN } else { 0 };
        frame(fin | if place == 0 { opcode } else { CONTINUATION }, piece)
    });
    frames.collect::<Vec<_>>().join(between)
}

/// Returns a message in a frame for each piece.
pub fn fragments<'a>(opcode: u8, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    fragments_with(opcode, pieces, b"")
}

/// Returns a close frame of a client.
pub fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(FIN | CLOSE, &[&code.to_be_bytes(), reason].concat())
}
