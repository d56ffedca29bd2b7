//! Which requests are answered, and what is seen of them.

use http_body_util::BodyExt;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{RESPONSES, ask, events, request, send, start, turn};
use crate::*;

#[tokio::test]
async fn queued_replies_precede_standing_ones_and_those_of_accounts_that_of_the_server() {
    let (upstream, ana) = start().await;
    upstream.always(Reply::server_error(503));
    assert_eq!(ask(&upstream, RESPONSES, turn()).await.status, 503);
    ana.always(Reply::server_error(500)).then(
        Reply::usage_limit_reached()
            .resets_in_seconds(60)
            .retry_after("60"),
    );
    let limited = ask(&upstream, RESPONSES, turn()).await;
    assert_eq!(limited.status, 429);
    assert_eq!(limited.headers["retry-after"], "60");
    assert_eq!(limited.json()["error"]["type"], "usage_limit_reached");
    assert_eq!(limited.json()["error"]["resets_in_seconds"], 60);
    assert_eq!(ask(&upstream, RESPONSES, turn()).await.status, 500);
    ana.clear_script();
    assert_eq!(ask(&upstream, RESPONSES, turn()).await.status, 503);
}

#[tokio::test]
async fn unknown_tokens_and_paths_are_rejected() {
    let (upstream, _ana) = start().await;
    assert_eq!(ask(&upstream, "/v1/nothing", turn()).await.status, 404);
    let stranger = send(&upstream, request(RESPONSES, "at-unknown", "{}"))
        .await
        .expect("an answer");
    assert_eq!(stranger.status(), 401);
    let mut crossed = request(RESPONSES, "at-ana", "{}");
    crossed
        .headers_mut()
        .insert("chatgpt-account-id", "acct-ben".parse().expect("a value"));
    assert_eq!(
        send(&upstream, crossed).await.expect("an answer").status(),
        401
    );
    let broken = send(&upstream, request(RESPONSES, "at-ana", "{"))
        .await
        .expect("an answer");
    assert_eq!(broken.status(), 400);
}

#[tokio::test]
async fn the_other_routes_answer() {
    let (upstream, ana) = start().await;
    ana.set_standing(
        Standing::new("pro")
            .five_hour_used(12.0)
            .weekly_used(30.5)
            .slots(Slots::WeeklyFirst),
    );
    let usage = ask(&upstream, "/backend-api/wham/usage", Value::Null)
        .await
        .json();
    assert_eq!(usage["plan_type"], "pro");
    assert_eq!(usage["rate_limit"]["primary_window"]["used_percent"], 30.5);
    assert_eq!(
        usage["rate_limit"]["secondary_window"]["limit_window_seconds"],
        18_000
    );
    assert_eq!(usage["rate_limit"]["secondary_window"]["used_percent"], 12);
    ana.then_for_poll(Reply::server_error(500));
    assert_eq!(
        ask(&upstream, "/backend-api/wham/usage", Value::Null)
            .await
            .status,
        500
    );
    assert_eq!(
        ask(&upstream, "/v1/models", Value::Null).await.json()["object"],
        "list"
    );
    assert_eq!(
        ask(&upstream, "/backend-api/codex/models", Value::Null)
            .await
            .json(),
        json!({"models": []})
    );
    let compacted = ask(
        &upstream,
        "/backend-api/codex/responses/compact",
        json!({"model": "gpt-5.4"}),
    )
    .await
    .json();
    assert_eq!(compacted["output"][0]["type"], "compaction");
}

#[tokio::test]
async fn rate_limit_headers_come_in_each_form() {
    let (upstream, ana) = start().await;
    let standing = Standing::new("plus")
        .five_hour_used(97.0)
        .weekly_resets_at(2_000_000_000);
    for (form, active, name) in [
        (HeaderForm::Plain, None, "x-codex-primary-used-percent"),
        (
            HeaderForm::ActiveLimit,
            Some("codex_bengalfox"),
            "x-codex-bengalfox-primary-used-percent",
        ),
        (
            HeaderForm::PlainBesideActiveLimit,
            Some("codex_bengalfox"),
            "x-codex-primary-used-percent",
        ),
    ] {
        ana.set_standing(standing.clone().header_form(form));
        let headers = ask(&upstream, RESPONSES, turn()).await.headers;
        assert_eq!(headers[name], "97", "{form:?}");
        assert_eq!(
            headers
                .get("x-codex-active-limit")
                .map(|value| value.to_str().expect("text")),
            active,
            "{form:?}"
        );
        assert_eq!(
            headers[name.replace("primary-used-percent", "secondary-reset-at")],
            "2000000000"
        );
        assert_eq!(
            headers[name.replace("primary-used-percent", "secondary-window-minutes")],
            "10080"
        );
    }
    ana.set_standing(standing.header_form(HeaderForm::Absent));
    let headers = ask(&upstream, RESPONSES, turn()).await.headers;
    assert!(
        headers
            .keys()
            .all(|name| !name.as_str().starts_with("x-codex"))
    );
}

