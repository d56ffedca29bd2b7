//! Rate limits of a credential whose auth.json changes.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::upstream::{Gate, Reply, Standing};
use tollgate_tests::{Answer, Client, Rig, oauth_file, over_both, replace_file, turn};

use super::refusal;

over_both!(late_responses_about_an_account_do_not_change_its_successor);
async fn late_responses_about_an_account_do_not_change_its_successor() {
    let used_up = Standing::new("plus").weekly_used(100.0);
    for (name, late) in [
        ("a 429", refusal().resets_in_seconds(600)),
        ("headers", Reply::ok()),
    ] {
        let mut rig = Rig::new().await;
        let config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
        let client = rig.start_polled(config).await;
        let gate = Gate::new();
        rig.account("a").set_standing(used_up.clone());
        rig.account("a").then(late.hold_head(&gate));
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.turn(&turn("one")).await }
        });
        gate.wait_until_reached().await;
        let before = rig.credential("a").await["refreshed_at"].clone();
        let new = rig.upstream.account("access-new", "account-new");
        // A poll of the new account would hide the fault.
        new.always_for_poll(Reply::ok().hold_head(&Gate::new()));
        replace_file(
            &rig.credential_file("a"),
            oauth_file("access-new", "account-new").to_string(),
        );
        let is_so = |found: &Value| found["refreshed_at"] != before && found["state"] == "ready";
        rig.wait_for_credential("a", Duration::from_secs(20), "the new account", is_so)
            .await;
        gate.open();
        let answer = waiting.await.expect("no panic");
        assert_eq!(
            answer.status.as_u16(),
            if name == "headers" { 200 } else { 429 },
            "{name}: {}",
            answer.text()
        );
        let status = rig.credential("a").await;
        assert_eq!(
            (&status["state"], &status["usable"]),
            (&json!("ready"), &json!(true)),
            "{name}: {status:#}"
        );
        assert_ne!(status["weekly"]["used"], 100.0, "{name}: {status:#}");
        assert_eq!(
            client.turn(&turn("one")).await.status,
            StatusCode::OK,
            "{name}"
        );
        assert_eq!(new.turn_count(), 1, "{name}");
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auth_file_that_appears_or_is_repaired_later_is_loaded() {
    let good = oauth_file("access-a", "account-a").to_string();
    let begin = |text: &str| Some(text.to_owned());
    for (name, first) in [
        ("missing", None),
        ("empty", begin("")),
        ("cut off", begin(&good[..40])),
        ("a list", begin("[]")),
    ] {
        let mut rig = Rig::new().await;
        rig.account("a");
        if let Some(text) = first {
            rig.write("a.json", text);
        }
        let config = rig.config(
            json!({ "credentials": [{"tag": "a", "credential_path": rig.path("a.json")}] }),
        );
        let client = rig.start(config).await;
        let answer = client.turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{name}");
        assert_eq!(
            answer.json()["error"]["code"],
            "credentials_unavailable",
            "{name}"
        );

        rig.write("a.json", &good);
        wait_until_served(&client, name).await;
        rig.stop().await;
    }
}

/// Within the 2 seconds after which the file is read again, and some for a slow machine.
async fn wait_until_served(client: &Client, name: &str) {
    let begun = Instant::now();
    loop {
        let answer: Answer = client.turn(&turn("one")).await;
        if answer.status == StatusCode::OK {
            return;
        }
        let body: Value = answer.json();
        assert!(
            begun.elapsed() < Duration::from_secs(8),
            "{name}: still {body}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
