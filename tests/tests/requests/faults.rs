//! Policies that fail: only their own call fails, and at once.

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::peer::Peer;
use tollgate_tests::{Client, Rig, Row, guest, over_both, turn, unix_in, wait_for_rows};

fn policy(kind: &str, fault: &str) -> Value {
    json!({
        "tag": "faulty",
        "kind": kind,
        "path": guest(&format!("faulty-{kind}")),
        "config": { "fault": fault },
        "memory": 4 * 1024 * 1024,
    })
}

/// A team of two whose policy of `kind` fails in that way.
async fn faulty(rig: &mut Rig, kind: &str, fault: &str, more: Value) -> Client {
    let pool = if kind == "balancer" {
        json!({ "strategy": "faulty" })
    } else {
        json!({})
    };
    let mut config = rig.team(&["a", "b"], pool);
    match kind {
        "rewriter" => config["services"][0]["rewriters"] = json!(["faulty"]),
        "pricer" => config["services"][0]["pricer"] = json!("faulty"),
        _ => {}
    }
    let mut policy = policy(kind, fault);
    policy
        .as_object_mut()
        .expect("an object")
        .extend(more.as_object().expect("an object").clone());
    config["policies"] = json!([policy]);
    rig.start(config).await.token("token-alice")
}

async fn one_row(rig: &mut Rig) -> Row {
    let rows = wait_for_rows(&rig.ledger(), 1).await;
    rig.stop().await;
    rows.into_iter().next().expect("one row")
}