#[tokio::test]
async fn a_turn_uses_up_the_windows() {
    let (upstream, ana) = start().await;
    let mut standing = Standing::new("plus").weekly_used(40.0);
    standing.weekly.used_percent_per_turn = 6.0;
    ana.set_standing(standing);
    let headers = ask(&upstream, RESPONSES, turn()).await.headers;
    assert_eq!(headers["x-codex-secondary-used-percent"], "46");
    ana.then(Reply::server_error(500));
    ask(&upstream, RESPONSES, turn()).await;
    assert_eq!(ana.standing().weekly.used_percent, 46.0);
}

#[tokio::test]
async fn a_client_that_leaves_is_seen() {
    let (upstream, ana) = start().await;
    let gate = Gate::new();
    ana.then(Reply::ok().hold_after(1, &gate))
        .then(Reply::ok().hold_head(&gate));
    let response = send(&upstream, request(RESPONSES, "at-ana", turn().to_string()))
        .await
        .expect("a head");
    drop(response);
    upstream.wait_for_abandoned(1).await;
    // The second never gets a head.
    let asking = tokio::spawn({
        let upstream = upstream.clone();
        async move { ask(&upstream, RESPONSES, turn()).await }
    });
    gate.wait_until_reached_times(2).await;
    asking.abort();
    upstream.wait_for_abandoned(2).await;
}

#[tokio::test]
async fn requests_are_kept_as_they_came() {
    let (upstream, _ana) = start().await;
    ask(&upstream, &format!("{RESPONSES}?a=1"), turn()).await;
    ask(&upstream, "/v1/models", Value::Null).await;
    let requests = upstream.wait_for_requests(2).await;
    assert_eq!(requests[0].target, format!("{RESPONSES}?a=1"));
    assert_eq!(requests[0].body, turn().to_string());
    assert_eq!(requests[0].account.as_deref(), Some("acct-ana"));
    assert_eq!(requests[0].header("authorization"), Some("Bearer at-ana"));
    assert_ne!(requests[0].connection, requests[1].connection);
    assert_eq!(upstream.wait_for_turns(1).await.len(), 1);
}

#[tokio::test]
async fn http2_is_spoken_by_prior_knowledge() {
    let (upstream, _ana) = start().await;
    let stream = TcpStream::connect(upstream.address())
        .await
        .expect("connected");
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("a handshake");
    tokio::spawn(connection);
    let mut asked = request(RESPONSES, "at-ana", turn().to_string());
    asked.headers_mut().remove("host");
    *asked.uri_mut() = format!("{}{RESPONSES}", upstream.api_url())
        .parse()
        .expect("a URI");
    let response = sender.send_request(asked).await.expect("an answer");
    let body = response
        .into_body()
        .collect()
        .await
        .expect("a whole body")
        .to_bytes();
    assert_eq!(events(&body).len(), 11);
    assert_eq!(upstream.requests()[0].version, http::Version::HTTP_2);
}

#[tokio::test]
async fn compressed_requests_are_read() {
    let (upstream, _ana) = start().await;
    let body = zstd::stream::encode_all(turn().to_string().as_bytes(), 3).expect("encoded");
    let mut asked = request(RESPONSES, "at-ana", body.clone());
    asked
        .headers_mut()
        .insert("content-encoding", "zstd".parse().expect("a value"));
    let response = send(&upstream, asked).await.expect("an answer");
    let answer = response
        .into_body()
        .collect()
        .await
        .expect("a whole body")
        .to_bytes();
    assert_eq!(
        events(&answer).last().expect("an event").1["response"]["model"],
        "gpt-5.4"
    );
    assert_eq!(upstream.requests()[0].body, body);
}

#[tokio::test]
async fn stopping_closes_listener_and_connections() {
    let (upstream, ana) = start().await;
    let gate = Gate::new();
    ana.then(Reply::ok().hold_after(1, &gate));
    let response = send(&upstream, request(RESPONSES, "at-ana", turn().to_string()))
        .await
        .expect("a head");
    upstream.stop().await;
    assert!(
        response.into_body().collect().await.is_err(),
        "the stream was cut"
    );
    assert!(TcpStream::connect(upstream.address()).await.is_err());
    assert_eq!(upstream.abandoned(), 0);
}
