//! Sockets that close after their turn.

use std::time::{Duration, Instant};

use serde_json::json;
use tollgate_tests::upstream::{Gate, Reply, SocketReply, Standing};
use tollgate_tests::{Client, Event, rows, turn, unix_in};

use super::{closed, homeless, in_order, last_row, last_socket, open, pool, served};

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_is_used_up_closes_idle_sockets_at_once_and_busy_ones_after_their_turn() {
    let (mut rig, client) = in_order(&["a", "b"]).await;
    let gate = Gate::new();
    rig.account("a")
        .then_socket(SocketReply::begun().hold(&gate).completed());
    let (mut idle, mut busy) = (open(&client).await, open(&client).await);
    busy.create(&turn("busy")).await;
    gate.wait_until_reached().await;
    rig.account("a").then(
        Reply::usage_limit_reached()
            .without_rate_limits()
            .resets_in_seconds(600),
    );
    let bob = Client::new(client.address()).token("token-bob");
    assert_eq!(served(&rig, &bob, &turn("bob's")).await, "account-b");
    assert_eq!(closed(&mut idle).await, 1012);
    gate.open();
    let events = busy.rest_of_turn().await;
    assert_eq!(events.last().expect("events")["type"], "response.completed");
    assert_eq!(closed(&mut busy).await, 1012);
    open(&client).await.turn(&turn("busy")).await;
    assert_eq!(last_socket(&rig), "account-b");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_closes_idle_sockets_at_once_and_busy_ones_after_their_turn() {
    let (mut rig, client) = in_order(&["a"]).await;
    let gate = Gate::new();
    rig.account("a")
        .then_socket(SocketReply::begun().hold(&gate).completed());
    let (mut idle, mut over_http2) = (open(&client).await, open(&client.http2()).await);
    let mut busy = open(&client).await;
    busy.create(&turn("busy")).await;
    gate.wait_until_reached().await;
    let stopping = tokio::spawn(async move {
        rig.stop().await;
        rig
    });
    assert_eq!(closed(&mut idle).await, 1012);
    assert_eq!(closed(&mut over_http2).await, 1012);
    gate.open();
    busy.rest_of_turn().await;
    assert_eq!(closed(&mut busy).await, 1012);
    let rig = stopping.await.expect("no panic");
    assert_eq!(last_row(&rig).text("end"), Some("complete"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_past_drain_timeout_is_cut_and_recorded() {
    let (mut rig, client) = pool(&["a"], json!({}), json!({ "drain_timeout": "300ms" })).await;
    let gate = Gate::new();
    rig.account("a")
        .then_socket(SocketReply::begun().hold(&gate));
    let mut socket = open(&client).await;
    socket.create(&turn("cut")).await;
    gate.wait_until_reached().await;
    let begun = Instant::now();
    rig.stop().await;
    assert!(
        begun.elapsed() >= Duration::from_millis(300) && begun.elapsed() < Duration::from_secs(10)
    );
    while matches!(socket.next().await, Event::Text(_)) {}
    let all = rows(&rig.ledger());
    assert_eq!(all.len(), 1);
    assert!(
        all[0]
            .text("end")
            .is_some_and(|end| ["client_gone", "upstream_gone"].contains(&end)),
        "{all:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_policy_moves_is_closed_after_its_turn_and_reopens_elsewhere() {
    let (mut rig, client) =
        pool(&["a", "b"], json!({ "rebalance_threshold": 20 }), json!({})).await;
    let client = client.header("session-id", "session-1");
    let using = |weekly: f64| {
        SocketReply::begun()
            .rate_limits(&Standing::new("plus").weekly_used(weekly))
            .completed()
    };
    let mut socket = open(&client).await;
    assert_eq!(last_socket(&rig), "account-a");
    for weekly in [10.0, 20.0, 20.5] {
        rig.account("a").then_socket(using(weekly));
        let events = socket.turn(&turn("session-1")).await;
        assert_eq!(
            events.last().expect("events")["type"],
            "response.completed",
            "at {weekly}"
        );
    }
    assert_eq!(closed(&mut socket).await, 1012);
    let mut again = open(&client).await;
    assert_eq!(last_socket(&rig), "account-b");
    again.turn(&turn("session-1")).await;
    again.turn(&turn("session-1")).await;
    rig.stop().await;
}

/// A rotation would choose another member each time. Of two that stand in for the home, neither is
/// better.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_away_from_a_briefly_unavailable_home_stays_open() {
    for strategy in ["round_robin", "random", "least_used"] {
        let members = ["a", "b", "c"];
        let (mut rig, client) = pool(&members, json!({ "strategy": strategy }), json!({})).await;
        let client = client.header("session-id", "session-1");
        let mut socket = open(&client).await;
        let home = last_socket(&rig);
        let full = Standing::new("plus")
            .five_hour_used(100.0)
            .five_hour_resets_at(unix_in(300));
        rig.account(
            home.strip_prefix("account-")
                .expect("an account of the rig"),
        )
        .then_socket(SocketReply::begun().rate_limits(&full).completed());
        socket.turn(&turn("session-1")).await;
        assert_eq!(
            closed(&mut socket).await,
            1012,
            "{strategy}: {home} is full"
        );
        let mut socket = open(&client).await;
        assert_ne!(last_socket(&rig), home, "{strategy}");
        for place in 0..6 {
            let events = socket.turn(&turn("session-1")).await;
            assert_eq!(
                events.last().expect("events")["type"],
                "response.completed",
                "{strategy}: turn {place}"
            );
        }
        assert_eq!(rig.upstream.sockets().len(), 2, "{strategy}");
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_made_on_a_socket_is_continued_by_the_credential_that_made_it() {
    let (mut rig, client) = pool(&["a", "b"], json!({}), json!({})).await;
    let mut socket = open(&client).await;
    assert_eq!(last_socket(&rig), "account-a");
    // From now on, a free choice falls on b.
    let used = Standing::new("plus").weekly_used(50.0);
    rig.account("a").then_socket(
        SocketReply::begun()
            .rate_limits(&used)
            .completed()
            .response_id("resp_ws"),
    );
    socket.turn(&homeless()).await;
    let mut after = homeless();
    after["previous_response_id"] = json!("resp_ws");
    let bob = Client::new(client.address()).token("token-bob");
    assert_eq!(served(&rig, &client, &homeless()).await, "account-b");
    assert_eq!(served(&rig, &client, &after).await, "account-a");
    assert_eq!(
        served(&rig, &bob, &after).await,
        "account-b",
        "it is not bob's"
    );
    rig.stop().await;
}
