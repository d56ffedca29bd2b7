//! `tollgate status` without a gateway.

use std::fs;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tollgate_tests::Rig;

use super::{status, table};

#[track_caller]
fn check_refused(rig: &Rig, parts: &[&str]) {
    for more in [&[][..], &["--json"]] {
        let said = status(&rig.path("config.json"), more);
        assert_eq!(
            (said.code, said.stdout.as_str()),
            (Some(1), ""),
            "{}",
            said.stderr
        );
        assert!(said.stderr.starts_with("tollgate: "), "{}", said.stderr);
        for part in parts {
            assert!(
                said.stderr.contains(part),
                "{} has no {part:?}",
                said.stderr
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn if_no_gateway_runs_the_socket_is_named_and_the_exit_code_is_1() {
    let rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    rig.write("config.json", config.to_string());
    let socket = rig.socket();
    let parts = [
        "cannot connect to",
        socket.to_str().expect("a plain name"),
        "data_dir",
    ];
    check_refused(&rig, &parts);

    let program = rig.spawn(&config).await;
    assert!(table(&rig).contains("ready"));
    program.kill();
    assert!(socket.exists(), "what a killed gateway leaves");
    check_refused(&rig, &parts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_is_not_a_status_is_not_printed() {
    let rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    rig.write("config.json", config.to_string());
    let answers = [
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnope",
        "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}",
        "SSH-2.0-OpenSSH\r\n",
        "",
    ];
    fs::create_dir(rig.path("data")).expect("a folder can be made");
    for answer in answers {
        let listener = UnixListener::bind(rig.socket()).expect("it can be listened on");
        let answering = tokio::spawn(async move {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.expect("a question");
                let _ = stream.read(&mut [0; 4096]).await;
                stream
                    .write_all(answer.as_bytes())
                    .await
                    .expect("it can be answered");
            }
        });
        check_refused(&rig, &[rig.socket().to_str().expect("a plain name")]);
        answering.await.expect("no panic");
        fs::remove_file(rig.socket()).expect("it can be removed");
    }
}
