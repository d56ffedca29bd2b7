//! Bytes as lower-case hexadecimal text.

/// Digits, by their value.
const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Returns `bytes` in lower-case hexadecimal, two digits each.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 0xf)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_takes_two_digits() {
        assert_eq!(hex(&[]), "");
        assert_eq!(hex(&[0x00, 0x0a, 0xa0, 0xff]), "000aa0ff");
    }
}
