//! Sessions and responses that stay with their credential, and when they move.

use serde_json::json;
use tollgate_tests::upstream::{Reply, Standing};
use tollgate_tests::{Rig, over_both, turn, unix_in, user, wait_for_rows};

use super::{planned, served, start, tell, wait_until_served_by, without_session};

// Stickiness

const SESSION_HEADERS: [&str; 5] = [
    "session_id",
    "session-id",
    "x-session-id",
    "conversation_id",
    "thread-id",
];

over_both!(a_session_is_identified_by_each_header_and_by_the_cache_key);
async fn a_session_is_identified_by_each_header_and_by_the_cache_key() {
    let (mut rig, client) = start(&["a", "b", "c"], json!({ "strategy": "round_robin" })).await;
    let alice = client.token("token-alice");
    let named = SESSION_HEADERS.map(|name| {
        (
            name,
            alice.header(name, &format!("by-{name}")),
            without_session(),
        )
    });
    for (name, client, body) in
        named
            .into_iter()
            .chain([("prompt_cache_key", alice.clone(), turn("by-key"))])
    {
        let home = served(&rig, &client, &body).await;
        let next = served(&rig, &alice, &without_session()).await;
        assert_ne!(next, home, "requests without a session keep rotating");
        for _ in 0..3 {
            assert_eq!(served(&rig, &client, &body).await, home, "{name}");
        }
    }
    rig.stop().await;
}

over_both!(the_first_session_key_found_counts);
async fn the_first_session_key_found_counts() {
    let (mut rig, client) = start(&["a"], json!({})).await;
    let client = client.token("token-alice");
    for (place, name) in SESSION_HEADERS.iter().enumerate() {
        // This header and all those after it, in the opposite order, and the body's key.
        let later = SESSION_HEADERS[place..].iter().rev();
        let client = later.fold(client.clone(), |client, header| {
            client.header(header, &format!("by-{header}"))
        });
        client.turn(&turn("by-key")).await;
        let rows = wait_for_rows(&rig.ledger(), place + 1).await;
        assert_eq!(
            rows[place].text("session"),
            Some(format!("by-{name}").as_str())
        );
    }
    client.turn(&turn("by-key")).await;
    client.turn(&without_session()).await;
    let found: Vec<Option<String>> = wait_for_rows(&rig.ledger(), SESSION_HEADERS.len() + 2).await
        [SESSION_HEADERS.len()..]
        .iter()
        .map(|row| row.text("session").map(str::to_owned))
        .collect();
    assert_eq!(found, [Some("by-key".to_owned()), None]);
    rig.stop().await;
}

over_both!(a_session_belongs_to_its_user);
async fn a_session_belongs_to_its_user() {
    let (mut rig, client) = start(&["a", "b", "c"], json!({ "strategy": "round_robin" })).await;
    let (alice, bob) = (client.token("token-alice"), client.token("token-bob"));
    assert_eq!(served(&rig, &alice, &turn("one")).await, "a");
    assert_eq!(served(&rig, &bob, &turn("one")).await, "b");
    assert_eq!(served(&rig, &alice, &turn("one")).await, "a");
    assert_eq!(served(&rig, &bob, &turn("one")).await, "b");
    rig.stop().await;
}

over_both!(a_session_keeps_its_credential_until_that_is_over_its_cap);
async fn a_session_keeps_its_credential_until_that_is_over_its_cap() {
    let (mut rig, client) = start(&["a", "b"], json!({})).await;
    let alice = client.token("token-alice");
    assert_eq!(served(&rig, &alice, &turn("one")).await, "a");
    tell(&rig, &client, "a", Standing::new("plus").weekly_used(98.0)).await;
    assert_eq!(served(&rig, &alice, &turn("one")).await, "a");
    assert_eq!(served(&rig, &alice, &turn("two")).await, "b");
    tell(&rig, &client, "a", Standing::new("plus").weekly_used(99.0)).await;
    assert_eq!(served(&rig, &alice, &turn("one")).await, "b");
    assert_eq!(
        rig.upstream.turns().len(),
        6,
        "no credential over its cap is used"
    );
    rig.stop().await;
}

over_both!(a_temporary_failover_does_not_move_a_sessions_home);
async fn a_temporary_failover_does_not_move_a_sessions_home() {
    for strategy in ["least_used", "round_robin", "random"] {
        let (mut rig, client) = start(&["a", "b"], json!({ "strategy": strategy })).await;
        let alice = client.token("token-alice");
        let home = served(&rig, &alice, &turn("one")).await;
        rig.account(&home).then(
            Reply::usage_limit_reached()
                .without_rate_limits()
                .resets_in_seconds(1),
        );
        assert_ne!(served(&rig, &alice, &turn("one")).await, home, "{strategy}");
        wait_until_served_by(&rig, &alice, &turn("one"), &home).await;
        rig.stop().await;
    }
}

over_both!(a_full_window_that_resets_soon_does_not_move_a_sessions_home);
async fn a_full_window_that_resets_soon_does_not_move_a_sessions_home() {
    for strategy in ["least_used", "round_robin", "random"] {
        let (mut rig, client) = start(&["a", "b"], json!({ "strategy": strategy })).await;
        let alice = client.token("token-alice");
        let home = served(&rig, &alice, &turn("one")).await;
        let full = Standing::new("plus")
            .five_hour_used(99.0)
            .five_hour_resets_at(unix_in(3));
        tell(&rig, &client, &home, full).await;
        assert_ne!(served(&rig, &alice, &turn("one")).await, home, "{strategy}");
        wait_until_served_by(&rig, &alice, &turn("one"), &home).await;
        rig.stop().await;
    }
}

