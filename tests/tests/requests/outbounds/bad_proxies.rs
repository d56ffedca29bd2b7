//! Proxies that refuse, answer nonsense, or nothing. The error names the outbound and what it did;
//! no login is in it.

use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tollgate::config::UpstreamRoute;
use tollgate::upstream::TrustRoots;
use tollgate::upstream::dial::{DialDeadline, Dialer, OutboundStream};
use tollgate_tests::peer::WAIT_MAX;
use tollgate_tests::{AfterBytes, Proxy, Rig, turn};

use super::scene::{config, with};

/// A part of every login and header value.
const CANARY: &str = "canary-proxy-7c1d";

fn secrets(kind: &str) -> Value {
    let mut secrets = json!({ "username": format!("name-{CANARY}"), "password": CANARY });
    if kind == "http" {
        secrets["headers"] = json!({ "x-token": CANARY });
    }
    secrets
}

/// Sends a turn through `proxy`, and checks what is known of the failure.
async fn check_failure(proxy: &Proxy, kind: &str, more: Value, expected: &str) {
    let outbound = with(with(proxy.outbound(kind, "out"), secrets(kind)), more);
    let rig = Rig::new().await;
    let mut config = config(&rig, json!([outbound]));
    config["limits"] = json!({ "connect_timeout": "500ms" });
    config["log"] = json!({ "level": "trace" });
    let program = rig.spawn(&config).await;
    let answer = program.client().turn(&turn("s")).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{}", answer.text());
    let message = answer.json()["error"]["message"].to_string();
    let how = message.strip_prefix(r#""upstream cannot be reached: the outbound \"out\" failed: "#);
    // How it failed, but not where.
    assert!(how.is_some_and(|how| how.len() > 1), "{message}");
    assert!(!message.contains("127.0.0.1"), "{message}");
    let credential = rig.credential("a").await;
    let failure = credential["connect_failure"].as_str().expect("a failure");
    assert!(failure.starts_with("outbound \"out\": "), "{failure}");
    assert!(failure.contains(expected), "{failure}");
    assert_eq!(rig.upstream.request_count(), 0);
    for text in [answer.text(), credential.to_string(), program.log()] {
        assert!(!text.contains(CANARY), "{text}");
    }
    program.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_proxy_that_expects_another_login() {
    let proxy = Proxy::with_login("Basic other").await;
    let expected = "with 407: it expects another login";
    check_failure(&proxy, "http", json!({}), expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_proxy_that_expects_another_kind_of_login() {
    for (offered, expected) in [
        (
            "Negotiate\r\nProxy-Authenticate: Digest realm=\"basic, x\"",
            "another kind of login",
        ),
        (
            "Digest realm=x, Basic realm=x",
            "another login (username, password)",
        ),
        ("basic realm=x", "another login (username, password)"),
    ] {
        let answer = format!("HTTP/1.1 407 x\r\nProxy-Authenticate: {offered}\r\n\r\n");
        let proxy = Proxy::answering(answer, AfterBytes::Close).await;
        check_failure(&proxy, "http", json!({}), expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_proxy_that_answers_nonsense() {
    for (bytes, after, expected) in [
        (
            &b"SSH-2.0-OpenSSH_9.2\r\n\r\n"[..],
            AfterBytes::Hold,
            "something else than HTTP",
        ),
        (
            b"\0\xff\0\xff\r\n\r\n",
            AfterBytes::Hold,
            "something else than HTTP",
        ),
        (
            b"HTTP/1.1 2",
            AfterBytes::Close,
            "closed the connection before its reply was complete",
        ),
        (
            b"HTTP/1.1 200 OK\r\nx: ",
            AfterBytes::Close,
            "closed the connection",
        ),
        (
            b"HTTP/1.1 200 OK\r\nx: ",
            AfterBytes::Hold,
            "to CONNECT timed out after 0.5 s",
        ),
        (b"", AfterBytes::Close, "closed the connection"),
        (b"", AfterBytes::Hold, "timed out after 0.5 s"),
        (
            b"HTTP/1.1 405 No\r\n\r\n",
            AfterBytes::Hold,
            "with 405: it does not support CONNECT",
        ),
        (
            b"HTTP/1.1 204 No Content\r\n\r\n",
            AfterBytes::Hold,
            "with 204",
        ),
        (
            b"HTTP/1.1 301 Moved\r\nlocation: /\r\n\r\n",
            AfterBytes::Hold,
            "with 301",
        ),
    ] {
        let proxy = Proxy::answering(bytes, after).await;
        check_failure(&proxy, "http", json!({}), expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_proxy_whose_head_has_no_end() {
    let mut bytes = b"HTTP/1.1 200 OK\r\nx: ".to_vec();
    bytes.resize(64 * 1024, b'x');
    let proxy = Proxy::answering(bytes, AfterBytes::Hold).await;
    check_failure(&proxy, "http", json!({}), "something else than HTTP").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socks_proxy_that_answers_nonsense() {
    for (version, bytes, after, expected) in [
        (
            "5",
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            AfterBytes::Hold,
            "not SOCKS of this version",
        ),
        ("5", b"\x05", AfterBytes::Close, "closed the connection"),
        (
            "5",
            b"\x05",
            AfterBytes::Hold,
            "the SOCKS handshake with 127.0.0.1",
        ),
        ("5", b"", AfterBytes::Close, "closed the connection"),
        ("5", b"\x05\xff", AfterBytes::Hold, "expects another login"),
        (
            "5",
            b"\x05\x00\x05\x05\x00\x01\0\0\0\0\0\0",
            AfterBytes::Hold,
            "connection refused",
        ),
        (
            "5",
            b"\x05\x00\x05\x63\x00\x01\0\0\0\0\0\0",
            AfterBytes::Hold,
            "a code that SOCKS does not define",
        ),
        (
            "5",
            b"\x05\x00\x05\x00\x00\x09\0\0\0\0\0\0",
            AfterBytes::Hold,
            "unknown address type",
        ),
        (
            "4",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            AfterBytes::Hold,
            "not SOCKS of this version",
        ),
        (
            "4",
            b"\x00\x5b\0\0\0\0\0\0",
            AfterBytes::Hold,
            "general socks server failure",
        ),
        ("4a", b"\x00\x5d\0\0\0\0\0\0", AfterBytes::Hold, "user-ids"),
        ("4a", b"\x00", AfterBytes::Close, "closed the connection"),
    ] {
        let proxy = Proxy::answering(bytes, after).await;
        check_failure(&proxy, "socks", json!({ "version": version }), expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socks_proxy_that_rejects_the_login() {
    let proxy = Proxy::with_login("name:other").await;
    check_failure(&proxy, "socks", json!({}), "it rejected the login").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socks_proxy_that_sends_a_greeting_first() {
    let proxy = Proxy::speaking_first(&b"220 hello\r\n"[..], AfterBytes::Hold).await;
    check_failure(&proxy, "socks", json!({}), "not SOCKS of this version").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_cannot_reach_upstream() {
    for (kind, version, expected) in [
        ("http", None, "with 502"),
        ("socks", Some("5"), "connection refused"),
        ("socks", Some("4"), "failure"),
    ] {
        let proxy = Proxy::start().await;
        let mut outbound = proxy.outbound(kind, "out");
        if let Some(version) = version {
            outbound["version"] = json!(version);
        }
        let mut rig = Rig::new().await;
        let mut config = config(&rig, json!([outbound]));
        let nowhere = tollgate_tests::Nowhere::new();
        config["services"][0]["endpoints"]["chatgpt"] = json!(nowhere.url());
        let client = rig.start(config).await;
        let answer = client.turn(&turn("s")).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{}", answer.text());
        let failure = rig.credential("a").await["connect_failure"].to_string();
        assert!(failure.contains(expected), "{failure}");
    }
}

/// Connects through an outbound to a host that only the proxy knows.
async fn dial(outbound: Value) -> OutboundStream {
    let text = json!({ "services": [{ "type": "ocm", "detour": "out", "credential_path": "a.json" }],
        "outbounds": [outbound] });
    let loaded = tollgate::config::parse(&text.to_string()).expect("a configuration");
    let route: &UpstreamRoute = &loaded.config.services[0].credentials[0].route;
    let dialer = Dialer::new(route, &TrustRoots::from_pem(b""));
    let uri = "http://upstream.invalid:1".parse().expect("a URL");
    dialer
        .dial(&uri, DialDeadline::after(WAIT_MAX))
        .await
        .expect("connects")
}

/// The bytes of upstream arrive together with the end of the handshake, and even before its start.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_come_with_the_reply_of_a_proxy_are_upstreams() {
    for (kind, reply) in [
        ("http", &b"HTTP/1.1 200 OK\r\n\r\nearly"[..]),
        (
            "http",
            b"HTTP/1.0 201 Created\r\ncontent-length: 3\r\n\r\nearly",
        ),
        ("socks", b"\x05\x00\x05\x00\x00\x01\0\0\0\0\0\0early"),
        ("socks", b"\x05\x00\x05\x00\x00\x03\x02ab\0\0early"),
    ] {
        let mut proxies = vec![Proxy::answering(reply, AfterBytes::Hold).await];
        if kind == "socks" {
            proxies.push(Proxy::speaking_first(reply, AfterBytes::Hold).await);
        }
        for proxy in proxies {
            let mut stream = dial(proxy.outbound(kind, "out")).await;
            let mut early = [0; 5];
            stream.read_exact(&mut early).await.expect("the bytes");
            assert_eq!(&early, b"early");
            stream.write_all(b"later").await.expect("it is open");
        }
    }
}
