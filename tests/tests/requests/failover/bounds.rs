//! The bounds of a failover: `failover_timeout` and `replay_bytes`.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::json;
use tokio::time::sleep;
use tollgate_tests::upstream::{Gate, Reply};
use tollgate_tests::{Answer, over_both, turn, wait_for_rows};

use super::{HEAD_TIMEOUT, asked, attempts, beside, check_answered, outcomes, pool, troubles};

// limits.failover_timeout

over_both!(no_further_attempt_begins_after_the_failover_timeout);
async fn no_further_attempt_begins_after_the_failover_timeout() {
    let limits = json!({ "upstream_head_timeout": "400ms", "failover_timeout": "200ms" });
    let (mut rig, client) = pool(&["a", "b"], limits).await;
    rig.account("a").always(Reply::ok().hold_head(&Gate::new()));
    let answer = client.turn(&turn("one")).await;
    assert_eq!(
        answer.status,
        StatusCode::GATEWAY_TIMEOUT,
        "{}",
        answer.text()
    );
    assert_eq!(attempts(&rig).await, outcomes(&[("a", "timed_out")]));
    assert_eq!(rig.account("b").turn_count(), 0);
    rig.stop().await;
}

over_both!(a_further_attempt_waits_only_for_what_is_left_of_the_failover_timeout);
async fn a_further_attempt_waits_only_for_what_is_left_of_the_failover_timeout() {
    // One after the other, the second without its bound, would take eight seconds.
    let limits = json!({ "upstream_head_timeout": "4s", "failover_timeout": "5s" });
    let (mut rig, client) = pool(&["a", "b", "c", "d"], limits).await;
    for tag in ["a", "b", "c"] {
        rig.account(tag).always(Reply::ok().hold_head(&Gate::new()));
    }
    let answer = client.turn(&turn("one")).await;
    assert_eq!(
        answer.status,
        StatusCode::GATEWAY_TIMEOUT,
        "{}",
        answer.text()
    );
    assert_eq!(
        attempts(&rig).await,
        outcomes(&[("a", "timed_out"), ("b", "timed_out")])
    );
    let took = wait_for_rows(&rig.ledger(), 1).await[0]
        .number("duration_ms")
        .expect("a duration");
    assert!((5000..7500).contains(&took), "{took} ms");
    rig.stop().await;
}

/// `a` answers so after the time-out. Returns what the client gets; no other credential was tried.
async fn answered_late(reply: Reply) -> Answer {
    let (mut rig, client) = pool(&["a", "b"], json!({ "failover_timeout": "200ms" })).await;
    let gate = Gate::new();
    rig.account("a").then(reply.hold_head(&gate));
    let waiting = tokio::spawn(async move { client.turn(&turn("one")).await });
    gate.wait_until_reached().await;
    // The time-out is what is tested: it must be over.
    sleep(Duration::from_millis(300)).await;
    gate.open();
    let answer = waiting.await.expect("no panic");
    assert_eq!(attempts(&rig).await.len(), 1, "{}", answer.text());
    assert_eq!(asked(&rig), ["a"]);
    rig.stop().await;
    answer
}

over_both!(a_503_after_the_failover_timeout_is_the_clients_answer);
async fn a_503_after_the_failover_timeout_is_the_clients_answer() {
    let answer = answered_late(Reply::raw(503, "theirs")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.text().as_str()),
        (503, "theirs")
    );
}

over_both!(a_429_after_the_failover_timeout_becomes_a_retryable_503);
async fn a_429_after_the_failover_timeout_becomes_a_retryable_503() {
    let answer = answered_late(
        Reply::usage_limit_reached()
            .without_rate_limits()
            .resets_in_seconds(600),
    )
    .await;
    assert_eq!(
        answer.status,
        StatusCode::SERVICE_UNAVAILABLE,
        "{}",
        answer.text()
    );
    assert_eq!(answer.json()["error"]["code"], "credential_usage_exhausted");
}

// limits.replay_bytes

const REPLAY_BYTES: usize = 1000;

/// One byte more than is kept.
fn large_body() -> String {
    let empty = r#"{"model":"gpt-5.4","stream":true,"input":""}"#.len();
    format!(
        r#"{{"model":"gpt-5.4","stream":true,"input":"{}"}}"#,
        "x".repeat(REPLAY_BYTES + 1 - empty)
    )
}

