//! External credentials: another gateway as upstream, for which users, and what is known about its
//! usage.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_tests::upstream::{Reply, Standing, WAIT_MAX};
use tollgate_tests::{Answer, Client, Rig, oauth_file, rows, turn, unix_in, user, wait_for_rows};

/// The token that this gateway presents to the other one.
const TOKEN: &str = "token-front";

fn external(tag: &str, url: &str) -> Value {
    json!({ "type": "external", "tag": tag, "url": url, "token": TOKEN })
}

/// Polls the other gateway so often that a test can wait for it.
fn with_fast_polls(mut external: Value) -> Value {
    external["poll_interval"] = json!("50ms");
    external
}

/// Returns a pool of these members in that order.
fn pool(strategy: &str, members: &[&str]) -> Value {
    json!({ "tag": "pool", "type": "balancer", "strategy": strategy, "credentials": members })
}

/// `alice` may use external credentials, `bob` may not; both use the pool.
fn users() -> [Value; 2] {
    let user = |name: &str| user(name, "pool");
    let mut alice = user("alice");
    alice["allow_external_usage"] = json!(true);
    [alice, user("bob")]
}

/// Starts the other gateway, with accounts `r0`, `r1`, … of these standings in a pool, and this
/// gateway's user. Returns its address once it knows the standings.
async fn remote(standings: &[Standing]) -> (Rig, String) {
    let mut rig = Rig::new().await;
    let tags: Vec<String> = (0..standings.len())
        .map(|place| format!("r{place}"))
        .collect();
    let mut credentials: Vec<Value> = tags.iter().map(|tag| rig.oauth(tag)).collect();
    let weight: f64 = standings
        .iter()
        .map(|standing| if standing.plan == "pro" { 10.0 } else { 1.0 })
        .sum();
    let mut used = 0.0;
    for (tag, standing) in tags.iter().zip(standings) {
        rig.account(tag).set_standing(standing.clone());
        used += standing.weekly.used_percent / standings.len() as f64;
    }
    credentials.push(json!({ "tag": "pool", "type": "balancer", "credentials": tags }));
    let front = json!({ "name": "front", "token": TOKEN, "credential": "pool" });
    let config = rig.config(json!({ "credentials": credentials, "users": [front] }));
    let client = rig.start(config).await;
    wait_for_status(&client.token(TOKEN), used + 1.0, weight).await;
    (rig, format!("http://{}", client.address()))
}

/// Returns the address of a URL without a path.
fn address(url: &str) -> SocketAddr {
    url.strip_prefix("http://")
        .and_then(|address| address.parse().ok())
        .expect("an address")
}

/// Waits until the status reports this weekly usage and this weight.
async fn wait_for_status(client: &Client, weekly: f64, weight: f64) {
    let begun = Instant::now();
    loop {
        let status = client.get("/ocm/v1/status").await.json();
        let near = |name: &str, expected: f64| {
            status[name]
                .as_f64()
                .is_some_and(|n| (n - expected).abs() < 1e-6)
        };
        if near("weekly_utilization", weekly) && near("plan_weight", weight) {
            return;
        }
        assert!(
            begun.elapsed() < WAIT_MAX,
            "{status}, expected {weekly} and {weight}"
        );
        // The other gateway polls: its only signal is what it knows afterwards.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A gateway with the account `a` and the other gateway `x` in a pool in that order of preference.
async fn front(url: &str, strategy: &str, order: [&str; 2]) -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let credentials = json!([rig.oauth("a"), external("x", url), pool(strategy, &order)]);
    let config = rig.config(json!({ "credentials": credentials, "users": users() }));
    let client = rig.start(config).await;
    (rig, client)
}

/// A gateway whose only credential is the other one, and alice's client.
async fn alone(external: Value) -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let config = rig.config(
        json!({ "credentials": [external, pool("least_used", &["x"])], "users": [users()[0]] }),
    );
    let client = rig.start(config).await.token("token-alice");
    (rig, client)
}

fn outcomes(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(credential, outcome)| ((*credential).to_owned(), (*outcome).to_owned()))
        .collect()
}

