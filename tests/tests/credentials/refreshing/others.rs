//! Refreshes beside other credentials, other processes and other writers of the file.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, symlink};

use serde_json::{Value, json};
use tokio::time::timeout;
use tollgate_tests::upstream::{Gate, Reply, TokenReply, WAIT_MAX};
use tollgate_tests::{
    LoginGroup, LoginScene, Rig, days_ago, make_fifo, oauth_file, read_json, replace_file,
    token_of, turn, user,
};

use super::beside;
use crate::checks::{check_served, check_unavailable};

/// Holds the lock of the file, as another process would.
fn lock(rig: &Rig) -> File {
    let lock = File::create(beside(rig, ".lock")).expect("the folder can be written");
    lock.lock().expect("a file can be locked");
    lock
}

// Beside other credentials

#[tokio::test(flavor = "multi_thread")]
async fn refreshes_without_waiting_requests_run_one_after_another_and_the_others_at_once() {
    let mut rig = Rig::new().await;
    let gate = Gate::new();
    let mut group = LoginGroup::default();
    for (tag, seconds) in [("a", 200), ("b", 200), ("c", -60)] {
        group.add(&rig, tag, seconds);
    }
    let logins = &group.logins;
    for login in &logins[..2] {
        login.then_for_token(TokenReply::well().behind(&gate));
    }
    let client = rig.start(group.config(&rig)).await;
    gate.wait_until_reached().await;
    for tag in ["c", "a", "b"] {
        check_served(
            tag,
            &client
                .token(&format!("token-{tag}"))
                .turn(&turn("one"))
                .await,
        );
    }
    assert_eq!(
        (
            logins[0].post_count() + logins[1].post_count(),
            logins[2].post_count()
        ),
        (1, 1)
    );
    gate.open();
    for login in logins {
        login.wait_for_posts(1).await;
    }
    for tag in ["a", "b", "c"] {
        rig.wait_for_state(tag, "ready").await;
    }
    assert_eq!(rig.token_posts(), 3);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_credentials_with_one_file_cause_one_refresh() {
    let mut scene = LoginScene::new(-60).await;
    let link = scene.rig.path("b.json");
    let other = json!({ "tag": "b", "credential_path": link });
    let users = ["a", "b"].map(|tag| user(tag, tag));
    let config = scene
        .rig
        .config(json!({ "credentials": [scene.credential, other], "users": users }));
    let gate = Gate::new();
    scene.login.then_for_token(TokenReply::well().behind(&gate));
    let client = scene.rig.start(config).await;
    gate.wait_until_reached().await;
    // A configuration that names a file twice is rejected, so the second path becomes a link to the
    // file later.
    symlink("a.json", link).expect("a link can be made");
    scene.rig.wait_for_state("b", "refreshing").await;
    gate.open();
    for tag in ["a", "b"] {
        check_served(
            tag,
            &client
                .token(&format!("token-{tag}"))
                .turn(&turn("one"))
                .await,
        );
        assert_eq!(
            scene.rig.presented_tokens().pop().as_deref(),
            Some(token_of(&scene.login.auth_json(), "access_token"))
        );
    }
    assert_eq!((scene.token_posts(), scene.login.reuses()), (1, 0));
    scene.rig.stop().await;
}

// Beside another process

#[tokio::test(flavor = "multi_thread")]
async fn no_tokens_are_requested_while_another_process_holds_the_lock_and_its_tokens_are_used() {
    for newer in [true, false] {
        let mut scene = LoginScene::new(-60).await;
        let lock = lock(&scene.rig);
        let client = scene.start(json!({})).await;
        scene.rig.wait_for_state("a", "refreshing").await;
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.turn(&turn("one")).await }
        });
        if newer {
            replace_file(&scene.file(), scene.login.renew_with(3600).to_string());
        }
        assert_eq!(scene.token_posts(), 0, "newer: {newer}");
        drop(lock);
        check_served("then", &waiting.await.expect("an answer"));
        scene.wait_for_new_tokens().await;
        assert_eq!(
            (scene.token_posts(), scene.login.reuses()),
            (usize::from(!newer), 0),
            "newer: {newer}"
        );
        scene.rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_held_for_too_long_spends_no_token_and_is_tried_again() {
    let mut scene = LoginScene::new(-60).await;
    let lock = lock(&scene.rig);
    let client = scene.start(json!({ "lock_timeout": "100ms" })).await;
    check_unavailable("held", &client.turn(&turn("one")).await);
    assert_eq!(scene.token_posts(), 0);
    drop(lock);
    scene.wait_for_new_tokens().await;
    check_served("released", &client.turn(&turn("one")).await);
    assert_eq!(scene.token_posts(), 1);
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_in_the_place_of_the_lock_blocks_nothing() {
    let mut scene = LoginScene::new(-60).await;
    let lock = beside(&scene.rig, ".lock");
    make_fifo(&lock);
    let client = scene
        .start(json!({ "lock_timeout": "200ms", "refresh_timeout": "200ms" }))
        .await;
    let answer = client.turn(&turn("one")).await;
    let told = scene.rig.credential("a").await;
    let ended = timeout(WAIT_MAX, scene.rig.stop()).await.is_ok();
    // A thread that blocks on it continues once it has a reader: the end of a test waits for its
    // threads.
    let _reader = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&lock);
    fs::remove_file(lock).expect("it is there");
    assert!(ended, "the gateway ends");
    check_unavailable("a FIFO", &answer);
    assert_eq!(
        (&told["state"], scene.token_posts()),
        (&json!("cannot_refresh"), 0),
        "{told:#}"
    );
}

