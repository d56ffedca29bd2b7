//! Responses that a client or upstream cuts short.

use http::{Method, StatusCode};
use serde_json::Value;
use tollgate_tests::upstream::{Encoding, Gate, Reply};
use tollgate_tests::{Client, Protocol, over_both, turn};

use super::{check_unknown, next_row, object_turn, open_rig, stream_turn};

over_both!(a_row_has_the_status_that_the_client_got_and_not_upstreams);
async fn a_row_has_the_status_that_the_client_got_and_not_upstreams() {
    for (is_http2, bytes) in [(false, 0), (false, 1000), (true, 0), (true, 1000)] {
        let (mut rig, client, account) = open_rig().await;
        let client = if is_http2 { client.http2() } else { client };
        // An error response is read to its end, which never comes: no byte of it was sent by then.
        account
            .then(Reply::error(429, "usage_limit_reached", &"x".repeat(2000)).close_after(bytes));
        let answer = client.turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{}", answer.text());
        let row = next_row(&rig, 0).await;
        assert_eq!(
            (row.number("status"), row.text("end")),
            (Some(502), Some("upstream_gone"))
        );
        // Without any byte of its body, the head may not get out before the break; over HTTP/2, a
        // reset can overtake it.
        if bytes > 0 && Protocol::current() == Protocol::Http1 {
            assert_eq!(row.attempts(), [("a".to_owned(), "429".to_owned())]);
        }
        rig.stop().await;
    }
}

over_both!(a_client_that_leaves_in_the_middle_is_recorded);
async fn a_client_that_leaves_in_the_middle_is_recorded() {
    let (mut rig, client, account) = open_rig().await;
    for (place, (name, client)) in [("HTTP/1.1", client.clone()), ("HTTP/2", client.http2())]
        .into_iter()
        .enumerate()
    {
        let never = Gate::new();
        account.then(Reply::ok().response_id("resp_left").hold_after(3, &never));
        let mut stream = client.start_turn(&turn("one")).await;
        stream.until("output_text.delta").await;
        never.wait_until_reached().await;
        drop(stream);
        let row = next_row(&rig, place).await;
        assert_eq!(
            (row.text("end"), row.number("status")),
            (Some("client_gone"), Some(200)),
            "{name}"
        );
        assert_eq!(
            (row.text("model"), row.text("response_id")),
            (Some("gpt-5.4"), Some("resp_left")),
            "{name}"
        );
        check_unknown(name, &row);
        rig.upstream.wait_for_abandoned(place + 1).await;
    }
    rig.stop().await;
}

over_both!(a_client_that_leaves_before_the_answer_is_recorded);
async fn a_client_that_leaves_before_the_answer_is_recorded() {
    let (mut rig, client, account) = open_rig().await;
    let never = Gate::new();
    account.then(Reply::ok().hold_head(&never));
    let asking = tokio::spawn(async move { client.turn(&turn("one")).await.status });
    never.wait_until_reached().await;
    asking.abort();
    assert!(asking.await.is_err_and(|error| error.is_cancelled()));
    let row = next_row(&rig, 0).await;
    assert_eq!(row.text("end"), Some("client_gone"));
    assert_eq!(row.attempts().len(), 1);
    check_unknown("before the head", &row);
    rig.stop().await;
}

/// The client sees that its answer is not whole: where the cut came at once, even the head may be
/// missing, and where it came before the first byte of the body, the gateway may say so instead.
/// Returns the status that the row should have.
async fn status_of_cut(name: &str, client: &Client, body: &Value) -> i64 {
    let client = client.header("content-type", "application/json");
    let sent = client
        .try_send(Method::POST, "/v1/responses", body.to_string())
        .await;
    let Ok(answer) = sent else { return 200 };
    let answer = answer.finish().await;
    if answer.status == StatusCode::BAD_GATEWAY {
        return 502;
    }
    assert_eq!(
        (answer.status, answer.whole),
        (StatusCode::OK, false),
        "{name}"
    );
    200
}

over_both!(an_upstream_that_breaks_off_is_recorded_and_its_client_sees_the_cut);
async fn an_upstream_that_breaks_off_is_recorded_and_its_client_sees_the_cut() {
    let (mut rig, client, account) = open_rig().await;
    let cases = [
        ("closed", Reply::ok().close_after(400), stream_turn()),
        (
            "reset",
            Reply::ok().close_after(400).by_reset(),
            stream_turn(),
        ),
        (
            "packed",
            Reply::ok()
                .deltas(500)
                .encoded(Encoding::Zstd)
                .close_after(100),
            stream_turn(),
        ),
        ("one object", Reply::ok().close_after(100), object_turn()),
    ];
    let mut place = 0;
    for client in [client.clone(), client.http2()] {
        for (name, reply, body) in cases.clone() {
            account.then(reply);
            let status = status_of_cut(name, &client, &body).await;
            let row = next_row(&rig, place).await;
            place += 1;
            assert_eq!(
                (row.text("end"), row.number("status")),
                (Some("upstream_gone"), Some(status)),
                "{name}"
            );
            check_unknown(name, &row);
        }
    }
    rig.stop().await;
}
