//! Choosing a credential: which are usable, how each strategy chooses, and which sessions keep
//! their credential.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::upstream::{Reply, Standing};
use tollgate_tests::{
    Client, Rig, key_file, oauth_file, over_both, rows, turn, unix_in, user, wait_for_rows,
};

/// `{"https://api.openai.com/auth":{"chatgpt_plan_type":"…"}}` in base64url: the claims of an id
/// token.
const PRO: &str = "eyJodHRwczovL2FwaS5vcGVuYWkuY29tL2F1dGgiOnsiY2hhdGdwdF9wbGFuX3R5cGUiOiJwcm8ifX0";
const PLUS: &str =
    "eyJodHRwczovL2FwaS5vcGVuYWkuY29tL2F1dGgiOnsiY2hhdGdwdF9wbGFuX3R5cGUiOiJwbHVzIn19";
/// `{}`.
const NO_PLAN: &str = "e30";

/// An account whose id token and polls name its plan, unless it is empty.
fn planned(rig: &Rig, tag: &str, plan: &str) -> Value {
    let credential = rig.oauth(tag);
    rig.account(tag).set_standing(Standing::new(plan));
    let claims = match plan {
        "pro" => PRO,
        "plus" => PLUS,
        _ => NO_PLAN,
    };
    let mut file = oauth_file(&format!("access-{tag}"), &format!("account-{tag}"));
    file["tokens"]["id_token"] = json!(format!("x.{claims}.y"));
    rig.write(&format!("{tag}.json"), file.to_string());
    credential
}

/// The configuration of a team on a pool. Beside alice and bob, each credential has a user of its
/// name.
fn team(rig: &Rig, tags: &[&str], pool: Value) -> Value {
    let mut config = rig.team(tags, pool);
    let users = config["services"][0]["users"]
        .as_array_mut()
        .expect("a list");
    users.extend(tags.iter().map(|tag| user(tag, tag)));
    config
}

/// A running team and alice's client.
async fn start(tags: &[&str], pool: Value) -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let config = team(&rig, tags, pool);
    let client = rig.start_polled(config).await;
    (rig, client)
}

/// Sets an account's standing, and reports it to the gateway by a turn of that credential's user.
/// The account's first poll must have ended, or it would undo that.
async fn tell(rig: &Rig, client: &Client, tag: &str, standing: Standing) {
    rig.account(tag).set_standing(standing);
    assert_eq!(
        client
            .token(&format!("token-{tag}"))
            .turn(&without_session())
            .await
            .status,
        StatusCode::OK
    );
}

/// Returns a turn without a session.
fn without_session() -> Value {
    json!({ "model": "gpt-5.4", "stream": true, "input": [] })
}