// Beside other writers of the file

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_needs_a_refresh_gets_it_right_after_the_last_one() {
    for during in [false, true] {
        let mut scene = LoginScene::new(-60).await;
        let other = scene.rig.upstream.login("account-of-another");
        let text = other.renew_with(-60).to_string();
        let gate = Gate::new();
        scene.login.then_for_token(TokenReply::well().behind(&gate));
        let client = scene.start(json!({})).await;
        gate.wait_until_reached().await;
        if during {
            replace_file(&scene.file(), &text);
        }
        gate.open();
        if !during {
            scene.wait_for_new_tokens().await;
            replace_file(&scene.file(), &text);
        }
        other.wait_for_posts(1).await;
        let is_so = |found: &Value| found["state"] == "ready";
        scene
            .rig
            .wait_for_credential("a", WAIT_MAX, "ready", is_so)
            .await;
        check_served("the other", &client.turn(&turn("one")).await);
        assert_eq!(
            read_json(&scene.file())["tokens"],
            other.auth_json()["tokens"],
            "during: {during}"
        );
        assert_eq!(
            (scene.login.post_count(), other.post_count()),
            (1, 1),
            "during: {during}"
        );
        scene.rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_file_without_other_tokens_does_not_clear_login_needed() {
    let mut scene = LoginScene::new(-60).await;
    scene.login.always_for_token(TokenReply::status(401));
    let client = scene.start(json!({})).await;
    check_unavailable("before", &client.turn(&turn("one")).await);
    let mut file = read_json(&scene.file());
    file["last_refresh"] = days_ago(30);
    let known = scene.rig.credential("a").await["refreshed_at"].clone();
    assert_ne!(known, Value::Null);
    replace_file(&scene.file(), file.to_string());
    let is_so = |found: &Value| found["refreshed_at"] != known;
    let status = scene
        .rig
        .wait_for_credential("a", WAIT_MAX, "the change", is_so)
        .await;
    assert_eq!(status["state"], "login_needed", "{status:#}");
    check_unavailable("after", &client.turn(&turn("one")).await);
    assert_eq!(scene.token_posts(), 1);
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_refresh_token_is_read_from_the_file_right_before_it_is_spent() {
    let mut scene = LoginScene::new(3600).await;
    scene
        .rig
        .upstream
        .account("taken-by-upstream", "account-a")
        .then(Reply::error(401, "invalid_request_error", "no"));
    let mut file = oauth_file("taken-by-upstream", "account-a");
    replace_file(&scene.file(), file.to_string());
    let client = scene.start(json!({})).await;
    // The access token is the same: the gateway has nothing to reload.
    file["tokens"]["refresh_token"] = scene.login.auth_json()["tokens"]["refresh_token"].clone();
    replace_file(&scene.file(), file.to_string());
    check_served("refused once", &client.turn(&turn("one")).await);
    assert!(scene.has_newest_tokens());
    assert_eq!((scene.token_posts(), scene.login.rotations()), (1, 1));
    scene.rig.stop().await;
}
