use proptest::prelude::*;

use super::*;
use crate::values::clock::Timestamp;
use crate::values::credential::windows::{RateLimitWindows, WindowKind};
use crate::values::exchange::{ExchangeEnd, MeteredResponse};

const NOW: Timestamp = Timestamp(1_000_000_000);

fn event(text: &str) -> (UpstreamMessage, MeteredResponse) {
    let mut found = None;
    for size in [1, 7, 4096] {
        let mut scan = UpstreamMessageScan::default();
        scan.begin();
        text.as_bytes()
            .chunks(size)
            .for_each(|piece| scan.feed(piece));
        let now = (scan.end(|| NOW), scan.finish_response());
        assert_eq!(
            *found.get_or_insert(now.clone()),
            now,
            "in pieces of {size}"
        );
    }
    found.expect("three readings")
}

#[test]
fn the_last_event_has_the_usage_wherever_its_type_is() {
    let response = r#""response": {"id": "r1", "model": "m", "usage": {"input_tokens": 5, "output_tokens": 7}}"#;
    for text in [
        format!(r#"{{"type": "response.completed", {response}}}"#),
        format!(r#"{{{response}, "type": "response.completed"}}"#),
    ] {
        let (event, metered) = event(&text);
        assert_eq!(event, UpstreamMessage::Ended(ExchangeEnd::Complete));
        assert_eq!(metered.response_id.as_deref(), Some("r1"));
        assert_eq!(metered.counts.expect("usage").output, 7);
    }
    assert_eq!(
        event(r#"{"type": "response.incomplete"}"#).0,
        UpstreamMessage::Ended(ExchangeEnd::Incomplete)
    );
    assert_eq!(
        event(r#"{"type": "response.failed"}"#).0,
        UpstreamMessage::Ended(ExchangeEnd::Failed)
    );
}

#[test]
fn other_messages_have_no_meaning() {
    for text in [
        "",
        "x",
        "[]",
        "{}",
        r#"{"type": "response.output_text.delta", "status": 429}"#,
        r#"{"type": 5}"#,
    ] {
        assert_eq!(event(text).0, UpstreamMessage::Other, "{text}");
    }
}

#[test]
fn rate_limits_contain_both_windows() {
    let (event, _) = event(
        r#"{"type": "codex.rate_limits", "limit_name": "codex", "rate_limits": {
            "primary": {"used_percent": 12, "window_minutes": 10080, "reset_at": 2000000},
            "secondary": {"used_percent": 34.5, "window_minutes": 300, "reset_at": 2000000}}}"#,
    );
    let UpstreamMessage::RateLimits(reading) = event else {
        panic!("{event:?}")
    };
    let mut windows = RateLimitWindows::default();
    windows.observe(&reading, NOW);
    assert_eq!(
        (
            windows.used(WindowKind::FiveHour, NOW),
            windows.used(WindowKind::Weekly, NOW)
        ),
        (34.5, 12.0)
    );
}

#[test]
fn an_error_has_its_status_under_either_name_and_its_end() {
    let check = |text: &str, status: Option<u16>, until: Option<u64>| {
        let (event, _) = event(text);
        let UpstreamMessage::Error {
            status: found,
            until: end,
            ..
        } = event
        else {
            panic!("{event:?}")
        };
        assert_eq!((found, end), (status, until.map(Timestamp)), "{text}");
    };
    check(
        r#"{"type": "error", "status": 429, "error": {"resets_in_seconds": 60}}"#,
        Some(429),
        Some(1_000_060_000),
    );
    check(
        r#"{"type": "error", "status_code": 429, "error": {"resets_at": 2000000}}"#,
        Some(429),
        Some(2_000_000_000),
    );
    check(
        r#"{"error": {}, "status": 400, "type": "error"}"#,
        Some(400),
        None,
    );
    check(
        r#"{"type": "error", "status": 429, "headers": {"retry-after": "30"}}"#,
        Some(429),
        Some(1_000_030_000),
    );
    check(r#"{"type": "error"}"#, None, None);
}

#[test]
fn a_create_is_read_and_other_messages_are_not() {
    let create = |text: &str| {
        let mut scan = ClientMessageScan::default();
        scan.begin();
        text.as_bytes().chunks(3).for_each(|piece| scan.feed(piece));
        scan.end()
    };
    let found = create(
        r#"{"type": "response.create", "model": "m", "input": [{"model": "no"}], "previous_response_id": "r0",
            "generate": false, "service_tier": "flex"}"#,
    );
    let found = found.expect("a create");
    assert!(found.prewarm);
    assert_eq!(found.fields.model.as_deref(), Some("m"));
    assert_eq!(found.fields.previous_response_id.as_deref(), Some("r0"));
    assert_eq!(found.fields.service_tier.as_deref(), Some("flex"));
    assert!(
        !create(r#"{"type": "response.create"}"#)
            .expect("a create")
            .prewarm
    );
    assert_eq!(create(r#"{"type": "response.cancel", "model": "m"}"#), None);
    assert_eq!(create("hello"), None);
}

proptest! {
    #[test]
    fn any_text_is_read_the_same_in_any_pieces(text in ".{0,200}", at in 0_usize..200) {
        let read = |pieces: &[&[u8]]| {
            let (mut events, mut creates) = (UpstreamMessageScan::default(), ClientMessageScan::default());
            events.begin();
            creates.begin();
            for piece in pieces {
                events.feed(piece);
                creates.feed(piece);
            }
            (events.end(|| NOW), events.finish_response(), creates.end())
        };
        for text in [text.clone(), format!(r#"{{"type": "response.completed", {text}"#), format!(r#"{{"type": "error",{text}"#)] {
            let (before, after) = text.as_bytes().split_at(at.min(text.len()));
            prop_assert_eq!(read(&[text.as_bytes()]), read(&[before, after]));
        }
    }
}
