//! Upstreams that fail before the head of their response.

use http::StatusCode;
use serde_json::json;
use tokio::net::TcpListener;
use tollgate_tests::peer::Peer;
use tollgate_tests::upstream::{Gate, Reply};
use tollgate_tests::{BadPeerScene, Row, ends, over_both, turn};

use super::{GOOD, Then, bare, check_error};

over_both!(an_upstream_that_closes_before_its_head_is_502);
async fn an_upstream_that_closes_before_its_head_is_502() {
    let scene = BadPeerScene::new(json!({})).await;
    // Once on a fresh connection, and once on a reused connection.
    for reply in [
        Reply::close_before_head(),
        Reply::close_before_head().by_reset(),
    ] {
        for _ in 0..2 {
            scene.account().then(reply.clone());
            check_error(
                &scene.client.turn(&turn("bad")).await,
                502,
                "upstream_broken",
            );
            scene.client.turn(&turn("between")).await;
        }
    }
    assert_eq!(
        scene.upstream().turns().len(),
        8,
        "a request was sent twice"
    );
    let rows = scene.end(8).await;
    let broken: Vec<&Row> = rows
        .iter()
        .filter(|row| row.text("session") == Some("bad"))
        .collect();
    for row in broken {
        assert_eq!(
            (row.number("status"), row.text("end")),
            (Some(502), Some("upstream_gone"))
        );
        assert_eq!(row.attempts().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_port_without_a_listener_is_502() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("an address")
    };
    let mut scene = BadPeerScene::before(closed, json!({})).await;
    check_error(
        &scene.client.turn(&turn("bad")).await,
        502,
        "upstream_unreachable",
    );
    // It comes up later: the gateway goes there again.
    let listener = TcpListener::bind(closed)
        .await
        .expect("the port is still free");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut peer = Peer::new(stream);
            peer.message().await;
            peer.send(GOOD).await;
        }
    });
    scene.serves().await;
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(502, "upstream_gone")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_http_is_502() {
    let endless = format!("HTTP/1.1 200 OK\r\nx-filler: {}", "f".repeat(2_000_000));
    let fields: String = (0..5000)
        .map(|number| format!("x-{number}: 1\r\n"))
        .collect();
    let many = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
    let cases: [&[u8]; 9] = [
        b"\0\xff\0\xff\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/7.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 O",
        endless.as_bytes(),
        many.as_bytes(),
    ];
    for bytes in cases {
        let scene = BadPeerScene::before(bare(bytes, Then::Close).await, json!({})).await;
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let answer = scene.client.turn(&turn("bad")).await;
        assert_eq!(
            answer.status,
            StatusCode::BAD_GATEWAY,
            "{shown:?}: {}",
            answer.text()
        );
        let rows = scene.end(1).await;
        assert_eq!(ends(&rows), [(502, "upstream_gone")], "{shown:?}");
    }
}

over_both!(an_upstream_that_does_not_answer_is_504);
async fn an_upstream_that_does_not_answer_is_504() {
    let scene = BadPeerScene::new(json!({ "upstream_head_timeout": "200ms" })).await;
    let gate = Gate::new();
    scene.account().then(Reply::ok().hold_head(&gate));
    check_error(
        &scene.client.turn(&turn("bad")).await,
        504,
        "upstream_timeout",
    );
    scene.upstream().wait_for_abandoned(0).await;
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(504, "upstream_gone")]);
    assert_eq!(rows[0].attempts().len(), 1);
    gate.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_stalls_in_its_head_is_504() {
    let address = bare("HTTP/1.1 200 OK\r\nx-slow: ", Then::Stay).await;
    let scene = BadPeerScene::before(address, json!({ "upstream_head_timeout": "300ms" })).await;
    check_error(
        &scene.client.turn(&turn("bad")).await,
        504,
        "upstream_timeout",
    );
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(504, "upstream_gone")]);
}
