//! Whose credential serves a request, and requests without a usable one.

use std::collections::BTreeSet;

use http::StatusCode;
use serde_json::json;
use tollgate_tests::upstream::Reply;
use tollgate_tests::{Rig, over_both, turn, user, wait_for_rows};

use super::{check_error, only, team_rig};

// 5. Whose credential

over_both!(each_user_is_served_by_the_users_own_credential);
async fn each_user_is_served_by_the_users_own_credential() {
    let mut rig = Rig::new().await;
    let config = rig.config(json!({
        "credentials": [rig.oauth("a"), rig.oauth("b")],
        "users": [
            {"name": "alice", "token": "token-alice", "credential": "b"},
            {"name": "bob", "token": "token-bob", "credential": "a"},
        ],
    }));
    let client = rig.start(config).await;
    for (token, account) in [("token-alice", "account-b"), ("token-bob", "account-a")] {
        client.token(token).turn(&turn("one")).await;
        let seen = rig.upstream.turns().pop().expect("a turn");
        assert_eq!(seen.account.as_deref(), Some(account), "{token}");
    }
    rig.stop().await;
}

over_both!(without_users_the_first_entry_is_used_whether_credential_or_pool);
async fn without_users_the_first_entry_is_used_whether_credential_or_pool() {
    let pool = |tag: &str| json!({"tag": tag, "type": "fallback", "credentials": ["b", "a"]});
    for (first, account) in [("credential", "account-a"), ("pool", "account-b")] {
        let mut rig = Rig::new().await;
        let (a, b) = (rig.oauth("a"), rig.oauth("b"));
        let credentials = if first == "pool" {
            json!([pool("p"), a, b])
        } else {
            json!([a, b, pool("p")])
        };
        let config = rig.config(json!({ "credentials": credentials }));
        let client = rig.start(config).await;
        // A token is of no meaning here, and none of upstream's business.
        client.token("whatever").turn(&turn("one")).await;
        assert_eq!(
            only(rig.upstream.turns()).account.as_deref(),
            Some(account),
            "{first} first"
        );
        rig.stop().await;
    }
}

over_both!(the_single_credential_of_a_simple_service_serves_everybody);
async fn the_single_credential_of_a_simple_service_serves_everybody() {
    let mut rig = Rig::new().await;
    let credential = rig.oauth("a");
    let config = rig.config(json!({
        "credential_path": credential["credential_path"],
        "users": [{"name": "alice", "token": "token-alice"}],
    }));
    let client = rig.start(config).await;
    assert_eq!(
        client.turn(&turn("one")).await.status,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        client.token("token-alice").turn(&turn("one")).await.status,
        StatusCode::OK
    );
    assert_eq!(
        only(rig.upstream.turns()).account.as_deref(),
        Some("account-a")
    );
    rig.stop().await;
}

// 7. No usable credential

over_both!(a_limited_pool_answers_429_and_an_empty_one_503);
async fn a_limited_pool_answers_429_and_an_empty_one_503() {
    let (mut rig, client) = team_rig().await;
    let client = client.token("token-alice");
    rig.account("a")
        .then(Reply::usage_limit_reached().resets_in_seconds(600));
    for _ in 0..2 {
        let answer = client.turn(&turn("one")).await;
        check_error(
            &answer,
            429,
            "usage_limit_reached",
            Some("credentials_exhausted"),
            "",
        );
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(
        rig.upstream.turns().len(),
        1,
        "the second was answered by the gateway alone"
    );
    rig.stop().await;

    let mut rig = Rig::new().await;
    let config = rig
        .config(json!({ "credentials": [{"tag": "a", "credential_path": rig.path("none.json")}] }));
    let client = rig.start(config).await;
    check_error(
        &client.turn(&turn("one")).await,
        503,
        "server_error",
        Some("credentials_unavailable"),
        "",
    );
    assert!(rig.forwarded().is_empty());
    rig.stop().await;
}

over_both!(a_429_to_an_api_key_reaches_the_client_as_it_was_and_pauses_nothing);
async fn a_429_to_an_api_key_reaches_the_client_as_it_was_and_pauses_nothing() {
    let mut rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [rig.api_key("k")] }));
    let client = rig.start(config).await;
    let body = r#"{"error":{"type":"tokens","code":"rate_limit_exceeded","message":"try again in 600 s"}}"#;
    let refused = Reply::raw(429, body)
        .retry_after("600")
        .header("x-ratelimit-remaining-requests", "0");
    rig.upstream.api_key("sk-k", "k").then(refused);
    let answer = client.turn(&turn("one")).await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (StatusCode::TOO_MANY_REQUESTS, body)
    );
    for (name, value) in [
        ("retry-after", "600"),
        ("x-ratelimit-remaining-requests", "0"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
    assert_eq!(rig.credential("k").await["state"], "ready");
    assert_eq!(
        client.turn(&turn("one")).await.status,
        StatusCode::OK,
        "it is asked again at once"
    );
    let rows = wait_for_rows(&rig.ledger(), 2).await;
    assert_eq!(rows[0].attempts(), [("k".to_owned(), "429".to_owned())]);
    assert_eq!(
        (rows[0].number("status"), rows[0].text("end")),
        (Some(429), Some("failed"))
    );
    rig.stop().await;
}

over_both!(a_connection_to_upstream_serves_one_credential_alone_and_that_again_and_again);
async fn a_connection_to_upstream_serves_one_credential_alone_and_that_again_and_again() {
    const TURNS: usize = 6;
    let mut rig = Rig::new().await;
    let user = |tag: &str| user(tag, tag);
    let credentials = json!([rig.oauth("a"), rig.oauth("b"), rig.api_key("k")]);
    let tags = ["a", "b", "k"];
    let config = rig.config(json!({ "credentials": credentials, "users": tags.map(user) }));
    // No poll opens another connection meanwhile.
    let client = rig.start_polled(config).await;
    for _ in 0..TURNS {
        for tag in tags {
            assert!(
                client
                    .token(&format!("token-{tag}"))
                    .turn(&turn("one"))
                    .await
                    .whole
            );
        }
    }
    let turns = rig.upstream.turns();
    let of = |tag: &str| -> BTreeSet<u64> {
        let token = if tag == "k" {
            "Bearer sk-k".to_owned()
        } else {
            format!("Bearer access-{tag}")
        };
        let own = turns
            .iter()
            .filter(|seen| seen.header("authorization") == Some(&token));
        own.map(|seen| seen.connection).collect()
    };
    let each = tags.map(of);
    assert!(
        each.iter().all(|own| (1..TURNS / 2).contains(&own.len())),
        "connections are not used again: {each:?}"
    );
    let together: BTreeSet<_> = each.iter().flatten().collect();
    assert_eq!(
        together.len(),
        each.iter().map(BTreeSet::len).sum::<usize>(),
        "two share a connection: {each:?}"
    );
    rig.stop().await;
}
