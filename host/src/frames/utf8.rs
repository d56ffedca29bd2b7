//! Whether a text that arrives in pieces is UTF-8.

/// The longest beginning of a character that can be cut off.
const CUT_BYTES: usize = 3;

/// What is known of a text so far.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    /// The beginning of a character whose rest is to come.
    cut: [u8; CUT_BYTES],
    have: usize,
}

impl Utf8 {
    /// Reads a piece. Answers whether it can be part of a text.
    pub(super) fn feed(&mut self, mut piece: &[u8]) -> bool {
        while self.have > 0 {
            let Some((next, rest)) = piece.split_first() else {
                return true;
            };
            let mut character = [0; CUT_BYTES + 1];
            character[..self.have].copy_from_slice(&self.cut[..self.have]);
            character[self.have] = *next;
            piece = rest;
            match std::str::from_utf8(&character[..=self.have]) {
                Ok(_) => self.have = 0,
                Err(error) if error.error_len().is_some() || self.have == CUT_BYTES => {
                    return false;
                }
                Err(_) => {
                    self.cut[self.have] = *next;
                    self.have += 1;
                }
            }
        }
        match std::str::from_utf8(piece) {
            Ok(_) => true,
            Err(error) if error.error_len().is_some() => false,
            Err(error) => {
                let cut = &piece[error.valid_up_to()..];
                self.cut[..cut.len()].copy_from_slice(cut);
                self.have = cut.len();
                true
            }
        }
    }

    /// Whether no character is cut off.
    pub(super) fn is_whole(&self) -> bool {
        self.have == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &[u8], expected: bool) {
        for size in 1..=text.len().max(1) {
            let mut utf8 = Utf8::default();
            let fed = text.chunks(size).all(|piece| utf8.feed(piece));
            assert_eq!(
                fed && utf8.is_whole(),
                expected,
                "{text:?} in pieces of {size}"
            );
        }
    }

    #[test]
    fn pieces_are_judged_as_the_whole() {
        check("κόσμε 𝄞 x".as_bytes(), true);
        check(b"", true);
        for wrong in [
            &b"\xff"[..],
            b"a\xc3",
            b"\xe2\x82",
            b"\xf0\x9d\x84",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\xc0\xaf",
            b"\x80",
            b"a\xc3(",
        ] {
            check(wrong, false);
        }
    }
}
