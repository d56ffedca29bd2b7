//! What a response of the usage API changes.

use std::fs;

use serde_json::{Value, json};
use tollgate_tests::upstream::{Gate, HeaderForm, Reply, Standing, WAIT_MAX};
use tollgate_tests::{Client, Rig, oauth_file, over_both};

use super::{check_served, config, pool, separate, usage, used, window};

/// `{"https://api.openai.com/auth":{"chatgpt_plan_type":"pro"}}` in base64url: the claims of an id
/// token.
const PRO: &str = "eyJodHRwczovL2FwaS5vcGVuYWkuY29tL2F1dGgiOnsiY2hhdGdwdF9wbGFuX3R5cGUiOiJwcm8ifX0";

async fn wait_for_used(rig: &Rig, tag: &str, expected: (f64, f64)) -> Value {
    rig.wait_for_credential(tag, WAIT_MAX, &format!("{expected:?} used"), |found| {
        used(found) == expected
    })
    .await
}

over_both!(a_poll_replaces_known_usage_even_with_a_lower_one);
async fn a_poll_replaces_known_usage_even_with_a_lower_one() {
    let (mut rig, client) = pool(&["a"]).await;
    let told = |five_hour: f64, weekly: f64| {
        Standing::new("plus")
            .five_hour_used(five_hour)
            .weekly_used(weekly)
    };
    rig.account("a").set_standing(told(80.0, 70.0));
    check_served(&client).await;
    assert_eq!(used(&rig.credential("a").await), (80.0, 70.0), "by headers");
    rig.account("a")
        .set_standing(told(10.0, 5.5).header_form(HeaderForm::Absent));
    check_served(&client).await;
    wait_for_used(&rig, "a", (10.0, 5.5)).await;
    rig.stop().await;
}

over_both!(a_poll_does_not_undo_a_response_that_overtook_it);
async fn a_poll_does_not_undo_a_response_that_overtook_it() {
    let mut rig = Rig::new().await;
    let config = config(&rig, &["a"]);
    let gate = Gate::new();
    let old = usage(window(10.0, 18_000), window(20.0, 604_800));
    rig.account("a")
        .then_for_poll(Reply::json(200, &old).hold_head(&gate));
    let client = rig.start(config).await.token("token-alice");
    gate.wait_until_reached().await;
    rig.account("a")
        .set_standing(Standing::new("plus").five_hour_used(50.0).weekly_used(60.0));
    // Only its headers report the usage: further polls report nothing.
    rig.account("a").always_for_poll(Reply::server_error(500));
    check_served(&client).await;
    gate.open();
    rig.wait_until_polled(&["a"]).await;
    assert_eq!(used(&rig.credential("a").await), (50.0, 60.0));
    rig.stop().await;
}

over_both!(a_credential_that_a_poll_reports_as_used_up_is_not_chosen);
async fn a_credential_that_a_poll_reports_as_used_up_is_not_chosen() {
    let cases = [
        ("5-hour", (100.0, 0.0)),
        ("weekly", (0.0, 100.0)),
        ("more than there is", (250.0, 0.0)),
    ];
    for (name, (five_hour, weekly)) in cases {
        let told = usage(window(five_hour, 18_000), window(weekly, 604_800));
        let mut rig = Rig::new().await;
        let config = config(&rig, &["a", "b"]);
        rig.account("a").always_for_poll(Reply::json(200, &told));
        let client = rig.start_polled(config).await.token("token-alice");
        let found = rig.credential("a").await;
        assert_eq!(
            (used(&found), &found["state"]),
            ((five_hour.min(100.0), weekly), &json!("paused")),
            "{name}"
        );
        check_served(&client).await;
        assert_eq!(
            (rig.account("a").turn_count(), rig.account("b").turn_count()),
            (0, 1),
            "{name}"
        );
        rig.stop().await;
    }
}

