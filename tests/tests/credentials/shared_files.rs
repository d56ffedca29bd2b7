//! Credentials that name one file: one login with one refresh, whose limits count for all of them.

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::upstream::{Reply, Standing, TokenReply, WAIT_MAX};
use tollgate_tests::{Client, Nowhere, Rig, turn, unix_in, user};

use crate::checks::check_served;

/// Returns a configuration with two services whose credential is `one` and `two`.
fn two_services(rig: &Rig, one: Value, two: Value) -> Value {
    let mut config = rig.config(json!({ "tag": "one", "credentials": [one] }));
    let second = rig.config(json!({ "tag": "two", "credentials": [two] }));
    let services = config["services"].as_array_mut().expect("a list");
    services.push(second["services"][0].clone());
    config
}

/// Starts the gateway, and returns a client of each service.
async fn start(rig: &mut Rig, config: Value) -> Vec<Client> {
    rig.start(config).await;
    rig.listening().into_iter().map(Client::new).collect()
}

/// As [`start`], once upstream was asked for the use of each credential.
async fn start_polled(rig: &mut Rig, config: Value) -> Vec<Client> {
    rig.start_polled(config).await;
    rig.listening().into_iter().map(Client::new).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn services_of_one_file_refresh_its_tokens_once() {
    let mut rig = Rig::new().await;
    let (credential, login) = rig.expiring_login("a", -60);
    login.always_for_token(TokenReply::well());
    // Spelled in another way.
    let mut other = credential.clone();
    other["credential_path"] = json!(rig.folder().join(".").join("a.json"));
    let config = two_services(&rig, credential, other);
    let clients = start(&mut rig, config).await;
    let (first, second) = (turn("one"), turn("two"));
    let answers = tokio::join!(clients[0].turn(&first), clients[1].turn(&second));
    check_served("the first", &answers.0);
    check_served("the second", &answers.1);
    assert_eq!((login.post_count(), login.reuses()), (1, 0));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_counts_for_every_service_of_the_file() {
    let mut rig = Rig::new().await;
    let config = two_services(&rig, rig.oauth("a"), rig.oauth("a"));
    rig.account("a")
        .then(Reply::usage_limit_reached().resets_in_seconds(600));
    let clients = start_polled(&mut rig, config).await;
    for client in &clients {
        let answer = client.turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    }
    assert_eq!(rig.forwarded().len(), 1, "upstream is asked once");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_one_file_have_separate_caps_and_one_capacity() {
    let mut rig = Rig::new().await;
    let reserved = rig.oauth("a");
    let mut whole = reserved.clone();
    (whole["tag"], whole["limit_5h"]) = (json!("whole"), json!(100));
    let mut reserved = reserved;
    reserved["reserve_5h"] = json!(50);
    let pool = json!({ "tag": "pool", "type": "balancer", "credentials": ["a", "whole"],
        "strategy": "fallback" });
    let config = rig.config(json!({
        "credentials": [reserved, whole, pool],
        "users": ([user("a", "a"), user("whole", "whole"), user("pool", "pool")]),
    }));
    let standing = Standing::new("plus")
        .five_hour_used(60.0)
        .five_hour_resets_at(unix_in(3000));
    rig.account("a").set_standing(standing);
    let client = rig.start_polled(config).await;
    let turn_of = async |name: &str| {
        let client = client.token(&format!("token-{name}"));
        client.turn(&turn(name)).await.status
    };
    assert_eq!(turn_of("a").await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(turn_of("whole").await, StatusCode::OK);
    assert_eq!(turn_of("pool").await, StatusCode::OK);
    let status = client
        .token("token-pool")
        .get("/ocm/v1/status")
        .await
        .json();
    assert_eq!(status["plan_weight"], 1.0, "the account counts once");
    // With the larger of the caps: 40 percent are left.
    assert_eq!(status["five_hour_utilization"], 60.0);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_comes_later_serves_every_service() {
    let mut rig = Rig::new().await;
    let credential = rig.oauth("a");
    let path = rig.path("a.json");
    let file = std::fs::read(&path).expect("it is there");
    std::fs::remove_file(&path).expect("it can be removed");
    let config = two_services(&rig, credential.clone(), credential);
    let clients = start(&mut rig, config).await;
    for client in &clients {
        let answer = client.turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    std::fs::write(&path, file).expect("the folder can be written");
    rig.wait_for_state("a", "ready").await;
    for client in &clients {
        check_served("later", &client.turn(&turn("two")).await);
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_joins_the_login_of_its_file_on_a_reload() {
    let mut rig = Rig::new().await;
    let mut config = two_services(&rig, rig.oauth("a"), rig.oauth("b"));
    rig.account("a")
        .then(Reply::usage_limit_reached().resets_in_seconds(600));
    let clients = start_polled(&mut rig, config.clone()).await;
    let limited = clients[0].turn(&turn("one")).await;
    assert_eq!(limited.status, StatusCode::TOO_MANY_REQUESTS);
    check_served("its own account", &clients[1].turn(&turn("one")).await);
    config["services"][1]["credentials"][0] = config["services"][0]["credentials"][0].clone();
    rig.configure(&config).await.expect("it is accepted");
    let joined = clients[1].turn(&turn("two")).await;
    assert_eq!(joined.status, StatusCode::TOO_MANY_REQUESTS);
    rig.stop().await;
}

/// Returns a configuration whose entries all name the file of `credential`: `dead0`, `dead1`, …,
/// whose outbound refuses connections, then `fine` without one, and a pool of them in that order.
/// Each entry has a user of the same name, and `pool` uses the pool.
fn beside_dead_outbounds(rig: &Rig, credential: &Value, nowhere: &Nowhere) -> Value {
    let mut entries: Vec<Value> = Vec::new();
    for tag in ["dead0", "dead1", "dead2", "fine"] {
        let mut entry = credential.clone();
        entry["tag"] = json!(tag);
        if tag != "fine" {
            entry["detour"] = json!("out");
        }
        entries.push(entry);
    }
    let tags: Vec<Value> = entries.iter().map(|entry| entry["tag"].clone()).collect();
    let pool = json!({ "tag": "pool", "type": "fallback", "credentials": tags });
    let mut users: Vec<Value> = ["dead0", "dead1", "dead2", "fine"]
        .map(|tag| user(tag, tag))
        .into();
    users.push(user("pool", "pool"));
    entries.push(pool);
    let mut config = rig.config(json!({ "credentials": entries, "users": users }));
    config["outbounds"] = json!([{
        "type": "socks", "tag": "out", "server": "127.0.0.1", "server_port": nowhere.port(),
    }]);
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_outbounds_of_other_entries_delay_no_refresh_and_no_poll() {
    let mut rig = Rig::new().await;
    let nowhere = Nowhere::new();
    let (credential, login) = rig.expiring_login("a", -60);
    login.always_for_token(TokenReply::well());
    let config = beside_dead_outbounds(&rig, &credential, &nowhere);
    let client = rig.start(config).await.token("token-fine");
    check_served("fine", &client.turn(&turn("one")).await);
    assert_eq!((login.post_count(), login.reuses()), (1, 0));
    let is_polled = |found: &Value| found["polled_at"].is_u64();
    rig.wait_for_credential("fine", WAIT_MAX, "it is polled", is_polled)
        .await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_over_a_dead_outbound_alone_fails_and_says_why() {
    let mut rig = Rig::new().await;
    let nowhere = Nowhere::new();
    let (mut credential, login) = rig.expiring_login("a", -60);
    credential["detour"] = json!("out");
    let mut config = rig.config(json!({ "credentials": [credential] }));
    config["outbounds"] = json!([{
        "type": "socks", "tag": "out", "server": "127.0.0.1", "server_port": nowhere.port(),
    }]);
    rig.start(config).await;
    let found = rig.wait_for_state("a", "cannot_refresh").await;
    let reason = found["reason"].as_str().expect("a reason");
    assert!(reason.contains("outbound \"out\""), "{reason}");
    assert_eq!(login.post_count(), 0);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_names_the_failing_outbound_of_each_entry() {
    let mut rig = Rig::new().await;
    let nowhere = Nowhere::new();
    let credential = rig.oauth("a");
    let config = beside_dead_outbounds(&rig, &credential, &nowhere);
    let client = rig.start(config).await;
    // All but the last one fail, and then a response arrives.
    check_served("pool", &client.token("token-pool").turn(&turn("one")).await);
    for tag in ["dead0", "dead1", "dead2"] {
        let failure = rig.credential(tag).await["connect_failure"].to_string();
        assert!(failure.contains("out"), "{tag}: {failure}");
    }
    let fine = rig.credential("fine").await;
    assert_eq!(fine["connect_failure"], Value::Null);
    rig.stop().await;
}
