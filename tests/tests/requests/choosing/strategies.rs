//! What each strategy chooses.

use serde_json::{Value, json};
use tollgate_tests::upstream::{Reply, Standing};
use tollgate_tests::{Client, Rig, over_both, turn, unix_in, user};

use super::{planned, served, start, tell, wait_until_served_by, without_session};

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

/// A member of a pool: its plan, its fields and its standing.
type MemberCase = (&'static str, Value, Standing);

/// A name, the two members of a pool, and which of them is chosen.
type PairCase = (&'static str, [MemberCase; 2], usize);

/// Starts a gateway with a pool `poolN` of `cNm0` and `cNm1`, and a user `teamN`, for each case.
async fn start_pairs(cases: &[PairCase]) -> (Rig, Client) {
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
    (rig, client)
}

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
    let cases: [PairCase; 9] = [
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
    let (mut rig, client) = start_pairs(&cases).await;
    for (place, (name, members, expected)) in cases.into_iter().enumerate() {
        for (member, (plan, _, mut standing)) in members.into_iter().enumerate() {
            standing.plan = plan.to_owned();
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