over_both!(an_unbuffered_request_gets_the_response_of_the_credential_it_was_sent_to);
async fn an_unbuffered_request_gets_the_response_of_the_credential_it_was_sent_to() {
    for trouble in troubles().into_iter().skip(2) {
        let limits = json!({ "upstream_head_timeout": HEAD_TIMEOUT, "replay_bytes": REPLAY_BYTES });
        let (mut rig, client) = beside(&trouble, limits).await;
        let answer = client
            .ask(Method::POST, "/v1/responses", large_body())
            .await;
        check_answered(&rig, &trouble, &answer).await;
        rig.stop().await;
    }
}

over_both!(
    an_unbuffered_request_gets_a_retryable_503_if_its_credential_is_limited_and_another_is_not
);
async fn an_unbuffered_request_gets_a_retryable_503_if_its_credential_is_limited_and_another_is_not()
 {
    for trouble in troubles().into_iter().take(2) {
        let (mut rig, client) = beside(&trouble, json!({ "replay_bytes": REPLAY_BYTES })).await;
        let answer = client
            .ask(Method::POST, "/v1/responses", large_body())
            .await;
        assert_eq!(
            answer.status,
            StatusCode::SERVICE_UNAVAILABLE,
            "{}: {}",
            trouble.name,
            answer.text()
        );
        let error = &answer.json()["error"];
        assert_eq!(
            error["code"], "credential_usage_exhausted",
            "{}",
            trouble.name
        );
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|told| told.contains("limits.replay_bytes")),
            "{error}"
        );
        assert!(answer.header("retry-after").is_some(), "{}", trouble.name);
        let row = &wait_for_rows(&rig.ledger(), 1).await[0];
        assert_eq!(row.attempts(), outcomes(&[(trouble.name, trouble.outcome)]));
        assert_eq!(
            (row.number("status"), row.text("end")),
            (Some(503), Some("failed")),
            "{}",
            trouble.name
        );
        assert_eq!(
            client
                .ask(Method::POST, "/v1/responses", large_body())
                .await
                .status,
            StatusCode::OK
        );
        rig.stop().await;
    }
}

over_both!(the_error_of_an_unbuffered_request_is_chosen_without_calling_a_policy);
async fn the_error_of_an_unbuffered_request_is_chosen_without_calling_a_policy() {
    for trouble in troubles().into_iter().take(2) {
        let (mut rig, client) = beside(&trouble, json!({ "replay_bytes": REPLAY_BYTES })).await;
        let answer = client
            .ask(Method::POST, "/v1/responses", large_body())
            .await;
        assert_eq!(
            answer.json()["error"]["code"],
            "credential_usage_exhausted",
            "{}",
            trouble.name
        );
        assert_eq!(
            rig.policy("fallback").await["calls"],
            1,
            "{}: the balancer chose the credential and nothing else",
            trouble.name
        );
        rig.stop().await;
    }
}

over_both!(an_unbuffered_request_gets_the_reset_time_if_no_credential_has_capacity);
async fn an_unbuffered_request_gets_the_reset_time_if_no_credential_has_capacity() {
    let (mut rig, client) = pool(&["a", "b"], json!({ "replay_bytes": REPLAY_BYTES })).await;
    for (tag, seconds) in [("a", 900), ("b", 600)] {
        rig.account(tag).always(
            Reply::usage_limit_reached()
                .without_rate_limits()
                .resets_in_seconds(seconds),
        );
    }
    let first = client
        .ask(Method::POST, "/v1/responses", large_body())
        .await;
    assert_eq!(
        first.json()["error"]["code"],
        "credential_usage_exhausted",
        "b may have room"
    );
    let second = client
        .ask(Method::POST, "/v1/responses", large_body())
        .await;
    assert_eq!(
        second.status,
        StatusCode::TOO_MANY_REQUESTS,
        "{}",
        second.text()
    );
    let error = &second.json()["error"];
    assert_eq!(
        (&error["type"], &error["code"]),
        (
            &json!("usage_limit_reached"),
            &json!("credentials_exhausted")
        )
    );
    assert!(
        error["resets_in_seconds"]
            .as_u64()
            .is_some_and(|seconds| (590..=600).contains(&seconds)),
        "{error}"
    );
    assert_eq!(asked(&rig), ["a", "b"]);
    rig.stop().await;
}
