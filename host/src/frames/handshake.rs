//! The keys of the opening handshake (RFC 6455, sections 1.3 and 4.1).

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha1::{Digest, Sha1};

/// What a key is concatenated with before it is hashed.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Returns a new `Sec-WebSocket-Key`.
pub fn new_key() -> String {
    BASE64_STANDARD.encode(uuid::Uuid::new_v4().as_bytes())
}

/// Whether `key` is a `Sec-WebSocket-Key`: 16 bytes in base64.
pub fn is_key(key: &[u8]) -> bool {
    BASE64_STANDARD
        .decode(key)
        .is_ok_and(|bytes| bytes.len() == 16)
}

/// Returns the `Sec-WebSocket-Accept` for `key`.
pub fn accept_of(key: &[u8]) -> String {
    let digest = Sha1::new()
        .chain_update(key)
        .chain_update(ACCEPT_GUID)
        .finalize();
    BASE64_STANDARD.encode(digest)
}
