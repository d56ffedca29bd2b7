//! Reverse connections between two gateways: their requests, and the life of a connection.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::timeout;
use tollgate_tests::reverse::{REVERSE_TOKEN, ReverseScene, back_config, eager, front_config};
use tollgate_tests::upstream::{Gate, Reply, WAIT_MAX};
use tollgate_tests::{Authority, Client, Program, Proxy, Rig, turn, wait_for_rows};

mod connectors;

/// How long 100 streams and a body of 100 MiB may take beside 50 responses.
const LOAD_MAX: Duration = Duration::from_secs(100);

fn outcomes(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(credential, outcome)| ((*credential).to_owned(), (*outcome).to_owned()))
        .collect()
}

/// Returns the attempts of the last of `count` requests.
async fn last_attempts(rig: &Rig, count: usize) -> Vec<(String, String)> {
    wait_for_rows(&rig.ledger(), count).await[count - 1].attempts()
}

async fn wait_until_disconnected(rig: &Rig) {
    rig.wait_for_state("x", "not_connected").await;
}

// Requests

#[tokio::test(flavor = "multi_thread")]
async fn users_of_the_front_are_served_by_the_gateway_behind() {
    let scene = ReverseScene::new().await;

    let answer = scene.alice.turn(&turn("one")).await;

    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert!(answer.whole && answer.text().contains("response.completed"));
    assert!(scene.front.upstream.turns().is_empty());
    let seen = scene.back.upstream.turns();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header("authorization"), Some("Bearer access-far"));
    assert_eq!(seen[0].header("tollgate-hops"), None);
    assert!(!format!("{seen:?}").contains(REVERSE_TOKEN));
    for (rig, user, credential) in [(&scene.front, "alice", "x"), (&scene.back, "front", "far")] {
        let row = &wait_for_rows(&rig.ledger(), 1).await[0];
        assert_eq!(
            (row.text("user"), row.text("credential")),
            (Some(user), Some(credential))
        );
        assert_eq!(row.attempts(), outcomes(&[(credential, "200")]));
        assert_eq!(row.number("output_tokens"), Some(150));
        assert_eq!(row.text("session"), Some("one"), "stickiness works behind");
    }
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_gateway_serves_the_users_of_the_other_over_sse_and_websocket() {
    let mut scene = ReverseScene::new().await;
    // The same token is that of a user of the front, by which the gateway behind forwards to it.
    let mut config = front_config(&scene.front);
    let users = config["services"][0]["users"].as_array_mut();
    users.expect("users").push(json!({
        "name": "back", "token": REVERSE_TOKEN, "credential": "near",
    }));
    scene.front.configure(&config).await.expect("applied");
    let mut config = back_config(&scene.back, scene.alice.address());
    config["services"][0]["users"][1] = json!({
        "name": "carol",
        "token": "token-carol",
        "credential": "up",
        "allow_external_usage": true,
    });
    config["limits"] = eager();
    scene.back.configure(&config).await.expect("applied");

    for (client, served_by) in [(&scene.alice, &scene.back), (&scene.carol, &scene.front)] {
        let before = served_by.upstream.turns().len();
        let answer = client.turn(&turn("sse")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert_eq!(served_by.upstream.turns().len(), before + 1);
        let mut socket = client.socket().await.expect("a socket");
        for _ in 0..2 {
            let events = socket.turn(&turn("socket")).await;
            let last = events.last().expect("events");
            assert_eq!(last["type"], "response.completed", "{last}");
        }
        assert_eq!(served_by.upstream.sockets().len(), 1);
        socket.close(1000, "").await;
    }
    assert_eq!(
        scene.front.credential("x").await["state"],
        "ready",
        "the connection lasts through a new configuration"
    );
    scene.front.stop().await;
    scene.back.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_the_gateway_behind_is_asked_over_the_connection() {
    let scene = ReverseScene::new().await;
    scene
        .front
        .wait_for_credential("x", WAIT_MAX, "it was polled", |x| x["polled_at"].is_u64())
        .await;
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_must_be_a_users_at_the_gateway_behind() {
    let (mut front, mut back) = (Rig::new().await, Rig::new().await);
    let alice = front.start(front_config(&front)).await.token("token-alice");
    let mut config = back_config(&back, alice.address());
    config["services"][0]["users"]
        .as_array_mut()
        .expect("users")
        .remove(0);
    let _carol = back.start(config).await;
    front.wait_for_state("x", "ready").await;
    assert_eq!(alice.turn(&turn("one")).await.status, StatusCode::OK);
    assert_eq!(
        last_attempts(&front, 1).await,
        outcomes(&[("x", "401"), ("near", "200")])
    );
    back.stop().await;
    front.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_streams_and_a_large_body_stall_no_response() {
    let scene = ReverseScene::with_limits(json!({}), eager()).await;
    let begun = Instant::now();
    let body_bytes = 100 * 1024 * 1024;
    let gate = Gate::new();
    // Fifty responses have begun, and wait.
    let account = scene.back.account("far");
    for _ in 0..50 {
        account.then(Reply::ok().deltas(20).hold_after(3, &gate));
    }
    let mut streams = Vec::new();
    for number in 0..50 {
        let body = turn(&format!("held-{number}"));
        streams.push(scene.alice.start_turn(&body).await);
    }
    gate.wait_until_reached_times(50).await;
    // A body of 100 MiB, and 49 more requests, all at once.
    account.then(Reply::raw(200, vec![b'x'; body_bytes]));
    // It is not read to its end before all others have ended: if it stalled them, they never would.
    let mut large = scene.alice.start_turn(&turn("large")).await;
    let first_part = large.part().await.expect("a part").expect("no error");
    let mut others = tokio::task::JoinSet::new();
    for number in 0..49 {
        let alice = scene.alice.clone();
        others.spawn(async move { alice.turn(&turn(&format!("other-{number}"))).await });
    }
    let unstalled = async {
        while let Some(answer) = others.join_next().await {
            let answer = answer.expect("no panic");
            assert!(answer.whole, "{}", answer.status);
            assert_eq!(answer.status, StatusCode::OK);
        }
        gate.open();
        for stream in streams {
            let answer = stream.finish().await;
            assert!(answer.whole && answer.text().contains("response.completed"));
        }
    };
    let unstalled = timeout(LOAD_MAX, unstalled).await;
    unstalled.expect("the large body stalls no other response");
    let large = large.finish().await;
    assert!(large.whole && first_part.len() + large.body.len() == body_bytes);
    assert!(scene.front.upstream.turns().is_empty(), "all went behind");
    assert!(begun.elapsed() < LOAD_MAX, "{:?}", begun.elapsed());
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_the_streams_of_a_connection_go_elsewhere() {
    let limits = json!({ "reverse_streams": 2 });
    let scene = ReverseScene::with_limits(limits, eager()).await;
    let gate = Gate::new();
    let account = scene.back.account("far");
    for _ in 0..2 {
        account.then(Reply::ok().hold_after(1, &gate));
    }
    let first = scene.alice.start_turn(&turn("one")).await;
    let second = scene.alice.start_turn(&turn("two")).await;
    gate.wait_until_reached_times(2).await;
    assert_eq!(
        scene.alice.turn(&turn("three")).await.status,
        StatusCode::OK
    );
    let rows = wait_for_rows(&scene.front.ledger(), 1).await;
    assert_eq!(
        rows[0].attempts(),
        outcomes(&[("x", "unreachable"), ("near", "200")])
    );
    gate.open();
    for stream in [first, second] {
        assert!(stream.finish().await.whole);
    }
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_the_gateway_behind_has_no_stream_for_go_elsewhere() {
    let mut limits = eager();
    limits["reverse_streams"] = json!(2);
    let scene = ReverseScene::with_limits(json!({}), limits).await;
    let gate = Gate::new();
    let account = scene.back.account("far");
    // One stream is enough for the poll and the first turn.
    scene
        .front
        .wait_for_credential("x", WAIT_MAX, "it was polled", |x| x["polled_at"].is_u64())
        .await;
    let mut held = Vec::new();
    for number in 1..=2 {
        account.then(Reply::ok().hold_after(1, &gate));
        held.push(scene.alice.start_turn(&turn("held")).await);
        gate.wait_until_reached_times(number).await;
    }
    for number in 1..=3 {
        let answer = scene.alice.turn(&turn("more")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert_eq!(
            last_attempts(&scene.front, number).await,
            outcomes(&[("x", "unreachable"), ("near", "200")])
        );
    }
    gate.open();
    for stream in held {
        assert!(stream.finish().await.whole);
    }
    scene.stop().await;
}

// The life of a connection

#[tokio::test(flavor = "multi_thread")]
async fn without_a_connection_the_credential_is_unavailable() {
    let mut front = Rig::new().await;
    let mut config = front_config(&front);
    let alice = front.start(config.clone()).await.token("token-alice");
    assert_eq!(
        front.credential("x").await["state"],
        "not_connected",
        "no gateway has connected"
    );
    assert_eq!(alice.turn(&turn("one")).await.status, StatusCode::OK);
    assert_eq!(last_attempts(&front, 1).await, outcomes(&[("near", "200")]));
    config["services"][0]["users"][0]["credential"] = json!("x");
    front.configure(&config).await.expect("applied");
    let answer = alice.turn(&turn("one")).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.json()["error"]["code"], "credentials_unavailable");
    front.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_connects_again_after_the_other_one_restarted() {
    let mut scene = ReverseScene::new().await;
    let address = scene.alice.address();
    scene.front.stop().await;
    let mut config = front_config(&scene.front);
    config["services"][0]["listen_port"] = json!(address.port());
    let alice = scene.front.start(config).await.token("token-alice");
    scene.front.wait_for_state("x", "ready").await;
    assert_eq!(alice.turn(&turn("one")).await.status, StatusCode::OK);
    assert_eq!(scene.back.upstream.turns().len(), 1);
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_ends_its_responses_first() {
    let mut scene = ReverseScene::new().await;
    let gate = Gate::new();
    let account = scene.back.account("far");
    account.then(Reply::ok().deltas(5).hold_after(2, &gate));
    let stream = scene.alice.start_turn(&turn("one")).await;
    gate.wait_until_reached().await;
    // Another request has no head yet.
    account.then(Reply::ok().hold_head(&gate));
    let alice = scene.alice.clone();
    let headless = tokio::spawn(async move { alice.turn(&turn("headless")).await });
    gate.wait_until_reached_times(2).await;
    let front = &scene.front;
    tokio::join!(scene.back.stop(), async {
        // From its announcement on, requests go elsewhere.
        wait_until_disconnected(front).await;
        assert_eq!(scene.alice.turn(&turn("two")).await.status, StatusCode::OK);
        gate.open();
    });
    let answer = stream.finish().await;
    assert!(answer.whole && answer.text().contains("response.completed"));
    let answer = headless.await.expect("no panic");
    assert!(answer.whole && answer.text().contains("response.completed"));
    assert_eq!(scene.front.upstream.turns().len(), 1);
    scene.front.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_the_configuration_loses_ends_its_connection() {
    let scene = ReverseScene::new().await;
    let mut config = back_config(&scene.back, scene.alice.address());
    config["services"][0]["credentials"]
        .as_array_mut()
        .expect("credentials")
        .pop();
    scene.back.configure(&config).await.expect("applied");
    wait_until_disconnected(&scene.front).await;
    scene.stop().await;

    let scene = ReverseScene::new().await;
    let mut config = front_config(&scene.front);
    config["services"][0]["credentials"][0]["token"] = json!("another-token");
    scene.front.configure(&config).await.expect("applied");
    wait_until_disconnected(&scene.front).await;
    assert_eq!(scene.alice.turn(&turn("one")).await.status, StatusCode::OK);
    assert_eq!(scene.front.upstream.turns().len(), 1);
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_with_a_url_prefers_the_connection_while_there_is_one() {
    // The scripted upstream of the front stands in for the gateway at the URL.
    let (mut front, mut back) = (Rig::new().await, Rig::new().await);
    let direct = front.upstream.api_key(REVERSE_TOKEN, "direct");
    let mut config = front_config(&front);
    config["services"][0]["credentials"][0]["url"] = json!(front.upstream.api_url());
    let alice = front.start(config).await.token("token-alice");
    let gate = Gate::new();
    direct.then(Reply::ok().deltas(5).hold_after(2, &gate));
    let stream = alice.start_turn(&turn("before")).await;
    gate.wait_until_reached().await;

    let mut config = back_config(&back, alice.address());
    config["limits"] = eager();
    back.start(config).await;
    wait_for_turn_behind(&alice, &back).await;
    gate.open();
    assert!(stream.finish().await.whole, "it continues at the URL");

    back.stop().await;
    let before = front.upstream.turns().len();
    assert_eq!(alice.turn(&turn("after")).await.status, StatusCode::OK);
    assert_eq!(front.upstream.turns().len(), before + 1);
    front.stop().await;
}

/// Sends turns until one is served by the gateway behind.
async fn wait_for_turn_behind(client: &Client, back: &Rig) {
    let begun = Instant::now();
    while back.upstream.turns().is_empty() {
        assert!(begun.elapsed() < WAIT_MAX, "no turn over the connection");
        assert_eq!(client.turn(&turn("during")).await.status, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_and_a_port_replace_those_of_the_url() {
    let mut front = Rig::new().await;
    let alice = front.start(front_config(&front)).await;
    let mut back = Rig::new().await;
    let mut config = back_config(&back, alice.address());
    let up = &mut config["services"][0]["credentials"][1];
    up["url"] = json!("http://gateway.invalid:1");
    up["server"] = json!("127.0.0.1");
    up["server_port"] = json!(alice.address().port());
    back.start(config).await;
    front.wait_for_state("x", "ready").await;
    back.stop().await;
    front.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_is_made_through_the_detour() {
    for kind in ["socks", "http"] {
        let proxy = Proxy::start().await;
        let mut front = Rig::new().await;
        let alice = front.start(front_config(&front)).await;
        let mut back = Rig::new().await;
        let mut config = back_config(&back, alice.address());
        config["services"][0]["credentials"][1]["detour"] = json!("out");
        config["outbounds"] = json!([proxy.outbound(kind, "out")]);
        back.start(config).await;
        front.wait_for_state("x", "ready").await;
        let tunnels = proxy.tunnels();
        assert_eq!(tunnels.len(), 1, "{kind}: {tunnels:?}");
        back.stop().await;
        front.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_is_made_over_tls() {
    let authority = Authority::new();
    let certificate = authority.sign(&["127.0.0.1"]);
    let mut front = Rig::new().await;
    let mut config = front_config(&front);
    config["services"][0]["tls"] = json!({
        "enabled": true,
        "certificate": certificate.pem,
        "key": certificate.key,
    });
    let alice = front.start(config).await;
    let back = Rig::new().await;
    let mut config = back_config(&back, alice.address());
    config["services"][0]["credentials"][1]["url"] = json!(format!("https://{}", alice.address()));
    let config = back.write("config.json", config.to_string());
    let trusted = back.write("trusted.pem", &authority.pem);
    let (ready, log) = (back.path("ready.json"), back.path("gateway.log"));
    let program = Program::start_trusting(&config, ready, log, Some(&trusted)).await;
    front
        .wait_for_credential("x", WAIT_MAX, "it was polled", |x| x["polled_at"].is_u64())
        .await;
    program.kill();
    wait_until_disconnected(&front).await;
    front.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_in_no_log() {
    let (front, back) = (Rig::new().await, Rig::new().await);
    let mut config = front_config(&front);
    config["log"] = json!({ "level": "debug" });
    let front_program = front.spawn(&config).await;
    let alice = front_program.client().token("token-alice");
    let mut config = back_config(&back, alice.address());
    config["log"] = json!({ "level": "debug" });
    let back_program = back.spawn(&config).await;
    front.wait_for_state("x", "ready").await;
    assert_eq!(alice.turn(&turn("one")).await.status, StatusCode::OK);
    back_program.kill();
    wait_until_disconnected(&front).await;
    let logs =
        front_program.log() + &std::fs::read_to_string(back.path("gateway.log")).expect("a log");
    assert!(logs.contains("reverse connection established"), "{logs}");
    assert!(logs.contains("reverse connection ended"), "{logs}");
    assert!(!logs.contains(REVERSE_TOKEN), "{logs}");
}

// The configuration

/// Returns the warnings about a configuration, except that the tokens of the tests are short.
fn warnings(config: &Value) -> Vec<String> {
    let loaded = tollgate::config::parse(&config.to_string()).expect("no problem");
    let warnings = loaded.warnings.iter().map(ToString::to_string);
    warnings
        .filter(|warning| !warning.contains("may be guessed"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_will_not_work_are_warnings() {
    let rig = Rig::new().await;
    let mut config = back_config(&rig, ([127, 0, 0, 1], 1).into());
    assert_eq!(warnings(&config), Vec::<String>::new());
    config["services"][0]["users"][0]["token"] = json!("another-token");
    assert_eq!(
        warnings(&config),
        [
            "services[0].credentials[1].token: no user has this token: requests over the reverse \
             connection will be rejected"
        ]
    );
    let mut config = front_config(&rig);
    config["services"][0]["credentials"][1] =
        json!({ "type": "external", "tag": "near", "token": REVERSE_TOKEN });
    assert_eq!(
        warnings(&config),
        [
            "services[0].credentials[1].token: an external credential before it has the same \
             token: reverse connections belong to that"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_own_gateway_is_left_out_of_the_status() {
    let scene = ReverseScene::new().await;
    scene
        .front
        .wait_for_credential("x", WAIT_MAX, "it was polled", |x| x["polled_at"].is_u64())
        .await;
    let weight = |status: &Value| status["plan_weight"].as_f64().expect("a weight");
    let status = scene.alice.get("/ocm/v1/status").await.json();
    assert!((weight(&status) - 2.0).abs() < 1e-6, "{status}");
    let mut config = front_config(&scene.front);
    config["services"][0]["users"][0]["external_credential"] = json!("x");
    scene.front.configure(&config).await.expect("applied");
    let status = scene.alice.get("/ocm/v1/status").await.json();
    assert!((weight(&status) - 1.0).abs() < 1e-6, "{status}");
    config["services"][0]["users"][0]["external_credential"] = json!("near");
    let error = scene.front.configure(&config).await.expect_err("rejected");
    let expected = "users[0].external_credential: expected the tag of an external credential";
    assert!(error.contains(expected), "{error}");
    scene.stop().await;
}
