//! Refreshes that were interrupted, and their journals.

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use tollgate_tests::upstream::TokenReply;
use tollgate_tests::{LoginScene, days_ago, read_json, replace_file, turn};

use super::left_over;
use crate::checks::{check_served, check_unavailable};

fn journal(scene: &LoginScene) -> PathBuf {
    scene.rig.path("a.json.refresh-journal")
}

/// A refresh whose response was lost, after the gateway has ended. The journal says that the token
/// was presented.
async fn lost_response() -> LoginScene {
    let mut scene = LoginScene::new(-60).await;
    scene.login.then_for_token(TokenReply::well().cut());
    let client = scene.start(json!({})).await;
    check_unavailable("lost", &client.turn(&turn("one")).await);
    scene.rig.stop().await;
    let noted = read_json(&journal(&scene));
    assert!(
        noted["spent"].is_string() && noted["tokens"].is_null(),
        "no answer is noted"
    );
    scene
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_journaled_before_a_kill_are_recovered_at_the_start() {
    let mut scene = lost_response().await;
    let mut noted = read_json(&journal(&scene));
    let tokens = &scene.login.auth_json()["tokens"];
    noted["tokens"] = ["id_token", "access_token", "refresh_token"]
        .map(|name| (name, tokens[name].clone()))
        .into_iter()
        .collect();
    fs::write(journal(&scene), noted.to_string()).expect("it can be written");
    let client = scene.start(json!({})).await;
    assert!(scene.has_newest_tokens());
    assert_eq!(left_over(&scene), Vec::<String>::new());
    check_served("recovered", &client.turn(&turn("one")).await);
    assert_eq!((scene.login.post_count(), scene.login.reuses()), (1, 0));
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_be_spent_is_not_presented_again_by_the_next_gateway() {
    let mut scene = lost_response().await;
    for _ in 0..2 {
        let client = scene.start(json!({})).await;
        check_unavailable("may be spent", &client.turn(&turn("one")).await);
        let status = scene.rig.credential("a").await;
        assert_eq!(status["state"], "login_needed", "{status:#}");
        assert_eq!((scene.login.post_count(), scene.login.reuses()), (1, 0));
        scene.rig.stop().await;
    }
    // A new login clears the state.
    let new = scene.rig.upstream.login("account-a");
    replace_file(&scene.file(), new.renew_with(-60).to_string());
    let client = scene.start(json!({})).await;
    check_served("a new login", &client.turn(&turn("one")).await);
    assert_eq!((new.post_count(), left_over(&scene)), (1, Vec::new()));
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_another_token_or_without_content_changes_nothing() {
    let other = json!({
        "spent": "0".repeat(64),
        "at": days_ago(300),
        "tokens": { "access_token": "not-ours", "refresh_token": "not-ours" },
    });
    for (name, text) in [
        ("another token's", other.to_string()),
        ("half", r#"{"spent": "0"#.to_owned()),
        ("empty", String::new()),
    ] {
        let mut scene = LoginScene::new(-60).await;
        fs::write(journal(&scene), text).expect("it can be written");
        let client = scene.start(json!({})).await;
        check_served(name, &client.turn(&turn("one")).await);
        assert!(scene.has_newest_tokens(), "{name}");
        assert_eq!(
            (scene.token_posts(), left_over(&scene)),
            (1, Vec::new()),
            "{name}"
        );
        scene.rig.stop().await;
    }
}
