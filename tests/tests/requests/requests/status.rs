//! The status page of users.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_tests::upstream::{Standing, WAIT_MAX};
use tollgate_tests::{Answer, Client, Rig, Stream, over_both, rows, turn, unix_in, user};

use super::{check_error, open_rig, team_rig};

const STATUS: &str = "/ocm/v1/status";

#[tokio::test(flavor = "multi_thread")]
async fn status_is_for_users_and_read_only() {
    let (mut rig, client) = open_rig().await;
    // Without users, it is that of the first credential.
    assert_eq!(client.get(STATUS).await.status, StatusCode::OK);
    rig.stop().await;

    let (mut rig, client) = team_rig().await;
    check_error(
        &client.get(STATUS).await,
        401,
        "authentication_error",
        None,
        "missing api key",
    );
    let basic = client
        .header("authorization", "Basic eA==")
        .get(STATUS)
        .await;
    check_error(
        &basic,
        401,
        "authentication_error",
        None,
        "invalid api key format",
    );
    check_error(
        &client.token("x").get(STATUS).await,
        401,
        "authentication_error",
        None,
        "invalid api key",
    );
    for method in [Method::POST, Method::DELETE] {
        let answer = client.token("token-alice").ask(method, STATUS, "").await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    }
    assert_eq!(
        client.token("token-alice").get(STATUS).await.status,
        StatusCode::OK
    );
    assert!(rig.forwarded().is_empty());
    assert!(rows(&rig.ledger()).is_empty());
    rig.stop().await;
}

#[track_caller]
fn check_status(answer: &Answer, five_hour: f64, weekly: f64, weight: f64) {
    assert_eq!(answer.status, StatusCode::OK);
    let body = answer.json();
    let near = |name: &str, expected: f64| {
        let found = body[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name} is no number: {body}"));
        assert!(
            (found - expected).abs() < 1e-6,
            "{name}: {found}, expected {expected}"
        );
    };
    near("five_hour_utilization", five_hour);
    near("weekly_utilization", weekly);
    near("plan_weight", weight);
    assert!(
        body["five_hour_reset"].is_u64() && body["weekly_reset"].is_u64(),
        "{body}"
    );
    assert_eq!(body.as_object().map(|body| body.len()), Some(5), "{body}");
}

/// Watches a status: asks for its stream, and returns the lines as they come.
struct WatchedStatus {
    stream: Stream,
    read: String,
}

impl WatchedStatus {
    async fn start(client: &Client) -> Self {
        let path = format!("{STATUS}?watch=true");
        let stream = client.send(Method::GET, &path, "").await;
        assert_eq!(stream.status, StatusCode::OK);
        Self {
            stream,
            read: String::new(),
        }
    }

    /// Returns the next line, or `None` at the end.
    async fn line(&mut self) -> Option<Value> {
        loop {
            if let Some((line, rest)) = self.read.split_once('\n') {
                let line = serde_json::from_str(line).expect("a line is JSON");
                self.read = rest.to_owned();
                return Some(line);
            }
            let part = self.stream.part().await?.expect("the stream is not cut");
            self.read
                .push_str(std::str::from_utf8(&part).expect("UTF-8"));
        }
    }

    /// Waits for a line with this 5-hour use.
    async fn until_used(&mut self, percent: f64) -> Value {
        loop {
            let line = self.line().await.expect("the stream continues");
            let used = line["five_hour_utilization"].as_f64().expect("a number");
            if (used - percent).abs() < 1e-6 {
                return line;
            }
        }
    }
}

