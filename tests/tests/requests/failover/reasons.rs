//! Which failures move a request to another credential, and which response remains.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_tests::upstream::Reply;
use tollgate_tests::{Nowhere, Rig, over_both, turn, wait_for_rows};

use super::{
    HEAD_TIMEOUT, asked, attempts, beside, check_answered, outcomes, pool, start, troubled,
    troubles,
};

// What sends a request on

/// All of `limits.failover`, each enabled if `is_enabled` returns `true` for its name.
fn switches(is_enabled: impl Fn(&str) -> bool) -> Value {
    troubles()
        .iter()
        .map(|trouble| (trouble.name.to_owned(), json!(is_enabled(trouble.name))))
        .collect()
}

over_both!(one_request_fails_over_past_every_kind_of_failure_and_uses_each_credential_once);
async fn one_request_fails_over_past_every_kind_of_failure_and_uses_each_credential_once() {
    let mut rig = Rig::new().await;
    let nowhere = Nowhere::new();
    let troubles = troubles();
    let mut members: Vec<Value> = troubles
        .iter()
        .map(|trouble| troubled(&rig, &nowhere, trouble))
        .collect();
    members.push(rig.oauth("good"));
    let client = start(
        &mut rig,
        members,
        json!({ "upstream_head_timeout": HEAD_TIMEOUT }),
    )
    .await;

    let answer = client.turn(&turn("one")).await;

    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert!(answer.whole && answer.text().contains("response.completed"));
    let row = &wait_for_rows(&rig.ledger(), 1).await[0];
    let met = troubles
        .iter()
        .map(|trouble| (trouble.name, trouble.outcome))
        .chain([("good", "200")]);
    assert_eq!(row.attempts(), outcomes(&met.collect::<Vec<_>>()));
    assert_eq!(
        (row.text("credential"), row.number("status")),
        (Some("good"), Some(200))
    );
    assert_eq!(
        (row.text("end"), row.number("output_tokens")),
        (Some("complete"), Some(150))
    );
    rig.stop().await;
}

over_both!(each_kind_of_failure_fails_over_with_all_others_disabled);
async fn each_kind_of_failure_fails_over_with_all_others_disabled() {
    for trouble in troubles() {
        let limits = json!({ "upstream_head_timeout": HEAD_TIMEOUT, "failover": switches(|name| name == trouble.name) });
        let (mut rig, client) = beside(&trouble, limits).await;
        assert_eq!(
            client.turn(&turn("one")).await.status,
            StatusCode::OK,
            "{}",
            trouble.name
        );
        assert_eq!(
            attempts(&rig).await,
            outcomes(&[(trouble.name, trouble.outcome), ("good", "200")])
        );
        rig.stop().await;
    }
}

over_both!(a_failure_with_failover_disabled_reaches_the_client_unchanged);
async fn a_failure_with_failover_disabled_reaches_the_client_unchanged() {
    for trouble in troubles() {
        let limits = json!({ "upstream_head_timeout": HEAD_TIMEOUT, "failover": switches(|name| name != trouble.name) });
        let (mut rig, client) = beside(&trouble, limits).await;
        let answer = client.turn(&turn("one")).await;
        check_answered(&rig, &trouble, &answer).await;
        rig.stop().await;
    }
}

over_both!(no_other_status_is_tried_elsewhere);
async fn no_other_status_is_tried_elsewhere() {
    let (mut rig, client) = pool(&["a", "b"], json!({})).await;
    for status in [400, 402, 403, 404, 408, 409, 413, 422, 500, 501, 505, 529] {
        rig.account("a").then(Reply::raw(status, "theirs"));
        let answer = client.turn(&turn("one")).await;
        assert_eq!(
            (answer.status.as_u16(), answer.text().as_str()),
            (status, "theirs")
        );
    }
    assert_eq!(rig.account("b").turn_count(), 0);
    rig.stop().await;
}

