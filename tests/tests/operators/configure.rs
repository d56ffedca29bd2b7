//! A changed configuration on a running gateway: what takes effect, from the next request on.

mod file;
mod in_flight;
mod refused;

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollgate_tests::upstream::{Standing, Upstream, WAIT_MAX};
use tollgate_tests::{Rig, TeamScene, component, oauth_file, read_json, user, wait_for_rows};

fn service(config: &mut Value) -> &mut Value {
    &mut config["services"][0]
}

fn with_token(name: &str, token: &str) -> Value {
    let mut user = user(name, "pool");
    user["token"] = json!(token);
    user
}

// Users

#[tokio::test(flavor = "multi_thread")]
async fn added_and_removed_users_and_changed_tokens_take_effect_at_once() {
    let mut scene = TeamScene::new(&["a"]).await;
    for (token, status) in [
        ("token-alice", 200),
        ("token-bob", 200),
        ("token-carol", 401),
    ] {
        assert_eq!(scene.status(token).await, status, "before: {token}");
    }
    let users = json!([with_token("alice", "token-new"), user("carol", "pool")]);
    scene
        .change(|config| service(config)["users"] = users)
        .await;
    for (token, status) in [
        ("token-alice", 401),
        ("token-new", 200),
        ("token-bob", 401),
        ("token-carol", 200),
    ] {
        assert_eq!(scene.status(token).await, status, "after: {token}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_user_is_recorded_by_the_new_name() {
    let mut scene = TeamScene::new(&["a"]).await;
    assert_eq!(scene.status("token-alice").await, 200);
    scene
        .change(|config| service(config)["users"] = json!([with_token("ada", "token-alice")]))
        .await;
    assert_eq!(scene.status("token-alice").await, 200);
    let rows = wait_for_rows(&scene.rig.ledger(), 2).await;
    let users: Vec<_> = rows.iter().map(|row| row.text("user")).collect();
    assert_eq!(users, [Some("alice"), Some("ada")]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_moved_to_another_pool_is_served_by_it() {
    let mut scene = TeamScene::new(&["a", "b"]).await;
    assert_eq!(scene.account("one").await, "account-a");
    scene
        .change(|config| service(config)["users"][0]["credential"] = json!("b"))
        .await;
    assert_eq!(scene.account("one").await, "account-b");
    scene.end().await;
}

// Header fields and endpoints

#[tokio::test(flavor = "multi_thread")]
async fn header_fields_are_those_of_the_newest_configuration() {
    let mut scene = TeamScene::of(&["a"], |config| {
        service(config)["headers"] = json!({ "x-old": "1", "x-both": "1" })
    })
    .await;
    for (headers, expected) in [
        (
            json!({ "x-old": "1", "x-both": "1" }),
            [Some("1"), Some("1"), None],
        ),
        (
            json!({ "x-both": "2", "x-new": "2" }),
            [None, Some("2"), Some("2")],
        ),
        (json!({}), [None, None, None]),
        (json!({ "x-new": "4" }), [None, None, Some("4")]),
    ] {
        scene
            .change(|config| service(config)["headers"] = headers)
            .await;
        scene.account("one").await;
        let seen = scene.rig.upstream.turns().pop().expect("a turn");
        assert_eq!(
            ["x-old", "x-both", "x-new"].map(|name| seen.header(name)),
            expected
        );
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_endpoints_are_used_from_the_next_request_on() {
    let often =
        |config: &mut Value| service(config)["credentials"][1]["poll_interval"] = json!("50ms");
    let mut scene = TeamScene::of(&["a"], often).await;
    assert_eq!(scene.account("one").await, "account-a");
    let other = Upstream::start().await;
    let account = other.account("access-a", "account-a");
    scene
        .change(|config| service(config)["endpoints"]["chatgpt"] = json!(other.chatgpt_url()))
        .await;
    assert_eq!(scene.status("token-alice").await, 200);
    assert_eq!(
        (other.turns().len(), scene.rig.upstream.turns().len()),
        (1, 1)
    );
    account.wait_for_polls(1).await;
    scene.end().await;
}

// Credentials

#[tokio::test(flavor = "multi_thread")]
async fn added_credentials_are_chosen_and_removed_ones_are_not() {
    let mut scene = TeamScene::new(&["a"]).await;
    let b = scene.rig.oauth("b");
    scene
        .change(|config| {
            let pool = json!({ "tag": "pool", "type": "balancer", "strategy": "fallback", "credentials": ["b", "a"] });
            let a = service(config)["credentials"][0].clone();
            service(config)["credentials"] = json!([a, b, pool]);
        })
        .await;
    assert_eq!(scene.account("new").await, "account-b");
    scene.rig.wait_until_polled(&["b"]).await;
    scene
        .change(|config| {
            let credentials = service(config)["credentials"]
                .as_array_mut()
                .expect("a list");
            credentials.remove(1);
            credentials[1]["credentials"] = json!(["a"]);
        })
        .await;
    assert_eq!(scene.account("new").await, "account-a", "its home is gone");
    let tags: Vec<Value> = scene
        .rig
        .credentials()
        .await
        .into_iter()
        .map(|found| found["credential"].clone())
        .collect();
    assert_eq!(tags, [json!("a")]);
    assert_eq!(
        scene.rig.account("a").poll_count(),
        1,
        "the tasks of a credential that stays are not restarted"
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_with_another_file_is_another_one_of_the_same_name() {
    let mut scene = TeamScene::new(&["a"]).await;
    scene
        .rig
        .account("a")
        .set_standing(Standing::new("plus").five_hour_used(77.0));
    assert_eq!(scene.account("one").await, "account-a");
    scene.rig.upstream.account("access-other", "account-other");
    let other = scene.rig.write(
        "other.json",
        oauth_file("access-other", "account-other").to_string(),
    );
    scene
        .change(|config| service(config)["credentials"][0]["credential_path"] = json!(other))
        .await;
    assert_eq!(scene.account("one").await, "account-other");
    scene.rig.wait_until_polled(&["a"]).await;
    let found = scene.rig.credential("a").await;
    assert_ne!(
        found["five_hour"]["used"], 77.0,
        "the standing is of the account: {found:#}"
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caps_change_in_place() {
    let mut scene = TeamScene::new(&["a", "b"]).await;
    scene
        .rig
        .account("a")
        .set_standing(Standing::new("plus").five_hour_used(50.0));
    assert_eq!(scene.account("learns of the use").await, "account-a");
    for (cap, account) in [(40, "account-b"), (60, "account-a"), (50, "account-b")] {
        scene
            .change(|config| service(config)["credentials"][0]["limit_5h"] = json!(cap))
            .await;
        assert_eq!(
            scene.account(&format!("under {cap}")).await,
            account,
            "under {cap}"
        );
    }
    assert_eq!(
        scene.rig.account("a").poll_count(),
        1,
        "it is the credential that it was"
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_interval_changes_in_place() {
    let mut scene = TeamScene::of(&["a"], |config| {
        service(config)["credentials"][1]["poll_interval"] = json!("10h");
    })
    .await;
    scene.account("traffic").await;
    assert_eq!(scene.rig.account("a").poll_count(), 1);
    scene
        .change(|config| service(config)["credentials"][1]["poll_interval"] = json!("50ms"))
        .await;
    scene.rig.account("a").wait_for_polls(2).await;
    scene.end().await;
}

// Pools

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_takes_another_strategy_and_other_members() {
    let mut scene = TeamScene::new(&["a", "b", "c"]).await;
    let served = async |scene: &TeamScene, sessions: &str| {
        let mut served = Vec::new();
        for session in 0..4 {
            served.push(scene.account(&format!("{sessions} {session}")).await);
        }
        served
    };
    assert_eq!(served(&scene, "by fallback").await, ["account-a"; 4]);
    scene
        .change(|config| service(config)["credentials"][3]["strategy"] = json!("round_robin"))
        .await;
    let mut by_turns = served(&scene, "by turns").await;
    by_turns.sort();
    by_turns.dedup();
    assert_eq!(by_turns, ["account-a", "account-b", "account-c"]);
    scene
        .change(|config| service(config)["credentials"][3]["credentials"] = json!(["c"]))
        .await;
    assert_eq!(served(&scene, "of one").await, ["account-c"; 4]);
    scene.end().await;
}

// Policies

/// A pricer with this price in USD for a million input tokens, under that tag.
fn prices(tag: &str, input: f64) -> Value {
    let price = json!({ "source": "a test", "date": "2026-01-01", "default": { "input": input, "cached": 0.0, "output": 0.0 } });
    json!({
        "tag": tag,
        "kind": "pricer",
        "path": component("openai-pricing"),
        "config": { "prices": { "gpt-5.4": price } },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policys_changed_settings_are_its_next_generation() {
    let mut scene = TeamScene::of(&["a"], |config| {
        config["policies"] = json!([prices("mine", 1.0)]);
        service(config)["pricer"] = json!("mine");
    })
    .await;
    scene.account("one").await;
    scene
        .change(|config| config["policies"] = json!([prices("mine", 3.0)]))
        .await;
    scene.account("one").await;
    let rows = wait_for_rows(&scene.rig.ledger(), 2).await;
    let [old, new] =
        [0, 1].map(|place: usize| rows[place].number("cost_nanousd").expect("a price"));
    assert_eq!((old > 0, new), (true, 3 * old));
    let found = scene.rig.policy("mine").await;
    assert_eq!(
        (&found["generation"], &found["generation_before"]),
        (&json!(2), &json!(1)),
        "{found:#}"
    );
    assert_eq!(
        (&found["calls"], &found["last_reload"]["outcome"]),
        (&json!(2), &json!("ok")),
        "{found:#}"
    );
    scene
        .change(|config| config["policies"][0]["timeout"] = json!("7ms"))
        .await;
    assert_eq!(scene.rig.policy("mine").await["generation"], 3);
    // An unchanged policy is not loaded again.
    scene
        .change(|config| service(config)["headers"] = json!({ "x-new": "1" }))
        .await;
    assert_eq!(scene.rig.policy("mine").await["generation"], 3);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn added_policies_are_called_and_removed_ones_are_not() {
    let mut scene = TeamScene::new(&["a"]).await;
    let costs = async |scene: &TeamScene, count: usize| {
        scene.account("one").await;
        let rows = wait_for_rows(&scene.rig.ledger(), count).await;
        rows.last()
            .and_then(|row| row.number("cost_nanousd"))
            .expect("a price")
    };
    let shipped = costs(&scene, 1).await;
    scene
        .change(|config| {
            config["policies"] = json!([prices("mine", 100.0)]);
            service(config)["pricer"] = json!("mine");
        })
        .await;
    assert!(costs(&scene, 2).await > shipped);
    let tags = |all: &Value| -> Vec<String> {
        let all = all["policies"].as_array().expect("a list");
        all.iter()
            .map(|policy| policy["tag"].as_str().expect("a tag").to_owned())
            .collect()
    };
    assert!(tags(&scene.rig.policies().await).contains(&"mine".to_owned()));
    scene
        .change(|config| {
            config["policies"] = json!([]);
            service(config)["pricer"] = Value::Null;
        })
        .await;
    assert_eq!(costs(&scene, 3).await, shipped);
    assert!(!tags(&scene.rig.policies().await).contains(&"mine".to_owned()));
    scene.end().await;
}

// Limits

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_for_the_next_request() {
    let mut scene = TeamScene::new(&["a"]).await;
    for (bytes, status) in [(64, 413), (1 << 20, 200), (64, 413)] {
        scene
            .change(|config| config["limits"] = json!({ "request_body_bytes": bytes }))
            .await;
        assert_eq!(scene.status("token-alice").await, status, "{bytes}");
    }
    scene
        .change(|config| config["limits"] = json!({ "websockets_per_user": 1 }))
        .await;
    let client = scene.client.token("token-alice");
    let _open = client.socket().await.expect("the first");
    assert_eq!(
        client
            .socket()
            .await
            .expect_err("the second")
            .status
            .as_u16(),
        503
    );
    scene
        .change(|config| config["limits"] = json!({ "websockets_per_user": 2 }))
        .await;
    let _second = client.socket().await.expect("the second");
    scene.end().await;
}

// Usage files

/// Returns the requests in the usage file `name`; `None` if there is no such file.
fn requests(rig: &Rig, name: &str) -> Option<u64> {
    let path = rig.path(name);
    path.exists().then(|| {
        let file = read_json(&path);
        let all = file["combinations"].as_array().expect("a list").iter();
        all.map(|combination| {
            combination["total"]["request_count"]
                .as_u64()
                .expect("a number")
        })
        .sum()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_usage_file_is_written_once_more_and_an_added_one_counts_from_then() {
    let mut scene = TeamScene::new(&["a"]).await;
    scene.account("before").await;
    wait_for_rows(&scene.rig.ledger(), 1).await;
    let path = scene.rig.path("usages.json");
    scene
        .change(|config| service(config)["credentials"][0]["usages_path"] = json!(path))
        .await;
    for session in ["one", "two"] {
        scene.account(session).await;
    }
    wait_for_rows(&scene.rig.ledger(), 3).await;
    let other = scene.rig.path("other.json");
    scene
        .change(|config| service(config)["credentials"][0]["usages_path"] = json!(other))
        .await;
    let begun = Instant::now();
    while requests(&scene.rig, "usages.json") != Some(2) {
        assert!(
            begun.elapsed() < WAIT_MAX,
            "{:?}",
            requests(&scene.rig, "usages.json")
        );
        // The writing thread sends no signal.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let text = fs::read(&path).expect("it is there");
    scene.account("three").await;
    wait_for_rows(&scene.rig.ledger(), 4).await;
    scene.rig.stop().await;
    assert_eq!(requests(&scene.rig, "other.json"), Some(1));
    assert_eq!(
        fs::read(&path).expect("it is there"),
        text,
        "it is not written any more"
    );
}

/// The files are opened one after the other, and each is noted in the ledger: a reply before the last
/// one is open would let the row of the next request be taken for an older one.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_right_after_a_change_is_in_the_last_of_many_added_usage_files() {
    const OTHERS: usize = 60;
    let mut scene = TeamScene::new(&["a"]).await;
    let others: Vec<Value> = (0..OTHERS)
        .map(|number| {
            let tag = format!("other-{number}");
            let mut other = scene.rig.api_key(&tag);
            other["usages_path"] = json!(scene.rig.path(&format!("{tag}-usages.json")));
            other
        })
        .collect();
    let path = scene.rig.path("usages.json");
    scene
        .change(|config| {
            let credentials = service(config)["credentials"]
                .as_array_mut()
                .expect("a list");
            credentials[0]["usages_path"] = json!(path);
            // Before `a`, whose file is then opened last.
            credentials.splice(0..0, others);
        })
        .await;
    scene.account("one").await;
    wait_for_rows(&scene.rig.ledger(), 1).await;
    scene.rig.stop().await;
    assert_eq!(requests(&scene.rig, "usages.json"), Some(1));
}