/// Sends a turn, and returns the tag of the account that answers it.
async fn served(rig: &Rig, client: &Client, body: &Value) -> String {
    let before = rig.upstream.turns().len();
    let answer = client.turn(body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let turns = rig.upstream.turns();
    assert!(turns.len() > before);
    let account = turns
        .last()
        .and_then(|seen| seen.account.clone())
        .expect("an account");
    account
        .strip_prefix("account-")
        .expect("an account of the rig")
        .to_owned()
}

async fn served_each(
    rig: &Rig,
    client: &Client,
    bodies: impl Iterator<Item = Value>,
) -> Vec<String> {
    let mut tags = Vec::new();
    for body in bodies {
        tags.push(served(rig, client, &body).await);
    }
    tags
}

/// Sends the turn again until that account answers it.
async fn wait_until_served_by(rig: &Rig, client: &Client, body: &Value, tag: &str) {
    let begun = Instant::now();
    while served(rig, client, body).await != tag {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{tag} does not serve again"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// Usable

over_both!(a_credential_is_usable_below_its_caps_and_not_at_them);
async fn a_credential_is_usable_below_its_caps_and_not_at_them() {
    let standing = |five_hour: f64, weekly: f64| {
        Standing::new("plus")
            .five_hour_used(five_hour)
            .weekly_used(weekly)
    };
    let past = unix_in(0) - 60;
    let cases = [
        ("unset", json!({}), standing(98.9, 98.9), true),
        ("unset 5h", json!({}), standing(99.0, 0.0), false),
        ("unset weekly", json!({}), standing(0.0, 99.0), false),
        (
            "reserve 5h below",
            json!({"reserve_5h": 20}),
            standing(79.9, 98.0),
            true,
        ),
        (
            "reserve 5h",
            json!({"reserve_5h": 20}),
            standing(80.0, 0.0),
            false,
        ),
        (
            "reserve weekly below",
            json!({"reserve_weekly": 99}),
            standing(98.0, 0.9),
            true,
        ),
        (
            "reserve weekly",
            json!({"reserve_weekly": 99}),
            standing(0.0, 1.0),
            false,
        ),
        (
            "limit 5h below",
            json!({"limit_5h": 50}),
            standing(49.9, 0.0),
            true,
        ),
        (
            "limit 5h",
            json!({"limit_5h": 50}),
            standing(50.0, 0.0),
            false,
        ),
        (
            "limit weekly below",
            json!({"limit_weekly": 100}),
            standing(0.0, 99.9),
            true,
        ),
        (
            "limit weekly",
            json!({"limit_weekly": 100}),
            standing(0.0, 100.0),
            false,
        ),
        (
            "5h reset",
            json!({}),
            standing(100.0, 0.0).five_hour_resets_at(past),
            true,
        ),
        (
            "weekly reset",
            json!({}),
            standing(0.0, 100.0).weekly_resets_at(past),
            true,
        ),
    ];
    let mut rig = Rig::new().await;
    let tag = |place: usize| format!("c{place}");
    let mut credentials = Vec::new();
    for (place, (_, fields, ..)) in cases.iter().enumerate() {
        let mut credential = rig.oauth(&tag(place));
        let fields = fields.as_object().expect("an object").clone();
        credential
            .as_object_mut()
            .expect("an object")
            .extend(fields);
        credentials.push(credential);
    }
    let users: Vec<Value> = (0..cases.len())
        .map(|place| user(&tag(place), &tag(place)))
        .collect();
    let config = rig.config(json!({ "credentials": credentials, "users": users }));
    let client = rig.start_polled(config).await;
    for (place, (name, _, standing, usable)) in cases.into_iter().enumerate() {
        tell(&rig, &client, &tag(place), standing).await;
        let answer = client
            .token(&format!("token-{}", tag(place)))
            .turn(&without_session())
            .await;
        let expected = if usable {
            StatusCode::OK
        } else {
            StatusCode::TOO_MANY_REQUESTS
        };
        assert_eq!(answer.status, expected, "{name}");
    }
    rig.stop().await;
}

// Strategies

/// A member of a pool: its plan, its fields and its standing.
type Member = (&'static str, Value, Standing);

over_both!(least_used_chooses_the_highest_score_and_the_first_of_equals);
async fn least_used_chooses_the_highest_score_and_the_first_of_equals() {
    let week = unix_in(7 * 24 * 3600);
    let used = |weekly: f64| {
        Standing::new("plus")
            .weekly_used(weekly)
            .weekly_resets_at(week)
    };
    let near =
        |weekly: f64, hours: f64| used(weekly).weekly_resets_at(unix_in((hours * 3600.0) as u64));
    let plain = |standing: Standing| ("", json!({}), standing);
    let cases: [(&str, [Member; 2], usize); 9] = [
        ("equals", [plain(used(20.0)), plain(used(20.0))], 0),
        ("less used", [plain(used(40.0)), plain(used(20.0))], 1),
        (
            "the 5-hour window does not count",
            [plain(used(0.0).five_hour_used(98.0)), plain(used(0.0))],
            0,
        ),
        (
            "pro counts ten times",
            [plain(used(0.0)), ("pro", json!({}), used(85.0))],
            1,
        ),
        (
            "pro counts ten times, not more",
            [plain(used(0.0)), ("pro", json!({}), used(91.0))],
            0,
        ),
        (
            "plus counts once",
            [plain(used(0.0)), ("plus", json!({}), used(1.0))],
            0,
        ),
        (
            "what is left under the cap",
            [
                ("", json!({"limit_weekly": 30}), used(0.0)),
                plain(used(50.0)),
            ],
            1,
        ),
        (
            "a near reset",
            [plain(used(10.0)), plain(near(50.0, 24.0))],
            1,
        ),
        // 168 / 1 hour at most: 9 x 168 against 10 x 168.
        (
            "a reset nearer than an hour",
            [plain(near(90.0, 0.2)), plain(near(89.0, 0.9))],
            1,
        ),
    ];
    let mut rig = Rig::new().await;
    let (mut credentials, mut users) = (Vec::new(), Vec::new());
    for (place, (_, members, _)) in cases.iter().enumerate() {
        let tags = [0, 1].map(|member| format!("c{place}m{member}"));
        for (tag, (plan, fields, _)) in tags.iter().zip(members) {
            let mut credential = planned(&rig, tag, plan);
            credential
                .as_object_mut()
                .expect("an object")
                .extend(fields.as_object().expect("an object").clone());
            credentials.push(credential);
            users.push(user(tag, tag));
        }
        credentials.push(
            json!({ "tag": format!("pool{place}"), "type": "balancer", "credentials": tags }),
        );
        users.push(user(&format!("team{place}"), &format!("pool{place}")));
    }
    let config = rig.config(json!({ "credentials": credentials, "users": users }));
    let client = rig.start_polled(config).await;
    for (place, (name, members, expected)) in cases.into_iter().enumerate() {
        for (member, (plan, _, standing)) in members.into_iter().enumerate() {
            let standing = Standing {
                plan: plan.to_owned(),
                ..standing
            };
            tell(&rig, &client, &format!("c{place}m{member}"), standing).await;
        }
        let found = served(
            &rig,
            &client.token(&format!("token-team{place}")),
            &without_session(),
        )
        .await;
        assert_eq!(found, format!("c{place}m{expected}"), "{name}");
    }
    rig.stop().await;
}

over_both!(round_robin_rotates_over_the_usable_members_evenly);
async fn round_robin_rotates_over_the_usable_members_evenly() {
    for name in ["round_robin", "round-robin"] {
        let (mut rig, client) = start(&["a", "b", "c"], json!({ "strategy": name })).await;
        let alice = client.token("token-alice");
        let sessions =
            |from: usize, to: usize| (from..to).map(|number| turn(&format!("s{number}")));
        assert_eq!(
            served_each(&rig, &alice, sessions(0, 5)).await,
            ["a", "b", "c", "a", "b"]
        );
        tell(&rig, &client, "a", Standing::new("plus").weekly_used(99.0)).await;
        let further = served_each(&rig, &alice, sessions(5, 11)).await;
        let count = |tag: &str| further.iter().filter(|found| *found == tag).count();
        assert_eq!(
            (count("a"), count("b"), count("c")),
            (0, 3, 3),
            "{further:?}"
        );
        rig.stop().await;
    }
}

over_both!(random_chooses_every_usable_member_and_no_other);
async fn random_chooses_every_usable_member_and_no_other() {
    let (mut rig, client) = start(&["a", "b", "c"], json!({ "strategy": "random" })).await;
    tell(
        &rig,
        &client,
        "b",
        Standing::new("plus").five_hour_used(99.0),
    )
    .await;
    let sessions = (0..60).map(|number| turn(&format!("s{number}")));
    let tags = served_each(&rig, &client.token("token-alice"), sessions).await;
    let count = |tag: &str| tags.iter().filter(|found| *found == tag).count();
    assert_eq!(count("b"), 0);
    // Fewer than 10 of 60 by chance: once in ten million runs.
    assert!(count("a") >= 10 && count("c") >= 10, "{tags:?}");
    rig.stop().await;
}

over_both!(fallback_chooses_the_first_usable_member_and_is_never_sticky);
async fn fallback_chooses_the_first_usable_member_and_is_never_sticky() {
    let forms = [
        json!({ "type": "fallback" }),
        json!({ "strategy": "fallback" }),
    ];
    for form in forms {
        let (mut rig, client) = start(&["a", "b", "c"], form.clone()).await;
        let alice = client.token("token-alice");
        let session = turn("one");
        assert_eq!(served(&rig, &alice, &session).await, "a");
        rig.account("a").then(
            Reply::usage_limit_reached()
                .without_rate_limits()
                .resets_in_seconds(1),
        );
        assert_eq!(served(&rig, &alice, &session).await, "b", "{form}");
        wait_until_served_by(&rig, &alice, &session, "a").await;
        rig.stop().await;
    }
}

over_both!(an_operators_own_policy_chooses);
async fn an_operators_own_policy_chooses() {
    let mut rig = Rig::new().await;
    let credentials = json!([
        planned(&rig, "a", "pro"),
        planned(&rig, "b", "plus"),
        {"tag": "pool", "type": "balancer", "strategy": "mine", "credentials": ["a", "b"]},
    ]);
    let mut config =
        rig.config(json!({ "credentials": credentials, "users": [user("alice", "pool")] }));
    config["policies"] = json!([
        {"tag": "mine", "kind": "balancer", "path": "builtin:least-used", "config": {"plan_weights": {"plus": 50}}},
    ]);
    let client = rig.start_polled(config).await.token("token-alice");
    // 99 x 10 against 99 x 50.
    assert_eq!(served(&rig, &client, &without_session()).await, "b");
    assert_eq!(
        client.get("/ocm/v1/status").await.json()["plan_weight"].as_f64(),
        Some(60.0)
    );
    rig.stop().await;
}

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
        assert_ne!(next, home, "one without a session goes on round");
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
        "and lives there from now on"
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

// API keys

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_with_an_api_key_is_an_error_at_load() {
    for kind in ["balancer", "fallback"] {
        let mut rig = Rig::new().await;
        let pool = json!({ "tag": "pool", "type": kind, "credentials": ["a", "k"] });
        let config = rig.config(json!({ "credentials": [rig.oauth("a"), rig.api_key("k"), pool] }));
        let error = rig
            .try_start(config)
            .await
            .err()
            .expect("no gateway")
            .to_string();
        assert!(
            error.contains("services[0].credentials[2].credentials[1]: ")
                && error.contains("\"k\""),
            "{error}"
        );
        assert!(!error.contains("sk-k"), "{error}");
    }
}

over_both!(a_credential_that_becomes_an_api_key_is_skipped_by_its_pool);
async fn a_credential_that_becomes_an_api_key_is_skipped_by_its_pool() {
    let mut rig = Rig::new().await;
    let later = json!({ "tag": "k", "credential_path": rig.path("k.json") });
    let pool = json!({ "tag": "pool", "type": "fallback", "credentials": ["k", "a"] });
    let users = json!([user("alice", "pool"), user("k", "k")]);
    let config =
        rig.config(json!({ "credentials": [later, rig.oauth("a"), pool], "users": users }));
    let client = rig.start(config).await;
    rig.upstream.api_key("sk-k", "k");
    rig.write("k.json", key_file("sk-k").to_string());
    let begun = Instant::now();
    while client
        .token("token-k")
        .turn(&without_session())
        .await
        .status
        != StatusCode::OK
    {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "the key is not picked up"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        served(&rig, &client.token("token-alice"), &without_session()).await,
        "a"
    );
    let last = rows(&rig.ledger()).pop().expect("a row");
    assert_eq!(
        last.attempts(),
        [("a".to_owned(), "200".to_owned())],
        "the key was not even tried"
    );
    rig.stop().await;
}
