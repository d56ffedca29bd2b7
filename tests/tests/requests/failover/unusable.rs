//! Credentials that become unusable while a request waits.

use std::fs;
use std::time::Duration;

use http::StatusCode;
use serde_json::json;
use tokio::time::timeout;
use tollgate_tests::upstream::{Gate, Reply, Standing};
use tollgate_tests::{Client, Rig, over_both, turn, wait_for_rows};

use super::{outcomes, pool, start};

/// How long a request may wait for its credential after that became unusable. It should move at
/// once.
const MOVED_MAX: Duration = Duration::from_secs(5);

/// Checks that, if `turn_unusable` is called while `a` has a stream in flight and a request that
/// waits for its head, the stream continues and the request moves to `b`.
async fn check_moved(rig: &Rig, client: &Client, turn_unusable: impl FnOnce()) {
    let (rest, never) = (Gate::new(), Gate::new());
    rig.account("a")
        .then(Reply::ok().hold_after(2, &rest))
        .then(Reply::ok().hold_head(&never));
    let mut stream = client.start_turn(&turn("stream")).await;
    stream.until("output_text.delta").await;
    let other = client.clone();
    let waiting = tokio::spawn(async move { other.turn(&turn("waiting")).await });
    never.wait_until_reached().await;

    turn_unusable();

    let moved = timeout(MOVED_MAX, waiting)
        .await
        .expect("an answer from the other credential")
        .expect("no panic");
    assert_eq!(moved.status, StatusCode::OK, "{}", moved.text());
    let row = &wait_for_rows(&rig.ledger(), 1).await[0];
    assert_eq!(
        row.attempts(),
        outcomes(&[("a", "withdrawn"), ("b", "200")])
    );
    rest.open();
    let rest = stream.finish().await;
    assert!(
        rest.whole && rest.text().contains("response.completed"),
        "{}",
        rest.text()
    );
    let row = &wait_for_rows(&rig.ledger(), 2).await[1];
    assert_eq!(row.attempts(), outcomes(&[("a", "200")]));
    assert_eq!(row.text("end"), Some("complete"));
}

over_both!(if_its_file_is_removed_a_waiting_request_moves_and_a_stream_continues);
async fn if_its_file_is_removed_a_waiting_request_moves_and_a_stream_continues() {
    let (mut rig, client) = pool(&["a", "b"], json!({})).await;
    let file = rig.credential_file("a");
    check_moved(&rig, &client, || {
        fs::remove_file(file).expect("it is there")
    })
    .await;
    rig.stop().await;
}

over_both!(if_a_poll_finds_it_exhausted_a_waiting_request_moves_and_a_stream_continues);
async fn if_a_poll_finds_it_exhausted_a_waiting_request_moves_and_a_stream_continues() {
    for used_up in [
        Standing::new("plus").weekly_used(100.0),
        Standing::new("plus").five_hour_used(99.0),
    ] {
        let mut rig = Rig::new().await;
        let members = vec![rig.oauth("a"), rig.oauth("b")];
        let (poll, account) = (Gate::new(), rig.account("a"));
        account.always_for_poll(Reply::ok().hold_head(&poll));
        let client = start(&mut rig, members, json!({ "poll_timeout": "30s" })).await;
        poll.wait_until_reached().await;
        let turn_unusable = || {
            account.set_standing(used_up);
            poll.open();
        };
        check_moved(&rig, &client, turn_unusable).await;
        rig.stop().await;
    }
}

over_both!(a_waiting_request_that_no_other_credential_can_serve_is_answered);
async fn a_waiting_request_that_no_other_credential_can_serve_is_answered() {
    let cases: [(&str, StatusCode, &str, fn(&Rig)); 2] = [
        (
            "file removed",
            StatusCode::SERVICE_UNAVAILABLE,
            "credentials_unavailable",
            |rig| {
                fs::remove_file(rig.credential_file("a")).expect("it is there");
            },
        ),
        (
            "used up",
            StatusCode::TOO_MANY_REQUESTS,
            "credentials_exhausted",
            |rig| {
                rig.account("a")
                    .set_standing(Standing::new("plus").weekly_used(100.0));
            },
        ),
    ];
    for (name, status, code, turn_unusable) in cases {
        let (mut rig, client) = pool(&["a"], json!({})).await;
        let never = Gate::new();
        rig.account("a").then(Reply::ok().hold_head(&never));
        let other = client.clone();
        let waiting = tokio::spawn(async move { other.turn(&turn("waiting")).await });
        never.wait_until_reached().await;
        turn_unusable(&rig);
        // If the account is exhausted, the gateway learns it from this response.
        let _ = client.turn(&turn("two")).await;
        let answer = timeout(MOVED_MAX, waiting)
            .await
            .expect("an answer of the gateway's")
            .expect("no panic");
        assert_eq!(
            (answer.status, &answer.json()["error"]["code"]),
            (status, &json!(code)),
            "{name}"
        );
        rig.stop().await;
    }
}
