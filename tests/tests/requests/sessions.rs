//! Sessions across a restart or a kill of the gateway: which keep their credential, which start
//! over, and where a turn's state is sent.

use std::fs;
use std::time::Duration;

use http::StatusCode;
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use tollgate_tests::upstream::{Reply, SeenRequest, Standing};
use tollgate_tests::{Client, Rig, over_both, turn, unix_in};

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

/// Returns a turn without a session.
fn without_session() -> Value {
    json!({ "model": "gpt-5.4", "stream": true, "input": [] })
}

/// Returns a turn without a session that continues that response.
fn after(response_id: &str) -> Value {
    let mut body = without_session();
    body["previous_response_id"] = json!(response_id);
    body
}

fn limited(seconds: u64) -> Reply {
    Reply::usage_limit_reached()
        .without_rate_limits()
        .resets_in_seconds(seconds)
}

/// Sends a turn, and returns the last request of it that upstream saw.
async fn seen(rig: &Rig, client: &Client, body: &Value) -> SeenRequest {
    let before = rig.upstream.turns().len();
    let answer = client.turn(body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    rig.upstream
        .turns()
        .split_off(before)
        .pop()
        .expect("a turn")
}

/// Sends a turn, and returns the tag of the account that answers it.
async fn served(rig: &Rig, client: &Client, body: &Value) -> String {
    let account = seen(rig, client, body).await.account.expect("an account");
    account
        .strip_prefix("account-")
        .expect("an account of the rig")
        .to_owned()
}

/// Gives alice's session `one` its home on `b`, since `a` refuses it. A restart forgets the
/// refusal: requests without a session go to `a` then.
async fn settle_on_b(rig: &Rig, client: &Client) {
    rig.account("a").then(limited(600));
    rig.account("b").then(Reply::ok().response_id("resp_of_b"));
    let alice = client.token("token-alice");
    assert_eq!(served(rig, &alice, &turn("one")).await, "b");
}

/// A gateway with that configuration, which was stopped after alice's session `one` had its home
/// on `b`.
async fn settled(config: impl FnOnce(&Rig) -> Value) -> (Rig, Value) {
    let mut rig = Rig::new().await;
    let config = config(&rig);
    let client = rig.start_polled(config.clone()).await;
    settle_on_b(&rig, &client).await;
    rig.stop().await;
    (rig, config)
}

/// Makes the first of these the preferred account: the others have used more.
fn prefer(rig: &Rig, tags: &[&str]) {
    for (place, tag) in tags.iter().enumerate() {
        rig.account(tag)
            .set_standing(Standing::new("plus").weekly_used(10.0 * place as f64));
    }
}

/// Alice and bob on a pool of `a` and `b`, of which `a` is preferred.
fn two(rig: &Rig) -> Value {
    let config = rig.team(&["a", "b"], json!({}));
    prefer(rig, &["a", "b"]);
    config
}

// Sessions that keep their credential

/// Checks that alice's session `one` and what continues its response go to `b`, and everything else
/// to `a`.
async fn check_kept(rig: &Rig, client: &Client) {
    let (alice, bob) = (client.token("token-alice"), client.token("token-bob"));
    assert_eq!(served(rig, &alice, &turn("another")).await, "a");
    assert_eq!(served(rig, &alice, &turn("one")).await, "b");
    assert_eq!(served(rig, &alice, &after("resp_of_b")).await, "b");
    assert_eq!(served(rig, &alice, &after("resp_unknown")).await, "a");
    assert_eq!(
        served(rig, &bob, &turn("one")).await,
        "a",
        "the session is not bob's"
    );
    assert_eq!(
        served(rig, &bob, &after("resp_of_b")).await,
        "a",
        "the response is not bob's"
    );
    assert_eq!(served(rig, &alice, &turn("one")).await, "b", "and it stays");
}

over_both!(sessions_and_responses_stay_with_their_credential_across_a_restart);
async fn sessions_and_responses_stay_with_their_credential_across_a_restart() {
    let (mut rig, config) = settled(two).await;
    let client = rig.start_polled(config).await;
    check_kept(&rig, &client).await;
    rig.stop().await;
}

over_both!(
    sessions_and_responses_stay_with_their_credential_across_a_kill_right_after_the_response
);
async fn sessions_and_responses_stay_with_their_credential_across_a_kill_right_after_the_response()
{
    let rig = Rig::new().await;
    let config = two(&rig);
    let first = rig.spawn(&config).await;
    rig.wait_until_polled(&["a", "b"]).await;
    settle_on_b(&rig, &first.client()).await;
    first.kill();
    let second = rig.spawn(&config).await;
    rig.wait_until_polled(&["a", "b"]).await;
    check_kept(&rig, &second.client()).await;
    second.kill();
}

over_both!(a_session_stays_across_a_restart_under_every_sticky_strategy);
async fn a_session_stays_across_a_restart_under_every_sticky_strategy() {
    for strategy in ["least_used", "round_robin", "random"] {
        let (mut rig, config) =
            settled(|rig| rig.team(&["a", "b"], json!({ "strategy": strategy }))).await;
        for _ in 0..2 {
            let client = rig.start_polled(config.clone()).await.token("token-alice");
            for _ in 0..4 {
                assert_eq!(served(&rig, &client, &turn("one")).await, "b", "{strategy}");
            }
            rig.stop().await;
        }
    }
}

over_both!(a_session_keeps_its_credential_at_another_place_in_the_configuration);
async fn a_session_keeps_its_credential_at_another_place_in_the_configuration() {
    let (mut rig, _) = settled(two).await;
    let mut config = rig.team(&["c", "b", "a"], json!({}));
    prefer(&rig, &["c", "a", "b"]);
    config["services"][0]["users"]
        .as_array_mut()
        .expect("a list")
        .reverse();
    let client = rig.start_polled(config).await;
    let alice = client.token("token-alice");
    assert_eq!(served(&rig, &alice, &turn("another")).await, "c");
    assert_eq!(served(&rig, &alice, &turn("one")).await, "b");
    assert_eq!(served(&rig, &alice, &after("resp_of_b")).await, "b");
    assert_eq!(
        served(&rig, &client.token("token-bob"), &turn("one")).await,
        "c"
    );
    rig.stop().await;
}

over_both!(a_session_returns_from_a_temporary_failover_after_a_restart);
async fn a_session_returns_from_a_temporary_failover_after_a_restart() {
    let (mut rig, config) = settled(two).await;
    let client = rig.start_polled(config.clone()).await.token("token-alice");
    rig.account("b").then(limited(60));
    assert_eq!(
        served(&rig, &client, &turn("one")).await,
        "a",
        "for a minute"
    );
    rig.stop().await;
    let client = rig.start_polled(config).await.token("token-alice");
    assert_eq!(served(&rig, &client, &turn("one")).await, "b");
    rig.stop().await;
}

over_both!(a_session_that_moved_keeps_its_new_home_across_a_restart);
async fn a_session_that_moved_keeps_its_new_home_across_a_restart() {
    let (mut rig, config) = settled(two).await;
    let client = rig.start_polled(config.clone()).await.token("token-alice");
    rig.account("b").then(limited(24 * 3600));
    assert_eq!(served(&rig, &client, &turn("one")).await, "a", "for good");
    rig.stop().await;
    prefer(&rig, &["b", "a"]);
    let client = rig.start_polled(config).await.token("token-alice");
    assert_eq!(served(&rig, &client, &turn("another")).await, "b");
    assert_eq!(served(&rig, &client, &turn("one")).await, "a");
    rig.stop().await;
}

over_both!(a_session_returns_to_its_home_if_the_full_window_resets_within_minutes);
async fn a_session_returns_to_its_home_if_the_full_window_resets_within_minutes() {
    for (resets_in, expected) in [(5 * MINUTE, "b"), (HOUR, "a")] {
        let (mut rig, config) = settled(two).await;
        let client = rig.start_polled(config.clone()).await.token("token-alice");
        let full = Standing::new("plus")
            .five_hour_used(100.0)
            .five_hour_resets_at(unix_in(resets_in.as_secs()));
        rig.account("b").set_standing(full);
        assert_eq!(served(&rig, &client, &turn("one")).await, "b");
        assert_eq!(
            served(&rig, &client, &turn("one")).await,
            "a",
            "b reported that its window is full"
        );
        rig.stop().await;
        prefer(&rig, &["a", "b"]);
        let client = rig.start_polled(config).await.token("token-alice");
        assert_eq!(
            served(&rig, &client, &turn("one")).await,
            expected,
            "a window that resets in {resets_in:?}"
        );
        rig.stop().await;
    }
}

// Sessions that start over

/// Makes the sessions and responses in the ledger of a stopped gateway older by `age`.
fn age(rig: &Rig, age: Duration) {
    let ledger = Connection::open(rig.ledger()).expect("the ledger opens");
    let age = i64::try_from(age.as_millis()).expect("not so long");
    for statement in [
        "UPDATE session_home SET used_at = used_at - ?1",
        "UPDATE usage SET started_at = started_at - ?1, finished_at = finished_at - ?1",
    ] {
        assert!(
            ledger
                .execute(statement, params![age])
                .expect("the ledger can be written")
                > 0
        );
    }
}

over_both!(a_session_that_was_idle_for_its_lifetime_starts_over_after_a_restart);
async fn a_session_that_was_idle_for_its_lifetime_starts_over_after_a_restart() {
    let cases = [
        (None, 24 * HOUR - MINUTE, "b"),
        (None, 24 * HOUR, "a"),
        (Some("2h"), 2 * HOUR - MINUTE, "b"),
        (Some("2h"), 2 * HOUR, "a"),
    ];
    for (lifetime, idle, expected) in cases {
        let (mut rig, mut config) = settled(two).await;
        if let Some(lifetime) = lifetime {
            config["limits"] = json!({ "session_lifetime": lifetime });
        }
        age(&rig, idle);
        let client = rig.start_polled(config).await.token("token-alice");
        assert_eq!(
            served(&rig, &client, &turn("one")).await,
            expected,
            "{lifetime:?}, idle for {idle:?}"
        );
        assert_eq!(
            served(&rig, &client, &after("resp_of_b")).await,
            expected,
            "{lifetime:?}, idle for {idle:?}"
        );
        rig.stop().await;
    }
}

over_both!(the_lifetime_of_a_session_counts_from_its_last_use);
async fn the_lifetime_of_a_session_counts_from_its_last_use() {
    let (mut rig, config) = settled(two).await;
    for _ in 0..3 {
        age(&rig, 20 * HOUR);
        let client = rig.start_polled(config.clone()).await.token("token-alice");
        assert_eq!(served(&rig, &client, &turn("one")).await, "b");
        rig.stop().await;
    }
}

over_both!(a_session_whose_credential_was_removed_from_the_configuration_starts_over);
async fn a_session_whose_credential_was_removed_from_the_configuration_starts_over() {
    let (mut rig, _) = settled(two).await;
    let config = rig.team(&["a", "c"], json!({}));
    prefer(&rig, &["a", "c"]);
    let client = rig.start_polled(config).await.token("token-alice");
    assert_eq!(served(&rig, &client, &turn("one")).await, "a");
    assert_eq!(served(&rig, &client, &after("resp_of_b")).await, "a");
    assert_eq!(
        rig.credential("a").await["sessions"],
        1,
        "it is served there now"
    );
    rig.stop().await;
}

over_both!(a_session_whose_credential_left_its_pool_starts_over);
async fn a_session_whose_credential_left_its_pool_starts_over() {
    let (mut rig, mut config) = settled(two).await;
    config["services"][0]["credentials"][2]["credentials"] = json!(["a"]);
    let client = rig.start_polled(config).await.token("token-alice");
    assert_eq!(served(&rig, &client, &turn("one")).await, "a");
    assert_eq!(served(&rig, &client, &after("resp_of_b")).await, "a");
    rig.stop().await;
}

over_both!(the_most_recently_used_sessions_are_restored_if_there_are_too_many);
async fn the_most_recently_used_sessions_are_restored_if_there_are_too_many() {
    let (mut rig, mut config) = settled(two).await;
    config["limits"] = json!({ "sessions": 2 });
    for session in ["two", "three"] {
        age(&rig, MINUTE);
        let client = rig.start_polled(config.clone()).await.token("token-alice");
        rig.account("a").then(limited(600));
        assert_eq!(served(&rig, &client, &turn(session)).await, "b");
        rig.stop().await;
    }
    let client = rig.start_polled(config).await.token("token-alice");
    for (session, expected) in [("three", "b"), ("two", "b"), ("one", "a")] {
        assert_eq!(
            served(&rig, &client, &turn(session)).await,
            expected,
            "{session}"
        );
    }
    rig.stop().await;
}

// A turn's state

const TURN_STATE: &str = "x-codex-turn-state";

/// Returns alice's client, which sends this state back.
fn with_state(client: &Client, state: &str) -> Client {
    client.token("token-alice").header(TURN_STATE, state)
}

/// Returns the account that answers alice's session `one`, and the turn's state that it receives.
async fn served_with(rig: &Rig, client: &Client) -> (String, Option<String>) {
    let seen = seen(rig, client, &turn("one")).await;
    (
        seen.account.clone().expect("an account"),
        seen.header(TURN_STATE).map(str::to_owned),
    )
}

fn sent(account: &str, state: Option<&str>) -> (String, Option<String>) {
    (format!("account-{account}"), state.map(str::to_owned))
}

/// A running team on `a` and `b`. Each has issued a state: `a` first, and then `b`, to which a
/// refusal of one minute moved the session.
async fn with_two_states() -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let config = two(&rig);
    let client = rig.start_polled(config).await;
    rig.account("a")
        .then(Reply::ok().header(TURN_STATE, "state-of-a"));
    rig.account("b")
        .then(Reply::ok().header(TURN_STATE, "state-of-b"));
    let first = client.token("token-alice").turn(&turn("one")).await;
    assert_eq!(
        first.header(TURN_STATE),
        Some("state-of-a"),
        "the client gets it"
    );
    assert_eq!(
        served_with(&rig, &with_state(&client, "state-of-a")).await,
        sent("a", Some("state-of-a"))
    );
    (rig, client)
}