over_both!(a_watched_status_has_a_line_at_once_and_one_after_every_change);
async fn a_watched_status_has_a_line_at_once_and_one_after_every_change() {
    let mut rig = Rig::new().await;
    let users = ["a", "b"].map(|tag| user(tag, tag));
    let mut config =
        rig.config(json!({ "credentials": [rig.oauth("a"), rig.oauth("b")], "users": users }));
    let client = rig.start_polled(config.clone()).await;
    let [one, other] = ["token-a", "token-b"].map(|token| client.token(token));
    let mut watch = WatchedStatus::start(&one).await;
    let first = watch.line().await.expect("a line at once");
    assert_eq!(first.as_object().map(|line| line.len()), Some(5), "{first}");
    assert_eq!(first, one.get(STATUS).await.json());

    let reset = unix_in(3000);
    rig.account("a").set_standing(
        Standing::new("plus")
            .five_hour_used(50.0)
            .five_hour_resets_at(reset),
    );
    assert_eq!(one.turn(&turn("one")).await.status, StatusCode::OK);
    // What is left under the cap of 99 percent counts.
    let line = watch.until_used(51.0).await;
    assert_eq!(line["five_hour_reset"], reset);
    assert_eq!(line, one.get(STATUS).await.json());
    // It is the user's own.
    assert_ne!(other.get(STATUS).await.json(), line);

    // It follows the configuration, and ends with its user.
    config["services"][0]["credentials"][0]["reserve_5h"] = json!(20);
    rig.configure(&config).await.expect("it is accepted");
    watch.until_used(70.0).await;
    config["services"][0]["users"] = json!([user("b", "b")]);
    rig.configure(&config).await.expect("it is accepted");
    assert_eq!(watch.line().await, None);

    // Or with the gateway.
    let mut last = WatchedStatus::start(&other).await;
    assert!(last.line().await.is_some());
    rig.stop().await;
    assert_eq!(last.line().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_statuses_that_a_user_watches_are_limited() {
    let mut rig = Rig::new().await;
    let users = ["a", "b"].map(|tag| user(tag, tag));
    let mut config =
        rig.config(json!({ "credentials": [rig.oauth("a"), rig.oauth("b")], "users": users }));
    config["limits"] = json!({ "status_watches_per_user": 1 });
    let client = rig.start(config).await;
    let [one, other] = ["token-a", "token-b"].map(|token| client.token(token));
    let path = format!("{STATUS}?watch=true");
    let first = WatchedStatus::start(&one).await;
    let refused = one.get(&path).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        refused.text().contains("status_watches_per_user"),
        "{}",
        refused.text()
    );
    let _other = WatchedStatus::start(&other).await;
    drop(first);
    let begun = Instant::now();
    loop {
        let again = one.send(Method::GET, &path, "").await;
        if again.status == StatusCode::OK {
            break;
        }
        assert!(begun.elapsed() < WAIT_MAX, "the place is not free again");
        // The gateway notices a closed connection without a signal.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.stop().await;
}

/// An account of the plan `pro`, and an auth.json whose id token names it:
/// `{"https://api.openai.com/auth":{"chatgpt_plan_type":"pro"}}`.
fn pro_file(rig: &Rig, tag: &str) -> Value {
    const PRO: &str =
        "eyJodHRwczovL2FwaS5vcGVuYWkuY29tL2F1dGgiOnsiY2hhdGdwdF9wbGFuX3R5cGUiOiJwcm8ifX0";
    let credential = rig.oauth(tag);
    rig.account(tag).set_standing(Standing::new("pro"));
    let mut file = tollgate_tests::oauth_file(&format!("access-{tag}"), &format!("account-{tag}"));
    file["tokens"]["id_token"] = json!(format!("x.{PRO}.y"));
    rig.write(&format!("{tag}.json"), file.to_string());
    credential
}

#[tokio::test(flavor = "multi_thread")]
async fn status_weighs_what_is_left_under_the_caps_by_plan() {
    let mut rig = Rig::new().await;
    let mut a = rig.oauth("a");
    (a["reserve_5h"], a["limit_weekly"]) = (json!(20), json!(60));
    let b = pro_file(&rig, "b");
    let away = json!({ "tag": "away", "credential_path": rig.path("away.json") });
    let user = |tag: &str| user(tag, tag);
    let config = rig.config(json!({
        "credentials": [a, b, away, {"tag": "pool", "type": "balancer", "credentials": ["a", "b", "away"]}],
        "users": (["a", "b", "away", "pool"].map(user)),
    }));
    let client = rig.start_polled(config).await;
    let ask = async |name: &str| client.token(&format!("token-{name}")).get(STATUS).await;

    // Nothing is used; what is not reserved is what there is.
    check_status(&ask("a").await, 20.0, 40.0, 1.0);
    check_status(&ask("b").await, 1.0, 1.0, 10.0);
    check_status(&ask("away").await, 100.0, 100.0, 0.0);

    rig.account("a")
        .set_standing(Standing::new("plus").five_hour_used(50.0).weekly_used(75.0));
    rig.account("b")
        .set_standing(Standing::new("pro").five_hour_used(10.0).weekly_used(20.5));
    for name in ["a", "b"] {
        client
            .token(&format!("token-{name}"))
            .turn(&turn("one"))
            .await;
    }

    check_status(&ask("a").await, 70.0, 100.0, 1.0);
    check_status(&ask("b").await, 11.0, 21.5, 10.0);
    // 5-hour: 30 x 1 and 89 x 10 are left; weekly: 0 x 1 (over its cap) and 78.5 x 10.
    check_status(
        &ask("pool").await,
        100.0 - 920.0 / 11.0,
        100.0 - 785.0 / 11.0,
        11.0,
    );
    rig.stop().await;
}
