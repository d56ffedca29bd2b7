//! Refreshes that outlive a client or the gateway, and their files meanwhile.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpStream;
use tollgate_tests::upstream::{Gate, Reply, TokenReply, WAIT_MAX};
use tollgate_tests::{Client, LoginScene, read_json, token_of, turn, wait_for_rows};

use super::beside;
use crate::checks::check_served;

fn mode(path: &Path) -> u32 {
    fs::metadata(path)
        .expect("it is there")
        .permissions()
        .mode()
        & 0o7777
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_completes_after_its_client_has_left() {
    let mut scene = LoginScene::new(3600).await;
    let gate = Gate::new();
    scene
        .login
        .account()
        .then(Reply::error(401, "invalid_request_error", "expired"));
    scene.login.then_for_token(TokenReply::well().behind(&gate));
    let client = scene.start(json!({})).await;
    let leaving = tokio::spawn({
        let client = Client::new(client.address());
        async move { client.turn(&turn("one")).await }
    });
    gate.wait_until_reached().await;
    leaving.abort();
    assert!(leaving.await.is_err_and(|error| error.is_cancelled()));
    wait_for_rows(&scene.rig.ledger(), 1).await;
    gate.open();
    scene.wait_for_new_tokens().await;
    check_served("the next", &client.turn(&turn("one")).await);
    assert_eq!(
        (scene.token_posts(), scene.login.account().turn_count()),
        (1, 2)
    );
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_waits_for_its_refresh() {
    let mut scene = LoginScene::new(-60).await;
    let gate = Gate::new();
    scene.login.then_for_token(TokenReply::well().behind(&gate));
    let client = scene.start(json!({})).await;
    gate.wait_until_reached().await;
    let opening = async {
        let begun = Instant::now();
        while TcpStream::connect(client.address()).await.is_ok() {
            assert!(begun.elapsed() < WAIT_MAX, "it listens still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        gate.open();
    };
    tokio::join!(scene.rig.stop(), opening);
    assert!(scene.has_newest_tokens());
    assert_eq!(
        (
            scene.token_posts(),
            beside(&scene.rig, ".refresh-journal").exists()
        ),
        (1, false)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_a_running_refresh_are_private_and_contain_no_token() {
    let mut scene = LoginScene::new(-60).await;
    fs::set_permissions(scene.file(), fs::Permissions::from_mode(0o644))
        .expect("its mode can be set");
    let gate = Gate::new();
    scene.login.then_for_token(TokenReply::well().behind(&gate));
    let client = scene.start(json!({})).await;
    gate.wait_until_reached().await;
    let journal = beside(&scene.rig, ".refresh-journal");
    assert_eq!(
        (mode(&journal), mode(&beside(&scene.rig, ".lock"))),
        (0o600, 0o600)
    );
    let noted = fs::read_to_string(&journal).expect("it is there");
    let file = read_json(&scene.file());
    for name in ["access_token", "refresh_token", "id_token"] {
        assert!(
            !noted.contains(token_of(&file, name)),
            "{name} is in {noted}"
        );
    }
    gate.open();
    check_served("then", &client.turn(&turn("one")).await);
    assert!(!journal.exists());
    scene.rig.stop().await;
}
