//! The check that a text in pieces is UTF-8.

/// The longest incomplete character.
const INCOMPLETE_BYTES_MAX: usize = 3;

/// A check of one text.
#[derive(Debug, Default)]
pub(super) struct Utf8Check {
    /// The first bytes of a character whose rest has not arrived.
    incomplete: [u8; INCOMPLETE_BYTES_MAX],
    len: usize,
}

impl Utf8Check {
    /// Reads a piece. Returns `false` if no valid text contains it at this place.
    pub(super) fn feed(&mut self, mut piece: &[u8]) -> bool {
        while self.len > 0 {
            let Some((next, rest)) = piece.split_first() else {
                return true;
            };
            let mut character = [0; INCOMPLETE_BYTES_MAX + 1];
            character[..self.len].copy_from_slice(&self.incomplete[..self.len]);
            character[self.len] = *next;
            piece = rest;
            match std::str::from_utf8(&character[..=self.len]) {
                Ok(_) => self.len = 0,
                Err(error) if error.error_len().is_some() || self.len == INCOMPLETE_BYTES_MAX => {
                    return false;
                }
                Err(_) => {
                    self.incomplete[self.len] = *next;
                    self.len += 1;
                }
            }
        }
        match std::str::from_utf8(piece) {
            Ok(_) => true,
            Err(error) if error.error_len().is_some() => false,
            Err(error) => {
                let incomplete = &piece[error.valid_up_to()..];
                self.incomplete[..incomplete.len()].copy_from_slice(incomplete);
                self.len = incomplete.len();
                true
            }
        }
    }

    /// Whether the last character is complete.
    pub(super) fn is_complete(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &[u8], expected: bool) {
        for size in 1..=text.len().max(1) {
            let mut utf8 = Utf8Check::default();
            let fed = text.chunks(size).all(|piece| utf8.feed(piece));
            assert_eq!(
                fed && utf8.is_complete(),
                expected,
                "{text:?} in pieces of {size}"
            );
        }
    }

    #[test]
    fn pieces_are_checked_as_one_text() {
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
