//! Another gateway as a credential: its status is its usage.

use std::net::SocketAddr;
use std::time::Instant;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tollgate_tests::upstream::{Reply, Standing, WAIT_MAX};
use tollgate_tests::{Client, Rig, oauth_file, turn, unix_in};

use super::{
    TOKEN, alone, check_exhausted, external, front, last_attempts, outcomes, pool, remote, users,
    wait_for_status,
};

/// Polls the other gateway so often that a test can wait for it.
fn with_fast_polls(mut external: Value) -> Value {
    external["poll_interval"] = json!("50ms");
    external
}

/// Returns the address of a URL without a path.
fn address(url: &str) -> SocketAddr {
    url.strip_prefix("http://")
        .and_then(|address| address.parse().ok())
        .expect("an address")
}

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
    // 100 of `y`, ten times, and 79 of `x`.
    wait_for_status(&client, 100.0 - 1079.0 / 11.0, 11.0).await;
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
    wait_for_status(&client, 100.0 - 1079.0 / 11.0, 11.0).await;
    assert_eq!(client.turn(&turn("three")).await.status, StatusCode::OK);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exhausted_gateway_is_exhausted_until_its_reset() {
    let week = unix_in(3 * 24 * 3600);
    let standing = Standing::new("plus")
        .weekly_used(99.0)
        .weekly_resets_at(week);
    let (mut back, url) = remote(&[standing]).await;
    let (mut rig, client) = alone(external("x", &url)).await;
    wait_for_status(&client, 100.0, 1.0).await;
    assert_eq!(
        rig.credential("x").await["weekly"]["resets_at"],
        week * 1000
    );
    check_exhausted(&client.turn(&turn("one")).await, 3 * 24 * 3600);
    rig.stop().await;
    back.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_reports_no_weight_and_no_reset_has_the_weight_of_sing_box() {
    for weight in [
        "",
        r#", "plan_weight": 0, "five_hour_reset": 0, "weekly_reset": 0"#,
    ] {
        let status =
            format!(r#"{{"five_hour_utilization": 10, "weekly_utilization": 20{weight}}}"#);
        let gateway = StatusPeer::start(StatusCode::OK, &status).await;
        let (mut rig, client) = alone(external("x", &gateway.url)).await;
        wait_for_status(&client, 20.0, 10.0).await;
        assert_eq!(
            rig.credential("x").await["weekly"]["resets_at"],
            Value::Null
        );
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_rejects_the_token_is_not_polled_until_the_configuration_is_applied() {
    for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
        let gateway = StatusPeer::start(status, "{}").await;
        let mut rig = Rig::new().await;
        let credentials = json!([with_fast_polls(external("x", &gateway.url))]);
        let mut config = rig.config(json!({ "credentials": credentials }));
        rig.start(config.clone()).await;
        let is_rejected = |x: &Value| {
            x["poll_failure"].as_str().is_some_and(|failure| {
                failure.starts_with(&format!("answered {}", status.as_u16()))
            })
        };
        let x = rig
            .wait_for_credential("x", WAIT_MAX, "its poll is rejected", is_rejected)
            .await;
        let failure = x["poll_failure"].as_str().expect("a reason");
        assert!(failure.contains("not polled again"), "{failure}");
        assert_eq!(gateway.polls(), 1);
        config["services"][0]["credentials"][0]["poll_interval"] = json!("60ms");
        rig.configure(&config).await.expect("it is applied");
        gateway.wait_for_polls(2).await;
        rig.stop().await;
    }
}

/// Another gateway that answers every request in the same way.
struct StatusPeer {
    url: String,
    polls: watch::Receiver<usize>,
}

impl StatusPeer {
    async fn start(status: StatusCode, body: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (count, polls) = watch::channel(0);
        let response = format!(
            "HTTP/1.1 {} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            status.as_u16(),
            body.len()
        );
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut head = [0; 4096];
                if client.read(&mut head).await.is_ok_and(|read| read > 0) {
                    count.send_modify(|count| *count += 1);
                    drop(client.write_all(response.as_bytes()).await);
                }
            }
        });
        Self { url, polls }
    }

    fn polls(&self) -> usize {
        *self.polls.borrow()
    }

    async fn wait_for_polls(&self, count: usize) {
        let mut polls = self.polls.clone();
        let polled = polls.wait_for(|polls| *polls >= count);
        let polled = timeout(WAIT_MAX, polled).await.expect("it is polled again");
        polled.expect("the peer answers");
    }
}