/// Returns the attempts of the last of `count` requests.
async fn last_attempts(rig: &Rig, count: usize) -> Vec<(String, String)> {
    wait_for_rows(&rig.ledger(), count).await[count - 1].attempts()
}

// What the other gateway sees

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_its_path_and_the_credentials_token_and_no_secret_of_the_client() {
    for folder in ["", "/", "/team/gateway"] {
        let mut rig = Rig::new().await;
        // The scripted upstream stands in for it, since it records requests.
        rig.upstream.api_key(TOKEN, "front");
        let url = format!("{}{folder}", rig.upstream.api_url());
        let credentials = json!([external("x", &url), pool("least_used", &["x"])]);
        let config = rig.config(json!({ "credentials": credentials, "users": [users()[0]] }));
        let client = rig.start(config).await.token("token-alice");
        let client = client
            .header("chatgpt-account-id", "mine")
            .header("cookie", "mine")
            .header("x-theirs", "kept");

        client
            .ask(Method::POST, "/v1/responses?x=1", turn("one").to_string())
            .await;

        let seen = rig.upstream.turns();
        assert_eq!(seen.len(), 1);
        assert_eq!(
            seen[0].target,
            format!("{}/v1/responses?x=1", folder.trim_end_matches('/'))
        );
        assert_eq!(
            seen[0].header("authorization"),
            Some(format!("Bearer {TOKEN}").as_str())
        );
        assert_eq!(
            (
                seen[0].header("chatgpt-account-id"),
                seen[0].header("cookie")
            ),
            (None, None)
        );
        assert_eq!(seen[0].header("x-theirs"), Some("kept"));
        assert!(seen[0].body == turn("one").to_string());
        for seen in rig.upstream.requests() {
            assert!(
                !format!("{seen:?}").contains("token-alice"),
                "{} {}",
                seen.method,
                seen.target
            );
        }
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_through_two_gateways_is_whole_and_recorded_by_both() {
    let (mut back, url) = remote(&[Standing::new("plus")]).await;
    let mut rig = Rig::new().await;
    let mut other = external("x", &url);
    other["usages_path"] = json!(rig.path("x-usages.json"));
    let config = rig.config(
        json!({ "credentials": [other, pool("least_used", &["x"])], "users": [users()[0]] }),
    );
    let client = rig.start(config).await.token("token-alice");

    let answer = client.turn(&turn("one")).await;

    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert!(answer.whole && answer.text().contains("response.completed"));
    for (rig, user, credential) in [(&rig, "alice", "x"), (&back, "front", "r0")] {
        let row = &wait_for_rows(&rig.ledger(), 1).await[0];
        assert_eq!(
            (row.text("user"), row.text("credential")),
            (Some(user), Some(credential))
        );
        assert_eq!(row.attempts(), outcomes(&[(credential, "200")]));
        assert_eq!(
            (row.number("input_tokens"), row.number("output_tokens")),
            (Some(1200), Some(150))
        );
        assert!(
            row.number("cost_nanousd").is_some_and(|cost| cost > 0),
            "{row:?}"
        );
        assert_eq!(
            (row.text("session"), row.text("end")),
            (Some("one"), Some("complete"))
        );
    }
    rig.stop().await;
    let file =
        std::fs::read_to_string(rig.path("x-usages.json")).expect("the usage file is written");
    let file: Value = serde_json::from_str(&file).expect("JSON");
    let total = &file["combinations"][0]["total"];
    assert_eq!(
        (&total["request_count"], &total["output_tokens"]),
        (&json!(1), &json!(150)),
        "{file}"
    );
    assert!(
        file["combinations"][0]["by_user"]["alice"].is_object(),
        "{file}"
    );
    back.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_completions_pass_to_another_gateway_with_an_api_key() {
    let mut back = Rig::new().await;
    let front = json!({ "name": "front", "token": TOKEN, "credential": "k" });
    let config = back.config(json!({ "credentials": [back.api_key("k")], "users": [front] }));
    let url = format!("http://{}", back.start(config).await.address());
    let (mut rig, client) = alone(external("x", &url)).await;

    let body = json!({ "model": "gpt-5.4", "messages": [{ "role": "user", "content": "hello" }] });
    let answer = client
        .ask(Method::POST, "/v1/chat/completions", body.to_string())
        .await;

    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(back.upstream.turns()[0].target, "/v1/chat/completions");
    let row = &wait_for_rows(&rig.ledger(), 1).await[0];
    assert_eq!(
        (row.text("credential"), row.number("output_tokens")),
        (Some("x"), Some(150))
    );
    rig.stop().await;
    back.stop().await;
}

// Its usage

#[tokio::test(flavor = "multi_thread")]
async fn it_is_weighted_by_its_status() {
    let week = unix_in(7 * 24 * 3600);
    let plan = |plan: &str, used: f64| Standing::new(plan).weekly_used(used).weekly_resets_at(week);
    // The account `a` has used 50, so 49 are left. The status of its pool is the weighted mean.
    let cases = [
        ("less used", vec![plan("plus", 40.0)], "x"),
        ("further used", vec![plan("plus", 60.0)], "a"),
        // 99 - 91 = 8, twenty times.
        (
            "of more weight",
            vec![plan("pro", 91.0), plan("pro", 91.0)],
            "x",
        ),
        (
            "of more weight, and all but used up",
            vec![plan("pro", 98.0), plan("pro", 98.0)],
            "a",
        ),
    ];
    for (name, standings, expected) in cases {
        let (mut back, url) = remote(&standings).await;
        let weight: f64 = standings
            .iter()
            .map(|standing| if standing.plan == "pro" { 10.0 } else { 1.0 })
            .sum();
        let left = 99.0 - standings[0].weekly.used_percent;
        let mut rig = Rig::new().await;
        let account = rig.oauth("a");
        rig.account("a").set_standing(
            Standing::new("plus")
                .weekly_used(50.0)
                .weekly_resets_at(week),
        );
        let credentials = json!([
            account,
            external("x", &url),
            pool("least_used", &["a", "x"])
        ]);
        let config = rig.config(json!({ "credentials": credentials, "users": users() }));
        let client = rig.start(config).await.token("token-alice");

        wait_for_status(
            &client,
            100.0 - (49.0 + left * weight) / (1.0 + weight),
            1.0 + weight,
        )
        .await;
        assert_eq!(
            client.turn(&turn(name)).await.status,
            StatusCode::OK,
            "{name}"
        );
        assert_eq!(
            last_attempts(&rig, 1).await,
            outcomes(&[(expected, "200")]),
            "{name}"
        );
        rig.stop().await;
        back.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_counts_it_only_for_users_that_may_use_it() {
    let (mut back, url) = remote(&[Standing::new("pro").weekly_used(19.0)]).await;
    let (mut rig, client) = front(&url, "least_used", ["a", "x"]).await;
    // (99 x 1 + 80 x 10) / 11 are left.
    wait_for_status(&client.token("token-alice"), 100.0 - 899.0 / 11.0, 11.0).await;
    wait_for_status(&client.token("token-bob"), 1.0, 1.0).await;
    rig.stop().await;
    back.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limit_headers_of_its_responses_are_ignored() {
    let (mut back, url) = remote(&[Standing::new("plus").weekly_used(20.0)]).await;
    let (mut rig, client) = alone(external("x", &url)).await;
    wait_for_status(&client, 21.0, 1.0).await;
    back.account("r0")
        .set_standing(Standing::new("plus").weekly_used(99.0));
    let answer = client.turn(&turn("one")).await;
    assert_eq!(
        answer.header("x-codex-secondary-used-percent"),
        Some("99"),
        "its client may see them"
    );
    wait_for_status(&client, 21.0, 1.0).await;
    rig.stop().await;
    back.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_usage_is_polled_again_while_it_has_traffic() {
    let (mut back, url) = remote(&[Standing::new("plus").weekly_used(20.0)]).await;
    let (mut rig, client) = alone(with_fast_polls(external("x", &url))).await;
    wait_for_status(&client, 21.0, 1.0).await;
    back.account("r0")
        .set_standing(Standing::new("plus").weekly_used(60.0));
    let begun = Instant::now();
    while rig.credential("x").await["weekly"]["used"] != 61.0 {
        assert!(begun.elapsed() < WAIT_MAX, "{}", rig.credential("x").await);
        assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    }
    rig.stop().await;
    back.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_used_again_when_its_status_reports_room() {
    let (mut back, url) = remote(&[Standing::new("plus").weekly_used(99.0)]).await;
    let mut rig = Rig::new().await;
    let credentials = json!([
        rig.oauth("a"),
        with_fast_polls(external("x", &url)),
        pool("fallback", &["x", "a"])
    ]);
    let config = rig.config(json!({ "credentials": credentials, "users": users() }));
    let client = rig.start(config).await.token("token-alice");
    // 99 of the account, and nothing of the other gateway.
    wait_for_status(&client, 100.0 - 99.0 / 2.0, 2.0).await;
    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    assert_eq!(last_attempts(&rig, 1).await, outcomes(&[("a", "200")]));

    // The other gateway gets another, unused account.
    back.account("fresh");
    back.write(
        "r0.json",
        oauth_file("access-fresh", "account-fresh").to_string(),
    );
    wait_for_status(&Client::new(address(&url)).token(TOKEN), 1.0, 1.0).await;

    rig.wait_for_credential("x", WAIT_MAX, "it is usable again", |x| x["usable"] == true)
        .await;
    assert_eq!(client.turn(&turn("two")).await.status, StatusCode::OK);
    assert_eq!(last_attempts(&rig, 2).await, outcomes(&[("x", "200")]));
    rig.stop().await;
    back.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_status_only_makes_the_known_usage_stale() {
    let (mut back, url) = remote(&[Standing::new("plus").weekly_used(20.0)]).await;
    let mut rig = Rig::new().await;
    // The usage of `y` stays unknown: the scripted upstream has no status, but answers turns.
    let y = rig.upstream.api_key(TOKEN, "front");
    let credentials = json!([
        with_fast_polls(external("x", &url)),
        external("y", &rig.upstream.api_url()),
        pool("fallback", &["y", "x"]),
    ]);
    let config = rig.config(json!({ "credentials": credentials, "users": [users()[0]] }));
    let client = rig.start(config).await.token("token-alice");
    let has_failed = |credential: &Value| credential["poll_failure"].is_string();
    rig.wait_for_credential("y", WAIT_MAX, "its poll has failed", has_failed)
        .await;
    // 100 of `y`, and 79 of `x`.
    wait_for_status(&client, 100.0 - 179.0 / 2.0, 2.0).await;
    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    assert_eq!(last_attempts(&rig, 1).await, outcomes(&[("y", "200")]));

    back.stop().await;
    // From `y` to `x`, which is down; after the attempt it is polled again.
    y.then(Reply::raw(503, ""));
    assert_ne!(client.turn(&turn("two")).await.status, StatusCode::OK);
    let x = rig
        .wait_for_credential("x", WAIT_MAX, "its poll has failed", has_failed)
        .await;
    assert_eq!(
        (&x["usable"], &x["weekly"]["used"]),
        (&json!(true), &json!(21.0)),
        "{x}"
    );
    wait_for_status(&client, 100.0 - 179.0 / 2.0, 2.0).await;
    assert_eq!(client.turn(&turn("three")).await.status, StatusCode::OK);
    rig.stop().await;
}

// Users

#[tokio::test(flavor = "multi_thread")]
async fn it_is_never_used_for_a_user_without_external_usage() {
    for strategy in ["fallback", "least_used", "round_robin", "random"] {
        let (mut back, url) = remote(&[Standing::new("pro")]).await;
        let (mut rig, client) = front(&url, strategy, ["x", "a"]).await;
        let bob = client.token("token-bob");
        for number in 0..6 {
            assert_eq!(
                bob.turn(&turn(&number.to_string())).await.status,
                StatusCode::OK,
                "{strategy}"
            );
        }
        rig.account("a").then(limited(600));
        check_exhausted(&bob.turn(&turn("one")).await, 600);
        check_exhausted(&bob.turn(&turn("one")).await, 600);
        assert!(back.upstream.turns().is_empty(), "{strategy}");

        assert_eq!(
            client.token("token-alice").turn(&turn("one")).await.status,
            StatusCode::OK,
            "{strategy}"
        );
        assert_eq!(back.upstream.turns().len(), 1, "{strategy}");
        rig.stop().await;
        back.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_used_in_a_service_without_users() {
    let (mut back, url) = remote(&[Standing::new("plus")]).await;
    let mut rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [external("x", &url)] }));
    let client = rig.start(config).await;
    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    assert_eq!(back.upstream.turns().len(), 1);
    rig.stop().await;
    back.stop().await;
}

/// Checks that `credentials` and these fields of a user are rejected with that problem.
async fn check_problem(credentials: Value, user: Value, expected: &str) {
    let mut rig = Rig::new().await;
    let mut alice = json!({ "name": "alice", "token": "token-alice", "credential": "pool" });
    alice
        .as_object_mut()
        .expect("an object")
        .extend(user.as_object().expect("an object").clone());
    let config = rig.config(json!({ "credentials": credentials, "users": [alice] }));
    let error = rig
        .try_start(config)
        .await
        .err()
        .expect("no gateway")
        .to_string();
    assert!(
        error.contains(expected),
        "expected {expected:?}, found {error:?}"
    );
    assert!(!error.contains(TOKEN), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_only_external_credentials_and_without_external_usage_is_an_error_at_load() {
    let two = || {
        let [x, y] = ["x", "y"].map(|tag| external(tag, "http://127.0.0.1:1"));
        json!([x, y, pool("least_used", &["x", "y"])])
    };
    let expected = "services[0].users[0].allow_external_usage: expected true";
    check_problem(two(), json!({}), expected).await;
    check_problem(two(), json!({ "allow_external_usage": false }), expected).await;
    check_problem(two(), json!({ "credential": "x" }), expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_problems_are_reported_at_load_without_its_token() {
    let with = |field: &str, value: Value| {
        let mut x = external("x", "http://127.0.0.1:1");
        x[field] = value;
        json!([x, pool("least_used", &["x"])])
    };
    let user = || json!({ "allow_external_usage": true });
    for (field, value, expected) in [
        ("url", json!(""), "url: must not be empty"),
        ("url", json!("gateway.example:8080"), "url: expected a URL"),
        (
            "url",
            json!(format!("http://front:{TOKEN}@127.0.0.1:1")),
            "url: expected a URL",
        ),
        ("token", json!(""), "token: must not be empty"),
        (
            "token",
            json!(format!("{TOKEN} {TOKEN}")),
            "token: expected visible ASCII",
        ),
        (
            "detour",
            json!("nowhere"),
            "detour: expected the tag of an outbound",
        ),
        (
            "poll_interval",
            json!("0s"),
            "poll_interval: expected more than 0",
        ),
        ("credential_path", json!("auth.json"), "credential_path"),
    ] {
        check_problem(
            with(field, value),
            user(),
            &format!("services[0].credentials[0].{expected}"),
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reverse_credential_is_an_error_that_says_that_it_is_not_supported_yet() {
    let reverse = json!([{ "type": "reverse", "tag": "pool" }]);
    let expected =
        r#"services[0].credentials[0].type: credentials of type "reverse" are not supported yet"#;
    check_problem(reverse, json!({}), expected).await;
}

// Refusals and failures

fn limited(seconds: u64) -> Reply {
    Reply::usage_limit_reached()
        .without_rate_limits()
        .resets_in_seconds(seconds)
}

/// Checks that the response says that everything is used up for about `seconds`.
#[track_caller]
fn check_exhausted(answer: &Answer, seconds: u64) {
    assert_eq!(
        answer.status,
        StatusCode::TOO_MANY_REQUESTS,
        "{}",
        answer.text()
    );
    let error = &answer.json()["error"];
    assert_eq!(
        (&error["type"], &error["code"]),
        (
            &json!("usage_limit_reached"),
            &json!("credentials_exhausted")
        )
    );
    let near = error["resets_at"]
        .as_u64()
        .is_some_and(|at| at.abs_diff(unix_in(seconds)) <= 4);
    assert!(near, "{error}, expected in {seconds} s");
}

#[tokio::test(flavor = "multi_thread")]
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

#[tokio::test(flavor = "multi_thread")]
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

#[tokio::test(flavor = "multi_thread")]
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

#[tokio::test(flavor = "multi_thread")]
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