over_both!(windows_are_distinguished_by_their_length_in_either_slot);
async fn windows_are_distinguished_by_their_length_in_either_slot() {
    let (five_hour, weekly) = (|| window(40.5, 18_000), || window(30.0, 604_800));
    let cases = [
        (
            "the usual order",
            usage(five_hour(), weekly()),
            (40.5, 30.0),
        ),
        (
            "the other way round",
            usage(weekly(), five_hour()),
            (40.5, 30.0),
        ),
        (
            "about as long",
            usage(window(12.0, 604_740), window(34.0, 17_940)),
            (34.0, 12.0),
        ),
        (
            "a weekly window alone",
            usage(weekly(), Value::Null),
            (0.0, 30.0),
        ),
        (
            "another window beside it",
            usage(window(90.0, 2_592_000), five_hour()),
            (40.5, 0.0),
        ),
    ];
    let rig = Rig::new().await;
    for (place, (_, told, _)) in cases.iter().enumerate() {
        rig.oauth(&format!("c{place}"));
        rig.account(&format!("c{place}"))
            .always_for_poll(Reply::json(200, told));
    }
    let (mut rig, each) = separate(rig, cases.len()).await;
    for ((name, _, expected), (tag, ..)) in cases.into_iter().zip(each) {
        let found = rig.credential(&tag).await;
        assert_eq!(used(&found), expected, "{name}");
        for (window, used) in [("five_hour", expected.0), ("weekly", expected.1)] {
            assert_eq!(
                found[window]["resets_at"].is_null(),
                used == 0.0,
                "{name}: {found:#}"
            );
        }
    }
    rig.stop().await;
}

/// An auth.json of the account `tag` whose id token names the plan `pro`.
fn pro_file(tag: &str) -> Value {
    let mut file = oauth_file(&format!("access-{tag}"), &format!("account-{tag}"));
    file["tokens"]["id_token"] = json!(format!("x.{PRO}.y"));
    file
}

async fn plan_weight(client: &Client) -> Option<f64> {
    client.get("/ocm/v1/status").await.json()["plan_weight"].as_f64()
}

over_both!(the_plan_of_the_tokens_counts_until_a_poll_reports_another_and_the_weight_follows);
async fn the_plan_of_the_tokens_counts_until_a_poll_reports_another_and_the_weight_follows() {
    let mut rig = Rig::new().await;
    let config = config(&rig, &["a"]);
    rig.write("a.json", pro_file("a").to_string());
    let gate = Gate::new();
    rig.account("a").then_for_poll(Reply::ok().hold_head(&gate));
    let client = rig.start(config).await.token("token-alice");
    gate.wait_until_reached().await;
    assert_eq!(
        (
            rig.credential("a").await["plan"].as_str(),
            plan_weight(&client).await
        ),
        (Some("pro"), Some(10.0))
    );
    gate.open();
    for (plan, weight) in [("plus", 1.0), ("pro", 10.0)] {
        rig.account("a").set_standing(Standing::new(plan));
        check_served(&client).await;
        rig.wait_for_credential("a", WAIT_MAX, plan, |found| found["plan"] == plan)
            .await;
        assert_eq!(plan_weight(&client).await, Some(weight), "{plan}");
    }
    rig.stop().await;
}

over_both!(a_response_about_another_account_than_the_files_is_ignored);
async fn a_response_about_another_account_than_the_files_is_ignored() {
    let mut rig = Rig::new().await;
    let config = config(&rig, &["a"]);
    let gate = Gate::new();
    let about_a = usage(window(90.0, 18_000), window(80.0, 604_800));
    rig.account("a")
        .then_for_poll(Reply::json(200, &about_a).hold_head(&gate));
    rig.account("other")
        .set_standing(Standing::new("plus").five_hour_used(10.0).weekly_used(5.0));
    rig.start(config).await;
    gate.wait_until_reached().await;
    let known = rig.credential("a").await["refreshed_at"].clone();
    fs::write(
        rig.credential_file("a"),
        oauth_file("access-other", "account-other").to_string(),
    )
    .expect("it is written");
    let is_so = |found: &Value| found["refreshed_at"] != known;
    rig.wait_for_credential("a", WAIT_MAX, "another file", is_so)
        .await;
    gate.open();
    rig.account("other").wait_for_polls(1).await;
    wait_for_used(&rig, "a", (10.0, 5.0)).await;
    rig.stop().await;
}
