//! The admin socket: its owner, its end and its load.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::json;
use tollgate_tests::{Rig, ask_socket};

use super::{json_of, of};

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_private_to_its_owner_and_removed_with_the_gateway() {
    let rig = Rig::new().await;
    let program = rig
        .spawn(&rig.config(json!({ "credentials": [rig.oauth("a")] })))
        .await;
    let found = fs::metadata(rig.socket()).expect("it is there when the gateway is ready");
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    program.signal(libc::SIGTERM);
    assert!(program.wait(Duration::from_secs(30)).await.success());
    assert!(!rig.socket().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_of_a_killed_gateway_is_replaced_by_the_next() {
    let rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    for _ in 0..2 {
        let program = rig.spawn(&config).await;
        assert_eq!(of(&json_of(&rig).1, "a")["state"], "ready");
        program.kill();
        assert!(rig.socket().exists());
    }
    let program = rig.spawn(&config).await;
    assert_eq!(
        fs::metadata(rig.socket())
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    program.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_serves_only_the_admin_api() {
    let rig = Rig::new().await;
    let program = rig
        .spawn(&rig.config(json!({ "credentials": [rig.oauth("a")] })))
        .await;
    let cases = [
        (Method::GET, "/status", StatusCode::OK),
        (Method::GET, "/", StatusCode::NOT_FOUND),
        (Method::GET, "/status/a", StatusCode::NOT_FOUND),
        (Method::GET, "/v1/models", StatusCode::NOT_FOUND),
        (Method::POST, "/status", StatusCode::METHOD_NOT_ALLOWED),
        (Method::DELETE, "/status", StatusCode::METHOD_NOT_ALLOWED),
        (
            Method::POST,
            "/v1/responses",
            StatusCode::METHOD_NOT_ALLOWED,
        ),
    ];
    for (method, path, expected) in cases {
        let answer = ask_socket(&rig.socket(), method.clone(), path).await;
        assert_eq!(answer.status, expected, "{method} {path}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert!(answer.json().is_object());
    }
    assert!(rig.forwarded().is_empty());
    program.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_and_some_silent_ones_do_not_block_others() {
    let rig = Rig::new().await;
    let program = rig
        .spawn(&rig.config(json!({ "credentials": [rig.oauth("a")] })))
        .await;
    // Half as many as are accepted at a time.
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(
            tokio::net::UnixStream::connect(rig.socket())
                .await
                .expect("it is taken"),
        );
    }
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let socket = rig.socket();
            tokio::spawn(async move { ask_socket(&socket, Method::GET, "/status").await.status })
        })
        .collect();
    for asked in asking {
        assert_eq!(asked.await.expect("no panic"), StatusCode::OK);
    }
    drop(silent);
    program.kill();
}
