//! Token refreshes: when they happen and how often, how the token endpoint's responses are handled,
//! and what is written to the file.

mod changes;
mod due;
mod interrupted;
mod login_needed;
mod rejected;
mod responses;
mod writing;

use std::fs;
use std::time::Duration;

use serde_json::json;
use tollgate_tests::upstream::{Gate, Reply, TokenReply};
use tollgate_tests::{Client, LoginScene};

/// A change of a file is noticed within this time even on a slow machine, before the gateway
/// rereads the file by itself.
const SOON: Duration = Duration::from_secs(6);

/// Upstream's response to a token that it no longer accepts.
fn expired() -> Reply {
    Reply::error(401, "invalid_request_error", "expired")
}

/// Runs a refresh whose response is held back while `change` changes the file.
async fn change_during_refresh(change: impl FnOnce(&LoginScene)) -> (LoginScene, Client) {
    let mut scene = LoginScene::new(-60).await;
    let gate = Gate::new();
    scene.login.then_for_token(TokenReply::well().behind(&gate));
    let client = scene.start(json!({})).await;
    gate.wait_until_reached().await;
    change(&scene);
    gate.open();
    (scene, client)
}

/// Returns what else is in the rig's folder, except locks.
fn left_over(scene: &LoginScene) -> Vec<String> {
    let entries = fs::read_dir(scene.rig.folder()).expect("a folder");
    let names = entries.map(|entry| {
        entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("a plain name")
    });
    names
        .filter(|name| name.starts_with("a.json.") && name != "a.json.lock")
        .collect()
}
