//! Refused requests and failed connections move to the next credential.

use std::net::SocketAddr;

use http::{Method, StatusCode};
use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tollgate_tests::upstream::{Gate, Reply};
use tollgate_tests::{Rig, over_both, turn, wait_for_rows};

use super::{check_exhausted, outcomes, pool, refusal};

// Failover

over_both!(a_refused_request_is_sent_to_the_next_credential_unchanged);
async fn a_refused_request_is_sent_to_the_next_credential_unchanged() {
    let (mut rig, client) = pool(&["a", "b", "c"]).await;
    for tag in ["a", "b"] {
        rig.account(tag).then(refusal().resets_in_seconds(600));
    }
    let body = format!(
        "{{ \"model\":\"gpt-5.4\",\t\"stream\":true, \"input\":\"{}\" }}\n",
        "é".repeat(700_000)
    );
    let client = client
        .header("x-theirs", "kept")
        .header("accept", "text/event-stream");

    let answer = client
        .ask(Method::POST, "/v1/responses?x=1", body.clone())
        .await;

    assert_eq!(answer.status, StatusCode::OK);
    let seen = rig.upstream.turns();
    let accounts: Vec<&str> = seen
        .iter()
        .filter_map(|seen| seen.account.as_deref())
        .collect();
    assert_eq!(accounts, ["account-a", "account-b", "account-c"]);
    for seen in &seen {
        assert!(seen.body == body, "another body");
        assert_eq!(seen.target, "/backend-api/codex/responses?x=1");
        assert_eq!(
            (seen.header("x-theirs"), seen.header("accept")),
            (Some("kept"), Some("text/event-stream"))
        );
    }
    let row = &wait_for_rows(&rig.ledger(), 1).await[0];
    assert_eq!(
        row.attempts(),
        outcomes(&[("a", "429"), ("b", "429"), ("c", "200")])
    );
    assert_eq!(
        (row.text("credential"), row.number("status")),
        (Some("c"), Some(200))
    );
    rig.stop().await;
}

over_both!(if_all_are_refused_the_response_has_the_earliest_reset);
async fn if_all_are_refused_the_response_has_the_earliest_reset() {
    let (mut rig, client) = pool(&["a", "b", "c"]).await;
    for (tag, seconds) in [("a", 900), ("b", 400), ("c", 600)] {
        rig.account(tag).then(refusal().resets_in_seconds(seconds));
    }
    check_exhausted("all tried", &client.turn(&turn("one")).await, 400);
    check_exhausted("none tried", &client.turn(&turn("one")).await, 400);
    assert_eq!(rig.upstream.turns().len(), 3, "each at most once");
    let rows = wait_for_rows(&rig.ledger(), 2).await;
    assert_eq!(
        rows[0].attempts(),
        outcomes(&[("a", "429"), ("b", "429"), ("c", "429")])
    );
    assert_eq!(rows[1].attempts(), []);
    for row in rows {
        assert_eq!(
            (row.text("end"), row.number("status")),
            (Some("failed"), Some(429))
        );
        assert_eq!(
            (row.number("cost_nanousd"), row.text("unpriced_reason")),
            (None, None)
        );
    }
    rig.stop().await;
}

over_both!(a_rejected_token_fails_over_to_the_next_credential);
async fn a_rejected_token_fails_over_to_the_next_credential() {
    let (mut rig, client) = pool(&["a", "b"]).await;
    rig.account("a")
        .always(Reply::error(401, "invalid_request_error", "expired"));
    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    let attempts = wait_for_rows(&rig.ledger(), 1).await[0].attempts();
    assert_eq!(attempts.last(), outcomes(&[("b", "200")]).last());
    assert!(
        attempts[..attempts.len() - 1]
            .iter()
            .all(|attempt| *attempt == outcomes(&[("a", "401")])[0])
    );
    rig.stop().await;
}

