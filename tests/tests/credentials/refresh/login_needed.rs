//! Credentials that need a login.

use std::fs;
use std::path::Path;

use serde_json::json;
use tollgate_tests::upstream::TokenReply;
use tollgate_tests::{LoginScene, replace_file, token_of, turn};

use super::SOON;
use crate::checks::{check_served, check_unavailable};

#[tokio::test(flavor = "multi_thread")]
async fn a_needed_login_fails_no_request_while_the_access_token_is_valid() {
    let mut scene = LoginScene::new(200).await;
    scene.login.always_for_token(TokenReply::status(401));
    let client = scene.start(json!({})).await;
    scene.rig.wait_for_state("a", "login_needed").await;
    for _ in 0..3 {
        check_served("still", &client.turn(&turn("one")).await);
    }
    assert_eq!(
        (
            scene.login.post_count(),
            scene.rig.credential("a").await["state"].as_str()
        ),
        (1, Some("login_needed"))
    );
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_login_is_used_soon_after_it_is_written() {
    for put in [replace_file as fn(&Path, String), |path, text| {
        fs::write(path, text).expect("it can be written")
    }] {
        let mut scene = LoginScene::new(-60).await;
        scene.login.then_for_token(TokenReply::well().cut());
        let client = scene.start(json!({})).await;
        check_unavailable("before", &client.turn(&turn("one")).await);
        assert_eq!(scene.rig.credential("a").await["state"], "login_needed");
        let new = scene.rig.upstream.login("account-a");
        put(&scene.file(), new.auth_json().to_string());
        scene
            .rig
            .wait_for_credential("a", SOON, "ready", |found| found["state"] == "ready")
            .await;
        check_served("after", &client.turn(&turn("one")).await);
        assert_eq!(
            (
                new.account().turn_count(),
                new.post_count(),
                scene.login.post_count()
            ),
            (1, 0, 1)
        );
        scene.rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_expired_long_ago_is_refreshed_right_after_another_refresh() {
    let mut scene = LoginScene::new(-60).await;
    let client = scene.start(json!({})).await;
    check_served("the first", &client.turn(&turn("one")).await);
    // The login of an account that was unused for a while.
    let other = scene.rig.upstream.login("account-of-another");
    replace_file(&scene.file(), other.renew_with(-3600).to_string());
    other.wait_for_posts(1).await;
    scene.rig.wait_for_state("a", "ready").await;
    check_served("the other", &client.turn(&turn("one")).await);
    let tokens =
        [&scene.login, &other].map(|login| token_of(&login.auth_json(), "access_token").to_owned());
    assert_eq!(
        scene.rig.presented_tokens(),
        tokens,
        "no expired token was shown"
    );
    assert_eq!((scene.login.post_count(), other.post_count()), (1, 1));
    scene.rig.stop().await;
}
