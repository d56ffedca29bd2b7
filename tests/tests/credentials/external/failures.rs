//! Another gateway as a credential: rate limits, failures and rejected tokens.

use http::StatusCode;
use serde_json::json;
use tollgate_tests::upstream::Standing;
use tollgate_tests::{Rig, over_both, rows, turn, user};

use super::{
    check_exhausted, external, front, last_attempts, limited, outcomes, pool, remote, users,
};

over_both!(its_429_fails_over_and_lasts_as_long_as_it_says);
async fn its_429_fails_over_and_lasts_as_long_as_it_says() {
    let (mut back, url) = remote(&[Standing::new("plus")]).await;
    let (mut rig, client) = front(&url, "fallback", ["x", "a"]).await;
    let client = client.token("token-alice");
    back.account("r0").then(limited(600));
    for attempts in [
        outcomes(&[("x", "429"), ("a", "200")]),
        outcomes(&[("a", "200")]),
    ] {
        assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
        let rows = rows(&rig.ledger());
        assert_eq!(rows[rows.len() - 1].attempts(), attempts);
    }
    rig.account("a").then(limited(900));
    check_exhausted(&client.turn(&turn("one")).await, 600);
    assert_eq!(back.upstream.turns().len(), 1);
    rig.stop().await;
    back.stop().await;
}

over_both!(it_is_used_again_after_its_429_has_ended);
async fn it_is_used_again_after_its_429_has_ended() {
    let (mut back, url) = remote(&[Standing::new("plus")]).await;
    let (mut rig, client) = front(&url, "fallback", ["x", "a"]).await;
    let client = client.token("token-alice");
    back.account("r0").then(limited(1));
    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    assert_eq!(
        last_attempts(&rig, 1).await,
        outcomes(&[("x", "429"), ("a", "200")])
    );
    rig.wait_for_state("x", "ready").await;
    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    assert_eq!(last_attempts(&rig, 2).await, outcomes(&[("x", "200")]));
    rig.stop().await;
    back.stop().await;
}

over_both!(requests_fail_over_if_it_goes_down);
async fn requests_fail_over_if_it_goes_down() {
    let (mut back, url) = remote(&[Standing::new("plus")]).await;
    let (mut rig, client) = front(&url, "fallback", ["x", "a"]).await;
    let client = client.token("token-alice");
    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    assert_eq!(last_attempts(&rig, 1).await, outcomes(&[("x", "200")]));
    back.stop().await;
    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    assert_eq!(
        last_attempts(&rig, 2).await,
        outcomes(&[("x", "unreachable"), ("a", "200")])
    );
    rig.stop().await;
}

over_both!(requests_fail_over_if_it_rejects_the_token);
async fn requests_fail_over_if_it_rejects_the_token() {
    let (mut back, url) = remote(&[Standing::new("plus")]).await;
    let mut rig = Rig::new().await;
    let mut stranger = external("x", &url);
    stranger["token"] = json!("unknown-token");
    let credentials = json!([rig.oauth("a"), stranger, pool("fallback", &["x", "a"])]);
    let config = rig.config(json!({ "credentials": credentials, "users": users() }));
    let client = rig.start(config).await.token("token-alice");
    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    assert_eq!(
        last_attempts(&rig, 1).await,
        outcomes(&[("x", "401"), ("a", "200")])
    );
    // It is avoided for a while.
    assert_eq!(client.turn(&turn("two")).await.status, StatusCode::OK);
    assert_eq!(last_attempts(&rig, 2).await, outcomes(&[("a", "200")]));
    rig.stop().await;
    back.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_not_connected_is_named_to_the_client_if_it_is_the_only_credential() {
    let mut rig = Rig::new().await;
    let credentials = json!([
        { "type": "external", "tag": "x", "token": "unknown-token" },
        rig.oauth("a"),
    ]);
    let mut user = user("alice", "x");
    user["allow_external_usage"] = json!(true);
    let config = rig.config(json!({ "credentials": credentials, "users": [user] }));
    let client = rig.start(config).await.token("token-alice");
    let answer = client.turn(&turn("one")).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let error = &answer.json()["error"];
    assert_eq!(error["code"], "credentials_unavailable");
    assert_eq!(
        error["message"],
        "the credential \"x\" is unavailable: reverse connection not established"
    );
    rig.stop().await;
}