over_both!(a_response_is_continued_by_the_credential_that_issued_it);
async fn a_response_is_continued_by_the_credential_that_issued_it() {
    let (mut rig, client) = start(&["a", "b"], json!({})).await;
    let (alice, bob) = (client.token("token-alice"), client.token("token-bob"));
    // From now on, requests without a session go to b.
    rig.account("a")
        .set_standing(Standing::new("plus").weekly_used(50.0));
    let after = |previous: &str| {
        let mut body = without_session();
        body["previous_response_id"] = json!(previous);
        body
    };
    for (id, stream) in [("resp_streamed", true), ("resp_whole", false)] {
        rig.account("a").then(Reply::ok().response_id(id));
        let mut body = without_session();
        body["stream"] = json!(stream);
        // On a: by a session that has its home there.
        body["prompt_cache_key"] = json!("on-a");
        assert_eq!(served(&rig, &alice, &body).await, "a");
        assert_eq!(served(&rig, &alice, &without_session()).await, "b");
        assert_eq!(served(&rig, &alice, &after(id)).await, "a", "{id}");
        assert_eq!(
            served(&rig, &bob, &after(id)).await,
            "b",
            "{id} is not bob's"
        );
        assert_eq!(served(&rig, &alice, &after("resp_unknown")).await, "b");
    }
    tell(&rig, &client, "a", Standing::new("plus").weekly_used(99.0)).await;
    assert_eq!(
        served(&rig, &alice, &after("resp_whole")).await,
        "b",
        "its issuer is not usable any more"
    );
    rig.stop().await;
}

over_both!(a_response_is_continued_by_its_issuer_under_every_strategy);
async fn a_response_is_continued_by_its_issuer_under_every_strategy() {
    for strategy in ["round_robin", "random", "fallback"] {
        let (mut rig, client) = start(&["a", "b", "c"], json!({ "strategy": strategy })).await;
        let alice = client.token("token-alice");
        if strategy == "fallback" {
            // So that the issuer is not the first in order.
            rig.account("a").then(
                Reply::usage_limit_reached()
                    .without_rate_limits()
                    .resets_in_seconds(1),
            );
        }
        rig.account("b").then(Reply::ok().response_id("resp_1"));
        rig.account("c").then(Reply::ok().response_id("resp_1"));
        let mut body = without_session();
        let issuer = loop {
            let tag = served(&rig, &alice, &body).await;
            if tag != "a" {
                break tag;
            }
        };
        if strategy == "fallback" {
            wait_until_served_by(&rig, &alice, &without_session(), "a").await;
        }
        body["previous_response_id"] = json!("resp_1");
        for _ in 0..6 {
            assert_eq!(served(&rig, &alice, &body).await, issuer, "{strategy}");
        }
        rig.stop().await;
    }
}

// Rebalancing

over_both!(a_session_moves_when_its_credential_is_further_used_than_the_threshold_allows);
async fn a_session_moves_when_its_credential_is_further_used_than_the_threshold_allows() {
    let (mut rig, client) = start(&["a", "b"], json!({ "rebalance_threshold": 20 })).await;
    let alice = client.token("token-alice");
    assert_eq!(served(&rig, &alice, &turn("one")).await, "a");
    tell(&rig, &client, "a", Standing::new("plus").weekly_used(20.0)).await;
    assert_eq!(
        served(&rig, &alice, &turn("one")).await,
        "a",
        "at the threshold it stays"
    );
    tell(&rig, &client, "a", Standing::new("plus").weekly_used(20.5)).await;
    assert_eq!(
        served(&rig, &alice, &turn("one")).await,
        "b",
        "past it it moves"
    );
    tell(&rig, &client, "b", Standing::new("plus").weekly_used(35.0)).await;
    assert_eq!(
        served(&rig, &alice, &turn("one")).await,
        "b",
        "and stays there from now on"
    );
    rig.stop().await;
}

over_both!(the_threshold_is_divided_by_the_plans_weight);
async fn the_threshold_is_divided_by_the_plans_weight() {
    let mut rig = Rig::new().await;
    let credentials = json!([
        planned(&rig, "a", "pro"),
        planned(&rig, "b", "pro"),
        {"tag": "pool", "type": "balancer", "credentials": ["a", "b"], "rebalance_threshold": 20},
    ]);
    let users = json!([user("alice", "pool"), user("a", "a"), user("b", "b")]);
    let config = rig.config(json!({ "credentials": credentials, "users": users }));
    let client = rig.start_polled(config).await;
    let alice = client.token("token-alice");
    assert_eq!(served(&rig, &alice, &turn("one")).await, "a");
    tell(&rig, &client, "a", Standing::new("pro").weekly_used(2.0)).await;
    assert_eq!(served(&rig, &alice, &turn("one")).await, "a");
    tell(&rig, &client, "a", Standing::new("pro").weekly_used(2.5)).await;
    assert_eq!(served(&rig, &alice, &turn("one")).await, "b");
    rig.stop().await;
}
