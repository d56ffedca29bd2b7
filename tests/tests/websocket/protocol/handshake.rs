//! The handshake, sound and broken.

use tokio::io::{AsyncRead, AsyncWriteExt};
use tollgate_tests::EchoScene;
use tollgate_tests::frames::{FIN, TEXT, served, text};

use super::read_exactly;

/// The key and its answer of RFC 6455, section 1.3.
const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

const ACCEPT: &str = "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n";

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";

const VERSION: &str = "Sec-WebSocket-Version: 13\r\n";

const LINE: &str = "GET /v1/responses HTTP/1.1\r\n";

fn handshake(line: &str, fields: &[&str]) -> String {
    format!("{line}Host: gateway\r\n{}\r\n", fields.concat())
}

/// The answer's head, in lower case.
async fn head(from: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(read_exactly(from, 1).await);
    }
    String::from_utf8(head)
        .expect("an answer's head is text")
        .to_ascii_lowercase()
}

/// Returns handshakes that lack something, with the status of their answer.
fn incomplete() -> Vec<(&'static str, String, u16)> {
    let key = |key: &str| format!("Sec-WebSocket-Key: {key}\r\n");
    let (short, long, none) = (
        key("c2hvcnQ="),
        key("c2V2ZW50ZWVuIGJ5dGVzISE="),
        key("not base64, not at all"),
    );
    let version = |version: &str| format!("Sec-WebSocket-Version: {version}\r\n");
    let upgrade = "Upgrade: websocket\r\n";
    vec![
        (
            "HTTP/1.0",
            handshake("GET /v1/responses HTTP/1.0\r\n", &[UPGRADE, KEY, VERSION]),
            400,
        ),
        (
            "no Connection",
            handshake(LINE, &[upgrade, KEY, VERSION]),
            400,
        ),
        (
            "another Connection",
            handshake(LINE, &["Connection: close\r\n", upgrade, KEY, VERSION]),
            400,
        ),
        ("no key", handshake(LINE, &[UPGRADE, VERSION]), 400),
        (
            "a key of 5 bytes",
            handshake(LINE, &[UPGRADE, &short, VERSION]),
            400,
        ),
        (
            "a key of 17 bytes",
            handshake(LINE, &[UPGRADE, &long, VERSION]),
            400,
        ),
        (
            "a key that is no base64",
            handshake(LINE, &[UPGRADE, &none, VERSION]),
            400,
        ),
        ("no version", handshake(LINE, &[UPGRADE, KEY]), 426),
        (
            "version 8",
            handshake(LINE, &[UPGRADE, KEY, &version("8")]),
            426,
        ),
        (
            "version 12",
            handshake(LINE, &[UPGRADE, KEY, &version("12")]),
            426,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_handshake_is_rejected_with_the_missing_part() {
    let scene = EchoScene::new().await;
    for (name, sent, status) in incomplete() {
        let mut stream = scene.client.raw().await;
        stream
            .write_all(sent.as_bytes())
            .await
            .expect("the service reads");
        let head = head(&mut stream).await;
        assert_eq!(
            head.split(' ').nth(1),
            Some(status.to_string().as_str()),
            "{name}: {head}"
        );
        assert_eq!(
            head.contains("sec-websocket-version: 13\r\n"),
            status == 426,
            "{name}: {head}"
        );
    }
    assert_eq!(
        scene.rig.account("a").handshake_count(),
        1,
        "upstream was asked for the bystander only"
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_with_upgrade_headers_is_an_ordinary_request() {
    let scene = EchoScene::new().await;
    let mut stream = scene.client.raw().await;
    let length = "Content-Length: 2\r\n";
    let sent = handshake(
        "POST /v1/responses HTTP/1.1\r\n",
        &[UPGRADE, KEY, VERSION, length],
    ) + "{}";
    stream
        .write_all(sent.as_bytes())
        .await
        .expect("the service reads");
    let head = head(&mut stream).await;
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    let turns = scene.rig.upstream.wait_for_turns(1).await;
    assert!(
        turns[0].headers.keys().all(|name| name != "upgrade"),
        "upstream is asked for no other protocol"
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_valid_form_of_a_handshake_is_accepted_without_extensions() {
    let mut scene = EchoScene::new().await;
    let forms = [
        UPGRADE,
        "Connection: keep-alive, upgrade\r\nUpgrade: WebSocket\r\n",
        "CONNECTION: keep-alive\r\nconnection: UPGRADE\r\nupgrade: WEBSOCKET\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: chat\r\n",
    ];
    for form in forms {
        scene.opened += 1;
        let mut stream = scene.client.raw().await;
        // The first frame comes with the handshake: it must not get lost.
        let sent = [
            handshake(LINE, &[form, KEY, VERSION]).into_bytes(),
            text("early"),
        ]
        .concat();
        stream.write_all(&sent).await.expect("the service reads");
        let head = head(&mut stream).await;
        assert!(
            head.starts_with("http/1.1 101 ") && head.contains(ACCEPT),
            "{form}: {head}"
        );
        assert!(
            !head.contains("sec-websocket-extensions") && !head.contains("sec-websocket-protocol"),
            "{head}"
        );
        assert_eq!(
            read_exactly(&mut stream, 7).await,
            served(FIN | TEXT, b"early"),
            "{form}"
        );
    }
    scene.end().await;
}
