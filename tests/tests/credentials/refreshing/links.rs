//! Refreshes of an auth.json behind links.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::json;
use tollgate_tests::upstream::{Gate, TokenReply};
use tollgate_tests::{LoginScene, read_json, token_of, turn};

use super::beside;
use crate::checks::{check_served, check_unavailable};

/// Makes the credential's file a link to a link to `theirs/auth.json`, and returns that path.
fn link_to_other_folder(scene: &LoginScene) -> PathBuf {
    let target = scene.rig.path("theirs").join("auth.json");
    for folder in ["between", "theirs"] {
        fs::create_dir(scene.rig.path(folder)).expect("a folder can be made");
    }
    fs::rename(scene.file(), &target).expect("a file can be moved");
    symlink(
        "../theirs/auth.json",
        scene.rig.path("between").join("link"),
    )
    .expect("a link can be made");
    symlink("between/link", scene.file()).expect("a link can be made");
    target
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("a plain name")
        })
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_and_journal_are_beside_the_target_of_links() {
    let mut scene = LoginScene::new(-60).await;
    let target = link_to_other_folder(&scene);
    let gate = Gate::new();
    scene.login.then_for_token(TokenReply::well().behind(&gate));
    let client = scene.start(json!({})).await;
    gate.wait_until_reached().await;
    let theirs = scene.rig.path("theirs");
    assert_eq!(
        names_in(&theirs),
        ["auth.json", "auth.json.lock", "auth.json.refresh-journal"]
    );
    gate.open();
    check_served("served", &client.turn(&turn("one")).await);
    assert!(scene.file().is_symlink() && scene.rig.path("between").join("link").is_symlink());
    assert!(!target.is_symlink() && scene.has_newest_tokens());
    assert_eq!(names_in(&scene.rig.path("between")), ["link"]);
    assert_eq!(names_in(&theirs), ["auth.json", "auth.json.lock"]);
    assert!(!beside(&scene.rig, ".lock").exists());
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tokens_are_requested_if_they_could_not_be_stored_beside_the_target_of_links() {
    let mut scene = LoginScene::new(-60).await;
    let journal = link_to_other_folder(&scene).with_extension("json.refresh-journal");
    fs::create_dir(&journal).expect("a folder can be made");
    let client = scene.start(json!({})).await;
    check_unavailable("not writable", &client.turn(&turn("one")).await);
    let status = scene.rig.credential("a").await;
    assert_eq!(
        (&status["state"], scene.token_posts()),
        (&json!("cannot_refresh"), 0),
        "{status:#}"
    );
    let reason = status["reason"].as_str().expect("a reason");
    assert!(
        reason.contains("cannot") && reason.contains("auth.json.refresh-journal"),
        "{reason}"
    );
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn journaled_tokens_are_recovered_at_the_start_beside_the_target_of_links() {
    let mut scene = LoginScene::new(-60).await;
    let journal = link_to_other_folder(&scene).with_extension("json.refresh-journal");
    scene.login.then_for_token(TokenReply::well().cut());
    let client = scene.start(json!({})).await;
    check_unavailable("lost", &client.turn(&turn("one")).await);
    scene.rig.stop().await;
    let mut noted = read_json(&journal);
    let file = scene.login.auth_json();
    noted["tokens"] = json!({
        "id_token": token_of(&file, "id_token"),
        "access_token": token_of(&file, "access_token"),
        "refresh_token": token_of(&file, "refresh_token"),
    });
    fs::write(&journal, noted.to_string()).expect("it can be written");
    let client = scene.start(json!({})).await;
    check_served("recovered", &client.turn(&turn("one")).await);
    assert!(scene.file().is_symlink() && scene.has_newest_tokens());
    assert_eq!((scene.login.post_count(), journal.exists()), (1, false));
    scene.rig.stop().await;
}
