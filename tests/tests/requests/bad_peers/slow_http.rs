//! slowhttptest in its four modes, beside honest requests. The tests are skipped where it is not
//! installed.

use std::process::{Child, Command, Stdio};

use http::StatusCode;
use serde_json::json;
use tollgate_tests::{Rig, turn};

/// The connections of slowhttptest, all of which are opened within a second.
const CONNECTIONS: &str = "200";

/// The time that it runs.
const SECONDS: &str = "4";

fn slowhttptest(mode: &[&str], url: &str) -> Option<Child> {
    Command::new("slowhttptest")
        .args(mode)
        .args(["-c", CONNECTIONS, "-r", CONNECTIONS, "-l", SECONDS])
        .args(["-p", "2", "-u", url])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()
}

async fn check(mode: &[&str], path: &str) {
    let rig = Rig::new().await;
    let program = rig.spawn(&rig.team(&["a"], json!({}))).await;
    let client = program.client();
    let url = format!("http://{}{path}", client.address());
    let Some(mut attack) = slowhttptest(mode, &url) else {
        eprintln!("skipped: slowhttptest is not installed");
        return;
    };
    let mut served = 0;
    while attack.try_wait().expect("it can be asked").is_none() {
        // On a new connection each, so that none is refused.
        let honest = program.client().token("token-alice");
        let answer = honest.turn(&turn("honest")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert!(answer.whole);
        served += 1;
    }
    assert!(served > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_refuse_no_honest_request() {
    check(&["-H", "-i", "1", "-x", "24", "-t", "GET"], "/v1/models").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_refuse_no_honest_request() {
    let mode = ["-B", "-i", "1", "-x", "10", "-s", "8192", "-t", "POST"];
    check(&mode, "/v1/responses").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_ranges_refuse_no_honest_request() {
    check(
        &["-R", "-a", "10", "-b", "3000", "-t", "HEAD"],
        "/v1/models",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_refuse_no_honest_request() {
    let mode = [
        "-X", "-w", "16", "-y", "32", "-n", "1", "-z", "8", "-k", "3",
    ];
    check(&mode, "/v1/models").await;
}
