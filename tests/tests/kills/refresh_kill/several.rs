//! Several gateways on one auth.json.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollgate_tests::upstream::{Login, Reply, WAIT_MAX};
use tollgate_tests::{Program, Rig, ask_socket, turn};

use super::{check_family, expire, is_served, scene, wait_for_new_tokens};

const GATEWAYS: usize = 8;

const EXPIRIES: usize = 10;

/// Starts gateways on the same credentials, each with its own data folder.
async fn start_several(rig: &Rig, config: &Value, count: usize) -> Vec<Program> {
    let mut starting = JoinSet::new();
    for number in 0..count {
        let mut config = config.clone();
        config["data_dir"] = json!(rig.path(&format!("data-{number}")));
        let file = rig.write(&format!("config-{number}.json"), config.to_string());
        let (ready, log) = (
            rig.path(&format!("ready-{number}.json")),
            rig.path(&format!("{number}.log")),
        );
        starting.spawn(async move { Program::start(&file, ready, log).await });
    }
    starting.join_all().await
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_gateways_on_one_file_present_no_token_twice_and_all_work() {
    let (rig, login, config) = scene().await;
    let file = rig.credential_file("a");
    let gateways = start_several(&rig, &config, GATEWAYS).await;
    for expiry in 1..=EXPIRIES {
        let mut requests = JoinSet::new();
        for client in gateways.iter().map(Program::client) {
            requests.spawn(async move { is_served(&client, expiry).await });
        }
        requests.join_all().await;
        login.wait_for_posts(expiry).await;
        wait_for_new_tokens(&file, &login).await;
        check_family(&login, expiry);
        assert_eq!(
            (login.post_count(), login.rotations()),
            (expiry, expiry),
            "one refresh for all"
        );
        expire(&file, &login);
    }
    gateways.into_iter().for_each(Program::kill);
}

/// Returns when the tokens that this gateway of [`start_several`] knows were issued.
async fn known(rig: &Rig, number: usize) -> Value {
    let socket = rig.path(&format!("data-{number}")).join("admin.sock");
    let status = ask_socket(&socket, Method::GET, "/status").await.json();
    status["services"][0]["credentials"][0]["refreshed_at"].clone()
}

/// Runs two gateways on one file whose new tokens are all useless. They refresh a few times, and do
/// not take turns because of each other's tokens.
async fn check_useless_tokens(spoil: impl FnOnce(&Login)) {
    let (rig, login, config) = scene().await;
    spoil(&login);
    let gateways = start_several(&rig, &config, 2).await;
    for request in 0..10 {
        for gateway in &gateways {
            let status = gateway.client().turn(&turn("one")).await.status;
            assert_eq!(status, StatusCode::UNAUTHORIZED);
            // Each gateway loads the tokens that the other one was issued.
            let begun = Instant::now();
            while known(&rig, 0).await != known(&rig, 1).await && login.post_count() <= 4 {
                assert!(
                    begun.elapsed() < WAIT_MAX,
                    "the file is known to one of them only"
                );
            }
            assert!(
                login.post_count() <= 4,
                "{} refreshes after {request} requests",
                login.post_count()
            );
        }
    }
    check_family(&login, 0);
    gateways.into_iter().for_each(Program::kill);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_on_one_file_do_not_refresh_in_turns_if_upstream_rejects_every_token() {
    let refusal = || Reply::error(401, "invalid_request_error", "expired");
    check_useless_tokens(|login| drop(login.account().always(refusal()).clone())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_on_one_file_do_not_refresh_in_turns_if_tokens_have_expired_when_issued() {
    check_useless_tokens(|login| drop(login.lifetime(Duration::ZERO).clone())).await;
}
