//! Changes of the file during a refresh.

use std::fs;

use serde_json::json;
use tollgate_tests::{read_json, replace_file, token_of, turn};

use super::{change_during_refresh, left_over};
use crate::checks::{check_served, check_unavailable};

#[tokio::test(flavor = "multi_thread")]
async fn a_login_written_during_a_refresh_is_kept_and_used() {
    for account in ["account-a", "account-of-another"] {
        let mut new = None;
        let (mut scene, client) = change_during_refresh(|scene| {
            let login = scene.rig.upstream.login(account);
            let text = login.auth_json().to_string();
            replace_file(&scene.file(), &text);
            new = Some((login, text));
        })
        .await;
        let (login, text) = new.expect("a login");
        check_served(account, &client.turn(&turn("one")).await);
        assert_eq!(
            scene.rig.presented_tokens(),
            [token_of(&login.auth_json(), "access_token").to_owned()]
        );
        scene.rig.wait_for_state("a", "ready").await;
        assert_eq!(fs::read_to_string(scene.file()).expect("it is there"), text);
        assert_eq!(
            (scene.token_posts(), left_over(&scene)),
            (1, Vec::new()),
            "{account}"
        );
        scene.rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_removed_during_a_refresh_stays_removed() {
    let (mut scene, client) =
        change_during_refresh(|scene| fs::remove_file(scene.file()).expect("it is there")).await;
    check_unavailable("removed", &client.turn(&turn("one")).await);
    scene.rig.wait_for_state("a", "unreadable").await;
    // The refresh has ended when the gateway has.
    scene.rig.stop().await;
    assert!(!scene.file().exists());
    assert_eq!((scene.token_posts(), left_over(&scene)), (1, Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_changes_of_the_file_during_a_refresh_are_kept() {
    let (mut scene, client) = change_during_refresh(|scene| {
        let mut file = read_json(&scene.file());
        file["theirs"] = json!({ "added": [1, 2.50] });
        replace_file(&scene.file(), file.to_string());
    })
    .await;
    check_served("served", &client.turn(&turn("one")).await);
    assert_eq!(
        read_json(&scene.file())["theirs"],
        json!({ "added": [1, 2.50] })
    );
    assert!(scene.has_newest_tokens());
    assert_eq!((scene.token_posts(), left_over(&scene)), (1, Vec::new()));
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_broken_during_a_refresh_gets_its_tokens_once_repaired() {
    let mut old = String::new();
    let (mut scene, client) = change_during_refresh(|scene| {
        old = fs::read_to_string(scene.file()).expect("it is there");
        replace_file(&scene.file(), &old[..old.len() / 2]);
    })
    .await;
    check_unavailable("broken", &client.turn(&turn("one")).await);
    scene.rig.stop().await;
    replace_file(&scene.file(), old);
    let client = scene.start(json!({})).await;
    check_served("mended", &client.turn(&turn("one")).await);
    assert!(scene.has_newest_tokens());
    assert_eq!(
        (scene.token_posts(), scene.login.reuses(), left_over(&scene)),
        (1, 0, Vec::new())
    );
    scene.rig.stop().await;
}
