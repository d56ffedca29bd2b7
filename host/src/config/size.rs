//! Sizes as an operator writes them: `16MiB`.

const UNITS: [(&str, u64); 5] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// The regular expression of a size, for the schema.
pub(super) const PATTERN: &str = "^[0-9]+(B|KiB|MiB|GiB|TiB)$";

/// Reads a size such as `16MiB`, in bytes. Returns `None` if `text` is not one, or too large.
pub(super) fn parse(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, bytes) = UNITS.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_numbers_with_a_unit() {
        for (text, expected) in [
            ("0B", Some(0)),
            ("5B", Some(5)),
            ("64KiB", Some(65_536)),
            ("16MiB", Some(16_777_216)),
            ("3GiB", Some(3_221_225_472)),
            ("1TiB", Some(1_099_511_627_776)),
            ("16777215TiB", Some(18_446_742_974_197_923_840)),
            ("16777216TiB", None),
            ("99999999999999999999B", None),
            ("", None),
            ("16", None),
            ("MiB", None),
            ("-1MiB", None),
            ("1.5MiB", None),
            ("16 MiB", None),
            ("16MB", None),
            ("16mib", None),
            ("16MiB ", None),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }
}