over_both!(other_errors_are_passed_on_and_not_retried);
async fn other_errors_are_passed_on_and_not_retried() {
    let (mut rig, client) = pool(&["a", "b"]).await;
    for status in [400, 403, 404, 500, 501] {
        rig.account("a").then(Reply::raw(status, "theirs"));
        let answer = client.turn(&turn("one")).await;
        assert_eq!(
            (answer.status.as_u16(), answer.text().as_str()),
            (status, "theirs")
        );
    }
    assert!(
        rig.upstream
            .turns()
            .iter()
            .all(|seen| seen.account.as_deref() == Some("account-a"))
    );
    rig.stop().await;
}

over_both!(no_request_is_sent_again_after_a_byte_of_its_response);
async fn no_request_is_sent_again_after_a_byte_of_its_response() {
    let (mut rig, client) = pool(&["a", "b"]).await;
    rig.account("a").then(Reply::ok().close_after(100));
    client.turn_cut_off(&turn("one")).await;
    assert_eq!(rig.upstream.turns().len(), 1);
    rig.stop().await;
}

over_both!(a_refusal_of_one_request_does_not_end_the_stream_of_another);
async fn a_refusal_of_one_request_does_not_end_the_stream_of_another() {
    let (mut rig, client) = pool(&["a", "b"]).await;
    let gate = Gate::new();
    rig.account("a")
        .then(Reply::ok().hold_after(2, &gate))
        .then(refusal().resets_in_seconds(600));
    let mut stream = client.start_turn(&turn("one")).await;
    stream.until("output_text.delta").await;
    assert_eq!(client.turn(&turn("two")).await.status, StatusCode::OK);
    gate.open();
    let rest = stream.finish().await;
    assert!(rest.whole && rest.text().contains("response.completed"));
    rig.stop().await;
}

// Upstream unreachable

/// A forwarder to upstream that can stop accepting connections while those it has stay open.
async fn door(upstream: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let accepting = tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.expect("a connection");
            tokio::spawn(async move {
                let mut far = TcpStream::connect(upstream)
                    .await
                    .expect("upstream listens");
                let _ = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (address, accepting)
}

// Over HTTP/1.1 alone: a poll that is cut off leaves an HTTP/2 connection open.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_to_connect_fails_over_to_the_next_credential() {
    let mut rig = Rig::new().await;
    let (address, accepting) = door(rig.upstream.address()).await;
    let mut config = rig.team(&["a", "b"], json!({ "strategy": "fallback" }));
    let service = &mut config["services"][0];
    service["endpoints"]["chatgpt"] = json!(format!("http://{address}/backend-api"));
    let users = service["users"].as_array_mut().expect("a list");
    users.push(json!({ "name": "carol", "token": "token-carol", "credential": "b" }));
    // Some connections of b's stay open; a has none, not even that of its poll.
    rig.account("a").always_for_poll(Reply::close_before_head());
    let client = rig.start_polled(config).await;
    let gate = Gate::new();
    rig.account("b").always(Reply::ok().hold_after(1, &gate));
    let carol = client.token("token-carol");
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(carol.start_turn(&turn("one")).await);
    }
    gate.open();
    for stream in streams {
        assert!(stream.finish().await.whole);
    }
    accepting.abort();
    assert!(accepting.await.is_err_and(|error| error.is_cancelled()));

    let answer = client.token("token-alice").turn(&turn("two")).await;

    assert_eq!(answer.status, StatusCode::OK);
    let rows = wait_for_rows(&rig.ledger(), 5).await;
    assert_eq!(
        rows[4].attempts(),
        outcomes(&[("a", "unreachable"), ("b", "200")])
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn if_no_credential_can_connect_each_is_tried_once_and_the_response_is_502() {
    let (mut rig, client) = pool(&["a", "b"]).await;
    rig.upstream.stop().await;
    let answer = client.turn(&turn("one")).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(answer.json()["error"]["type"], "api_error");
    let row = &wait_for_rows(&rig.ledger(), 1).await[0];
    assert_eq!(
        row.attempts(),
        outcomes(&[("a", "unreachable"), ("b", "unreachable")])
    );
    rig.stop().await;
}