over_both!(the_shipped_balancer_replaces_a_failing_one_at_once);
async fn the_shipped_balancer_replaces_a_failing_one_at_once() {
    for fault in ["panic", "loop", "grow", "recurse", "unusable"] {
        let mut rig = Rig::new().await;
        let client = faulty(&mut rig, "balancer", fault, json!({})).await;
        for session in 0..3 {
            let answer = client.turn(&turn(&format!("session {session}"))).await;
            assert_eq!(answer.status, StatusCode::OK, "{fault}: {}", answer.text());
        }
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_may_choose_no_credential() {
    let mut rig = Rig::new().await;
    let client = faulty(&mut rig, "balancer", "pick-none", json!({})).await;
    for client in [client.clone(), client.http2()] {
        let refused = [
            client.turn(&turn("one")).await,
            client.socket().await.expect_err("no socket"),
        ];
        for answer in refused {
            assert_eq!(
                answer.status,
                StatusCode::TOO_MANY_REQUESTS,
                "{}",
                answer.text()
            );
            let error = &answer.json()["error"];
            assert_eq!(error["code"], "credentials_exhausted");
            // The time is unknown, and without a hint a client retries at once.
            let seconds = error["resets_in_seconds"].as_u64().expect("a span");
            assert_eq!(
                answer.header("retry-after"),
                Some(seconds.to_string().as_str())
            );
            let at = error["resets_at"].as_u64().expect("a time");
            assert!(
                (1..=600).contains(&seconds) && at.abs_diff(unix_in(seconds)) <= 20,
                "{error}"
            );
        }
    }
    for row in wait_for_rows(&rig.ledger(), 4).await {
        assert_eq!(
            (row.text("end"), row.number("status")),
            (Some("failed"), Some(429))
        );
        assert!(row.attempts().is_empty());
    }
    rig.stop().await;
}

over_both!(a_failing_rewriter_refuses_the_request_and_upstream_sees_nothing);
async fn a_failing_rewriter_refuses_the_request_and_upstream_sees_nothing() {
    for fault in [
        "panic",
        "reserved",
        "new-line",
        "huge",
        "many",
        "refuse-with200",
    ] {
        let mut rig = Rig::new().await;
        let client = faulty(&mut rig, "rewriter", fault, json!({})).await;
        let answer = client.turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{fault}");
        assert_eq!(answer.json()["error"]["code"], "policy_failed", "{fault}");
        assert_eq!(rig.forwarded().len(), 0, "{fault}");
        assert_eq!(
            one_row(&mut rig).await.text("end"),
            Some("failed"),
            "{fault}"
        );
    }
}

over_both!(a_failing_rewriter_that_may_be_skipped_leaves_no_edit);
async fn a_failing_rewriter_that_may_be_skipped_leaves_no_edit() {
    for fault in ["panic", "reserved", "new-line", "huge", "many"] {
        let mut rig = Rig::new().await;
        let client = faulty(&mut rig, "rewriter", fault, json!({ "on_failure": "skip" })).await;
        let answer = client.turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::OK, "{fault}");
        let seen = &rig.upstream.turns()[0];
        assert_eq!(seen.header("x-good"), None, "{fault}");
        assert!(
            seen.header("authorization")
                .is_some_and(|value| value.starts_with("Bearer access-")),
            "{fault}"
        );
        rig.stop().await;
    }
}

over_both!(a_rewriter_may_reject_a_request_with_a_status_and_message);
async fn a_rewriter_may_reject_a_request_with_a_status_and_message() {
    let mut rig = Rig::new().await;
    let client = faulty(&mut rig, "rewriter", "refuse", json!({})).await;
    let answer = client.turn(&turn("one")).await;
    assert_eq!(answer.status, StatusCode::IM_A_TEAPOT);
    assert_eq!(answer.json()["error"]["message"], "refused by the guest");
    rig.stop().await;
}

over_both!(the_rest_of_a_large_body_is_drained_when_a_rewriter_refuses_it);
/// The client is still sending when the rewriter refuses: the gateway reads on, so that the client
/// sees the whole refusal and can use the connection again.
async fn the_rest_of_a_large_body_is_drained_when_a_rewriter_refuses_it() {
    let mut rig = Rig::new().await;
    let mut config = rig.team(&["a"], json!({}));
    config["services"][0]["rewriters"] = json!(["faulty"]);
    config["policies"] = json!([policy("rewriter", "refuse")]);
    // The rewriter is called once so much of the body has arrived.
    config["limits"] = json!({ "replay_bytes": 100_000 });
    let client = rig.start(config).await;
    let mut large = turn("one");
    // More than the buffers of the connection hold, and less than limits.discard_bytes.
    large["input"] = json!("x".repeat(12 * 1024 * 1024));
    for connection in 0..3 {
        let mut peer = Peer::connect(client.address()).await;
        for body in [&large, &turn("two"), &large] {
            let body = body.to_string();
            let length = body.len();
            peer.send(format!(
                "POST /v1/responses HTTP/1.1\r\nhost: gateway\r\n\
                authorization: Bearer token-alice\r\ncontent-type: application/json\r\n\
                content-length: {length}\r\n\r\n{body}"
            ))
            .await;
            let answer = peer
                .message()
                .await
                .unwrap_or_else(|| panic!("connection {connection}: no answer to {length} bytes"));
            assert!(answer.whole, "{}", answer.text());
            assert_eq!(answer.status(), 418, "{}", answer.text());
            assert!(
                answer.text().contains("refused by the guest"),
                "{}",
                answer.text()
            );
        }
    }
    assert_eq!(rig.forwarded().len(), 0);
    for row in wait_for_rows(&rig.ledger(), 9).await {
        assert_eq!(
            (row.text("end"), row.number("status")),
            (Some("failed"), Some(418))
        );
    }
    rig.stop().await;
}

/// What a client gets for a handshake where the rewriter has this fault, over HTTP/1.1 or HTTP/2. Upstream sees none.
async fn check_handshake_refused(fault: &str, status: u16, code: &str) {
    let mut rig = Rig::new().await;
    let client = faulty(&mut rig, "rewriter", fault, json!({})).await;
    for (place, client) in [client.clone(), client.http2()].into_iter().enumerate() {
        let answer = client.socket().await.expect_err("no socket");
        assert_eq!(answer.status.as_u16(), status, "{fault}: {}", answer.text());
        assert_eq!(answer.json()["error"]["code"], code, "{fault}");
        let row = wait_for_rows(&rig.ledger(), place + 1).await.remove(place);
        let found = (row.number("status"), row.text("end"), row.text("transport"));
        assert_eq!(
            found,
            (Some(i64::from(status)), Some("failed"), Some("websocket")),
            "{fault}"
        );
    }
    assert_eq!(rig.forwarded().len(), 0, "{fault}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewriter_refuses_a_handshake_as_it_does_a_request() {
    for fault in [
        "panic",
        "reserved",
        "new-line",
        "huge",
        "many",
        "refuse-with200",
    ] {
        check_handshake_refused(fault, 500, "policy_failed").await;
    }
    check_handshake_refused("refuse", 418, "refused_by_policy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewriter_edits_a_handshake_and_sees_no_credential_in_it() {
    let mut rig = Rig::new().await;
    let client = faulty(&mut rig, "rewriter", "spy", json!({})).await;
    let client = client
        .header("cookie", "c=canary")
        .header("x-plain", "yes")
        .header("chatgpt-account-id", "canary");
    for (place, client) in [client.clone(), client.http2()].into_iter().enumerate() {
        let mut socket = client.socket().await.expect("a socket");
        let seen = rig
            .upstream
            .wait_for_sockets(place + 1)
            .await
            .remove(place)
            .request;
        let seen = seen.header("x-seen").expect("the spy's report");
        assert!(seen.contains("x-plain=yes"), "{seen}");
        for hidden in [
            "canary",
            "token-alice",
            "access-",
            "authorization",
            "account",
        ] {
            assert!(!seen.contains(hidden), "{hidden} in {seen}");
        }
        socket.turn(&turn("one")).await;
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn configured_headers_are_on_a_handshake_and_do_not_hide_its_credential() {
    let mut rig = Rig::new().await;
    let mut config = rig.team(&["a"], json!({}));
    config["services"][0]["headers"] = json!({ "x-team": "ours", "user-agent": ["ours/1"] });
    let client = rig
        .start(config)
        .await
        .token("token-alice")
        .header("user-agent", "theirs/1");
    for (place, client) in [client.clone(), client.http2()].into_iter().enumerate() {
        let _socket = client.socket().await.expect("a socket");
        let seen = rig
            .upstream
            .wait_for_sockets(place + 1)
            .await
            .remove(place)
            .request;
        for (name, value) in [
            ("x-team", "ours"),
            ("user-agent", "ours/1"),
            ("authorization", "Bearer access-a"),
        ] {
            assert_eq!(seen.header(name), Some(value), "{name}");
        }
    }
    rig.stop().await;
}

over_both!(a_rewriter_that_breaks_a_response_refuses_it);
async fn a_rewriter_that_breaks_a_response_refuses_it() {
    let mut rig = Rig::new().await;
    let client = faulty(&mut rig, "rewriter", "response", json!({})).await;
    let answer = client.turn(&turn("one")).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    rig.stop().await;
}

over_both!(no_policy_sees_a_credential);
async fn no_policy_sees_a_credential() {
    let mut rig = Rig::new().await;
    let client = faulty(&mut rig, "rewriter", "spy", json!({})).await;
    let client = client
        .header("cookie", "c=canary")
        .header("x-plain", "yes")
        .header("chatgpt-account-id", "canary");
    let answer = client.turn(&turn("one")).await;
    let turns = rig.upstream.turns();
    let seen = turns[0].header("x-seen").expect("the spy's report");
    assert!(seen.contains("x-plain=yes"), "{seen}");
    for hidden in [
        "canary",
        "token-alice",
        "access-",
        "authorization",
        "account",
    ] {
        assert!(!seen.contains(hidden), "{hidden} in {seen}");
    }
    assert!(
        !answer
            .header("x-seen")
            .expect("the spy's report")
            .contains("set-cookie")
    );
    rig.stop().await;
}

over_both!(a_failing_pricer_leaves_the_row_unpriced_with_the_reason);
async fn a_failing_pricer_leaves_the_row_unpriced_with_the_reason() {
    for (fault, reason) in [
        ("panic", "the guest's panic message"),
        ("loop", "deadline exceeded after 5 ms"),
        ("absurd", "bad output"),
        ("unknown", "the guest does not know the model"),
    ] {
        let mut rig = Rig::new().await;
        let client = faulty(&mut rig, "pricer", fault, json!({})).await;
        let answer = client.turn(&turn("one")).await;
        assert!(answer.whole, "{fault}");
        let row = one_row(&mut rig).await;
        assert_eq!(row.number("cost_nanousd"), None, "{fault}");
        assert!(
            row.text("unpriced_reason")
                .is_some_and(|found| found.contains(reason)),
            "{fault}: {row:?}"
        );
        assert_eq!(row.number("input_tokens"), Some(1200), "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_fails_while_it_is_loaded_stops_the_start_with_its_place() {
    for (fault, expected) in [
        (
            "refuse-config",
            "policies[0].config: the test configured a rejection",
        ),
        ("panic-in-new", "in new"),
        ("nonsense", "policies[0].config.fault: expected one of"),
    ] {
        let mut rig = Rig::new().await;
        let mut config = rig.team(&["a"], json!({ "strategy": "faulty" }));
        config["policies"] = json!([policy("balancer", fault)]);
        let error = rig
            .try_start(config)
            .await
            .err()
            .expect("it does not start")
            .to_string();
        assert!(error.contains(expected), "{fault}: {error}");
    }
}