over_both!(a_turns_state_is_sent_to_the_account_that_issued_it_and_to_no_other);
async fn a_turns_state_is_sent_to_the_account_that_issued_it_and_to_no_other() {
    let (mut rig, client) = with_two_states().await;
    let of_a = with_state(&client, "state-of-a");
    rig.account("a").then(limited(60));
    assert_eq!(
        served_with(&rig, &of_a).await,
        sent("b", None),
        "in the same request"
    );
    let attempts = rig.upstream.turns();
    let refused = &attempts[attempts.len() - 2];
    assert_eq!(
        (refused.account.as_deref(), refused.header(TURN_STATE)),
        (Some("account-a"), Some("state-of-a"))
    );
    assert_eq!(
        served_with(&rig, &of_a).await,
        sent("b", None),
        "in a further one"
    );
    assert_eq!(
        served_with(&rig, &with_state(&client, "state-of-b")).await,
        sent("b", Some("state-of-b"))
    );
    assert_eq!(
        served_with(&rig, &with_state(&client, "unknown-state")).await,
        sent("b", None)
    );
    rig.stop().await;
}

over_both!(a_turns_state_is_not_sent_while_the_file_of_its_issuer_is_missing);
async fn a_turns_state_is_not_sent_while_the_file_of_its_issuer_is_missing() {
    let (mut rig, client) = with_two_states().await;
    let of_a = with_state(&client, "state-of-a");
    let file = rig.credential_file("a");
    let text = fs::read(&file).expect("it is there");
    fs::remove_file(&file).expect("it is there");
    rig.wait_for_state("a", "unreadable").await;
    assert_eq!(served_with(&rig, &of_a).await, sent("b", None));
    fs::write(&file, text).expect("the folder can be written");
    rig.wait_for_state("a", "ready").await;
    // The session's home may be elsewhere now: another session has none.
    let chosen = seen(&rig, &of_a, &without_session()).await;
    assert_eq!(chosen.account.as_deref(), Some("account-a"));
    assert_eq!(chosen.header(TURN_STATE), Some("state-of-a"));
    rig.stop().await;
}

over_both!(a_turns_state_of_another_user_is_not_sent);
async fn a_turns_state_of_another_user_is_not_sent() {
    let (mut rig, client) = with_two_states().await;
    let bob = client.token("token-bob").header(TURN_STATE, "state-of-a");
    assert_eq!(served_with(&rig, &bob).await, sent("a", None));
    rig.stop().await;
}

over_both!(with_one_account_every_turns_state_is_sent);
async fn with_one_account_every_turns_state_is_sent() {
    let mut rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    let client = rig
        .start_polled(config)
        .await
        .header(TURN_STATE, "from-before-a-restart");
    assert_eq!(
        served_with(&rig, &client).await,
        sent("a", Some("from-before-a-restart"))
    );
    rig.stop().await;
}