over_both!(a_request_that_may_have_been_processed_is_not_sent_again);
async fn a_request_that_may_have_been_processed_is_not_sent_again() {
    let breaks = [
        ("closed", Reply::close_before_head()),
        ("reset", Reply::close_before_head().by_reset()),
        ("no HTTP", Reply::garbage("\u{1}\u{2}nonsense\r\n\r\n")),
    ];
    for (name, reply) in breaks {
        let (mut rig, client) = pool(&["a", "b"], json!({})).await;
        // On a new connection, and on a reused one.
        rig.account("a")
            .then(reply.clone())
            .then(Reply::ok())
            .then(reply);
        for expected in [
            StatusCode::BAD_GATEWAY,
            StatusCode::OK,
            StatusCode::BAD_GATEWAY,
        ] {
            let answer = client.turn(&turn("one")).await;
            assert_eq!(answer.status, expected, "{name}: {}", answer.text());
        }
        assert_eq!(asked(&rig), ["a", "a", "a"], "{name}");
        for row in wait_for_rows(&rig.ledger(), 3).await.iter().step_by(2) {
            assert_eq!(row.attempts(), outcomes(&[("a", "broken")]), "{name}");
            assert_eq!(row.text("end"), Some("upstream_gone"), "{name}");
        }
        rig.stop().await;
    }
}

over_both!(a_response_interrupted_after_its_head_is_not_retried);
async fn a_response_interrupted_after_its_head_is_not_retried() {
    for (stream, bytes) in [(true, 0), (true, 1), (false, 0), (false, 10)] {
        let (mut rig, client) = pool(&["a", "b"], json!({})).await;
        rig.account("a").then(Reply::ok().close_after(bytes));
        let mut body = turn("one");
        body["stream"] = json!(stream);
        // A head that did not get out before the break is no answer at all.
        if let Ok(answer) = client
            .try_send(Method::POST, "/v1/responses", body.to_string())
            .await
        {
            let answer = answer.finish().await;
            let failed = !answer.whole || answer.status == StatusCode::BAD_GATEWAY;
            assert!(
                failed,
                "stream {stream}, {bytes} bytes: {}: {}",
                answer.status,
                answer.text()
            );
        }
        assert_eq!(asked(&rig), ["a"], "stream {stream}, {bytes} bytes");
        rig.stop().await;
    }
}

// Which response the client gets when no credential is left

over_both!(if_all_answer_503_the_client_gets_the_last_response_unchanged);
async fn if_all_answer_503_the_client_gets_the_last_response_unchanged() {
    let (mut rig, client) = pool(&["a", "b", "c"], json!({})).await;
    for tag in ["a", "b", "c"] {
        rig.account(tag).then(
            Reply::raw(503, format!("busy {tag}"))
                .retry_after("7")
                .header("x-theirs", tag),
        );
    }
    let answer = client.turn(&turn("one")).await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "busy c")
    );
    assert_eq!(
        (answer.header("retry-after"), answer.header("x-theirs")),
        (Some("7"), Some("c"))
    );
    assert_eq!(
        attempts(&rig).await,
        outcomes(&[("a", "503"), ("b", "503"), ("c", "503")])
    );
    rig.stop().await;
}

over_both!(no_client_gets_usage_limit_reached_while_a_credential_is_only_busy);
async fn no_client_gets_usage_limit_reached_while_a_credential_is_only_busy() {
    let [limited, expired, ..] = troubles();
    for other in [limited, expired] {
        for busy_first in [true, false] {
            let mut rig = Rig::new().await;
            let mut members = vec![rig.oauth("busy"), troubled(&rig, &Nowhere::new(), &other)];
            rig.account("busy").always(Reply::raw(503, "theirs"));
            if !busy_first {
                members.reverse();
            }
            let client = start(&mut rig, members, json!({})).await;
            let answer = client.turn(&turn("one")).await;
            let found = (answer.status.as_u16(), answer.text());
            assert_eq!(
                found,
                (503, "theirs".to_owned()),
                "beside {}, busy first: {busy_first}",
                other.name
            );
            assert_eq!(attempts(&rig).await.len(), 2);
            rig.stop().await;
        }
    }
}
