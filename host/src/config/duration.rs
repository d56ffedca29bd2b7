//! Durations as sing-box writes them: the syntax of Go's `time.ParseDuration`, and days.

use std::time::Duration;

const UNITS: [(&str, f64); 9] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("\u{b5}s", 1e-6),
    ("\u{3bc}s", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
    ("d", 86400.0),
];

/// The longest duration: 100 years.
const SECONDS_MAX: f64 = 100.0 * 365.0 * 86400.0;

/// Reads a duration such as `1h30m`. Returns `None` if `text` is not one, is below 0, or is longer
/// than 100 years.
pub fn parse(text: &str) -> Option<Duration> {
    match text.strip_prefix('-') {
        Some(amount) => without_sign(amount).filter(Duration::is_zero),
        None => without_sign(text.strip_prefix('+').unwrap_or(text)),
    }
}

/// Returns whether `text` is a duration below 0, such as `-5s`.
pub fn is_below_zero(text: &str) -> bool {
    text.strip_prefix('-')
        .and_then(without_sign)
        .is_some_and(|amount| !amount.is_zero())
}

fn without_sign(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == &rest[..letters])?;
        seconds += number * unit;
        rest = &rest[letters..];
    }
    (!text.is_empty() && seconds <= SECONDS_MAX).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, milliseconds: Option<u64>) {
        assert_eq!(
            parse(text),
            milliseconds.map(Duration::from_millis),
            "{text:?}"
        );
    }

    #[test]
    fn durations_are_numbers_with_units() {
        check("60s", Some(60_000));
        check("1h30m", Some(5_400_000));
        check("1.5h", Some(5_400_000));
        check("250ms", Some(250));
        check("1d", Some(86_400_000));
        check("0s", Some(0));
        check("0", Some(0));
        check("-0", Some(0));
        check("+2s", Some(2000));
        check(".5s", Some(500));
        check("1000\u{b5}s", Some(1));
        check("1000\u{3bc}s", Some(1));
    }

    #[test]
    fn durations_below_0_are_known_as_such() {
        for (text, expected) in [
            ("-5s", true),
            ("-1h30m", true),
            ("-0", false),
            ("-0s", false),
            ("5s", false),
            ("-5", false),
            ("-+5s", false),
            ("--5s", false),
        ] {
            assert_eq!(is_below_zero(text), expected, "{text:?}");
        }
    }

    #[test]
    fn other_texts_are_not_durations() {
        for text in [
            "",
            "60",
            "s",
            "1h30",
            "00",
            "+",
            ".s",
            "-5s",
            "1w",
            "1 h",
            "1.2.3s",
            "999999999999d",
        ] {
            check(text, None);
        }
    }
}
