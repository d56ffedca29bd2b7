//! When a refusal by upstream ends, as far as its response says so.

use std::time::Duration;

use http::header::HeaderMap;

use crate::values::clock::Timestamp;
use crate::values::headers::retry_after;
use crate::values::json::scan::{JsonScalar, JsonScan, ScanFlow, WantedKey};

const RESETS_AT: u8 = 0;
const RESETS_IN: u8 = 1;
const HINT_KEYS: &[WantedKey] = &[
    WantedKey::within(
        "error",
        &[
            WantedKey::scalar("resets_at", RESETS_AT),
            WantedKey::scalar("resets_in_seconds", RESETS_IN),
        ],
    ),
    WantedKey::scalar("resets_at", RESETS_AT),
    WantedKey::scalar("resets_in_seconds", RESETS_IN),
];

/// Returns when a refusal ends according to its body: a time or a number of seconds.
pub(super) fn in_body(body: &[u8], now: Timestamp) -> Option<Timestamp> {
    let (mut at, mut within) = (None, None);
    let mut scan = JsonScan::new(HINT_KEYS);
    scan.feed(body, |name, scalar: JsonScalar<'_>| {
        match name {
            RESETS_AT => at = scalar.number(),
            _ => within = scalar.number(),
        }
        ScanFlow::Continue
    });
    let positive = |number: &f64| *number > 0.0 && *number < 1e12;
    let at = at
        .filter(positive)
        .map(|seconds| Timestamp((seconds * 1e3) as u64));
    at.or_else(|| {
        within
            .filter(positive)
            .map(|seconds| now.after(Duration::from_secs_f64(seconds)))
    })
}

/// Returns when a refusal ends according to `Retry-After`.
pub(super) fn in_headers(headers: &HeaderMap, now: Timestamp) -> Option<Timestamp> {
    retry_after(headers, now).map(|pause| now.after(pause))
}

#[cfg(test)]
mod tests {
    use http::header::RETRY_AFTER;

    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    #[track_caller]
    fn check_body(body: &str, expected: Option<u64>) {
        assert_eq!(
            in_body(body.as_bytes(), NOW),
            expected.map(Timestamp),
            "{body}"
        );
    }

    #[test]
    fn a_body_has_a_time_or_a_number_of_seconds() {
        check_body(
            r#"{"error": {"type": "usage_limit_reached", "resets_at": 2000}}"#,
            Some(2_000_000),
        );
        check_body(r#"{"error": {"resets_in_seconds": 60}}"#, Some(1_060_000));
        check_body(r#"{"resets_in_seconds": 60}"#, Some(1_060_000));
        check_body(
            r#"{"error": {"resets_at": 2000, "resets_in_seconds": 60}}"#,
            Some(2_000_000),
        );
        check_body(r#"{"error": {"resets_at": "soon"}}"#, None);
        check_body(r#"{"error": {"resets_at": -5}}"#, None);
        check_body("<html>", None);
        check_body("", None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let read = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, http::HeaderValue::from_static(value));
            in_headers(&headers, NOW).map(|moment| moment.0)
        };
        assert_eq!(read("30"), Some(1_030_000));
        assert_eq!(read("Thu, 01 Jan 1970 01:00:00 GMT"), Some(3_600_000));
        assert_eq!(read("soon"), None);
        assert_eq!(read("-1"), None);
    }
}
