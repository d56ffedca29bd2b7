//! TLS on both sides: a listener with the test's certificate, and an upstream behind one.

mod clients;
mod reload;
mod tools;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use http::{StatusCode, Version};
use rustls::ProtocolVersion;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tollgate_tests::peer::{Peer, WAIT_MAX, post};
use tollgate_tests::upstream::Upgrade;
use tollgate_tests::{
    Authority, Certificate, Program, Rig, TLS_VERSIONS, TlsScene, turn, wait_for_rows,
};

#[tokio::test(flavor = "multi_thread")]
async fn http1_and_http2_are_negotiated_by_alpn() {
    let scene = TlsScene::new(json!({}), json!({})).await;
    assert_eq!(scene.turn(&["h2", "http/1.1"]).await.as_deref(), Some("h2"));
    assert_eq!(scene.turn(&["h2"]).await.as_deref(), Some("h2"));
    assert_eq!(scene.turn(&["http/1.1"]).await.as_deref(), Some("http/1.1"));
    assert_eq!(scene.turn(&[]).await, None);
    scene.end(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_protocols_that_alpn_lists_are_negotiated() {
    let scene = TlsScene::new(json!({ "alpn": "http/1.1" }), json!({})).await;
    assert_eq!(
        scene.turn(&["h2", "http/1.1"]).await.as_deref(),
        Some("http/1.1")
    );
    assert!(scene.is_refused(TLS_VERSIONS, &["h2"]).await);
    scene.end(1).await;
    let scene = TlsScene::new(json!({ "alpn": ["http/1.1", "h2"] }), json!({})).await;
    assert_eq!(
        scene.turn(&["h2", "http/1.1"]).await.as_deref(),
        Some("http/1.1"),
        "the gateway's order counts"
    );
    assert_eq!(scene.turn(&["h2"]).await.as_deref(), Some("h2"));
    scene.end(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn min_and_max_version_are_honoured() {
    let cases = [
        (json!({}), true, true),
        (json!({ "min_version": "1.3" }), false, true),
        (json!({ "max_version": "1.2" }), true, false),
        (
            json!({ "min_version": "1.2", "max_version": "1.2" }),
            true,
            false,
        ),
    ];
    for (tls, by_1_2, by_1_3) in cases {
        let scene = TlsScene::new(tls.clone(), json!({})).await;
        for (version, taken) in [(&TLS12, by_1_2), (&TLS13, by_1_3)] {
            let connected = scene.connect(&[version], &["http/1.1"]).await;
            assert_eq!(connected.is_ok(), taken, "{tls}: {:?}", version.version);
            if let Ok(stream) = connected {
                assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
            }
        }
        let newest = if by_1_3 {
            ProtocolVersion::TLSv1_3
        } else {
            ProtocolVersion::TLSv1_2
        };
        let stream = scene.connect(TLS_VERSIONS, &[]).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.protocol_version(), Some(newest), "{tls}");
        drop(stream);
        scene.end(0).await;
    }
}

/// The beginning of a ClientHello.
const HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0, 0, 0];

#[tokio::test(flavor = "multi_thread")]
async fn stalled_handshakes_do_not_block_others() {
    let scene = TlsScene::new(
        json!({}),
        json!({ "handshake_timeout": "30s", "drain_timeout": "200ms" }),
    )
    .await;
    let mut stalled = Vec::new();
    for number in 0..40 {
        let mut peer = Peer::connect(scene.address).await;
        peer.send(if number % 2 == 0 { HELLO } else { b"" }).await;
        stalled.push(peer);
    }
    assert_eq!(scene.turn(&["h2", "http/1.1"]).await.as_deref(), Some("h2"));
    assert_eq!(scene.turn(&["http/1.1"]).await.as_deref(), Some("http/1.1"));
    for peer in &mut stalled {
        assert!(
            peer.is_quiet_for(Duration::from_millis(1)).await,
            "it was closed before: the test shows nothing"
        );
    }
    scene.end(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_end_is_dropped_after_its_limit() {
    let limit = Duration::from_millis(300);
    let scene = TlsScene::new(json!({}), json!({ "handshake_timeout": "300ms" })).await;
    for begun in [&b""[..], HELLO] {
        let since = Instant::now();
        let mut peer = Peer::connect(scene.address).await;
        peer.send(begun).await;
        peer.rest().await;
        assert!(
            since.elapsed() >= limit && since.elapsed() < limit + Duration::from_secs(5),
            "{:?}",
            since.elapsed()
        );
    }
    // Sending byte by byte does not extend it.
    let mut peer = Peer::connect(scene.address).await;
    let since = Instant::now();
    peer.send(HELLO).await;
    while peer.is_quiet_for(Duration::from_millis(20)).await {
        peer.send([0]).await;
        assert!(
            since.elapsed() < Duration::from_secs(5),
            "a handshake byte by byte succeeds"
        );
    }
    assert_eq!(scene.turn(&["h2"]).await.as_deref(), Some("h2"));
    scene.end(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handshake_timeout_of_the_section_takes_the_place_of_the_limit() {
    let tls = json!({ "handshake_timeout": "300ms" });
    let scene = TlsScene::new(tls, json!({ "handshake_timeout": "60s" })).await;
    let mut peer = Peer::connect(scene.address).await;
    let since = Instant::now();
    peer.send(HELLO).await;
    peer.rest().await;
    let elapsed = since.elapsed();
    assert!(elapsed < Duration::from_secs(10), "{elapsed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_tls_is_disconnected() {
    let scene = TlsScene::new(json!({}), json!({})).await;
    for bytes in [
        post(&turn("plain").to_string()).as_str(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\0\0\0\0\0\0\0\0",
    ] {
        let mut peer = Peer::connect(scene.address).await;
        peer.send(bytes).await;
        let rest = peer.rest().await;
        assert!(
            !rest.starts_with(b"HTTP/"),
            "{bytes:?} is answered in clear: {:?}",
            String::from_utf8_lossy(&rest)
        );
    }
    assert_eq!(scene.turn(&["h2"]).await.as_deref(), Some("h2"));
    scene.end(1).await;
}

/// TLS in front of the scripted upstream.
async fn terminator(upstream: SocketAddr, certificate: &Certificate, alpn: &[&str]) -> SocketAddr {
    let acceptor = TlsAcceptor::from(certificate.server(alpn));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut outside = acceptor.accept(stream).await?;
                let mut inside = TcpStream::connect(upstream).await?;
                tokio::io::copy_bidirectional(&mut outside, &mut inside).await
            });
        }
    });
    address
}

/// The gateway's binary, which trusts the certificates of one file.
async fn start_trusting(rig: &Rig, config: &Value, trusted: &str) -> Program {
    let config = rig.write("config.json", config.to_string());
    let (ready, log) = (rig.path("ready.json"), rig.path("gateway.log"));
    Program::start_trusting(&config, ready, log, Some(trusted)).await
}

fn behind(rig: &Rig, address: SocketAddr) -> Value {
    let mut config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    config["services"][0]["endpoints"]["chatgpt"] =
        json!(format!("https://localhost:{}/backend-api", address.port()));
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn the_section_certificate_adds_to_the_trust_and_replaces_it() {
    let authority = Authority::new();
    let of_rig = |rig: &Rig| {
        rig.write("authority.pem", &authority.pem);
        std::fs::create_dir(rig.path("authorities")).expect("a folder");
        rig.write("authorities/one.pem", &authority.pem);
        rig.write("authorities/README", "not a certificate");
    };
    // Which section, and whether upstream is trusted with it.
    let cases: [(fn(&Rig, &str) -> Value, bool); 5] = [
        (|_, _| json!({}), false),
        (|_, pem| json!({ "certificate": pem }), true),
        (
            |rig, _| json!({ "certificate_path": rig.path("authority.pem") }),
            true,
        ),
        (
            |rig, _| json!({ "certificate_directory_path": rig.path("authorities") }),
            true,
        ),
        (
            |_, pem| json!({ "store": "none", "certificate": pem }),
            true,
        ),
    ];
    for (section, is_trusted) in cases {
        let mut rig = Rig::new().await;
        of_rig(&rig);
        let certificate = authority.sign(&["localhost"]);
        let address = terminator(rig.upstream.address(), &certificate, &["http/1.1"]).await;
        let mut config = behind(&rig, address);
        config["certificate"] = section(&rig, &authority.pem);
        let status = if is_trusted {
            StatusCode::OK
        } else {
            StatusCode::BAD_GATEWAY
        };
        let answer = rig.start(config.clone()).await.turn(&turn("https")).await;
        assert_eq!(answer.status, status, "{config}: {}", answer.text());
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_https_upstream_is_trusted_by_ssl_cert_file() {
    for (alpn, version) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
    ] {
        let rig = Rig::new().await;
        let authority = Authority::new();
        let address = terminator(
            rig.upstream.address(),
            &authority.sign(&["localhost"]),
            alpn,
        )
        .await;
        let trusted = rig.write("trusted.pem", &authority.pem);
        let gateway = start_trusting(&rig, &behind(&rig, address), &trusted).await;
        let answer = gateway.client().turn(&turn("https")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert!(answer.whole && answer.text().contains("response.completed"));
        assert_eq!(rig.upstream.turns()[0].version, version);
        let rows = wait_for_rows(&rig.ledger(), 1).await;
        assert_eq!(rows[0].text("end"), Some("complete"));
    }
}

/// Opens a WebSocket over TLS.
async fn open_wss(
    authority: &Authority,
    address: SocketAddr,
) -> WebSocketStream<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await.expect("connects");
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = authority
        .client(TLS_VERSIONS, &["http/1.1"])
        .connect(name, stream)
        .await
        .expect("a handshake");
    let opening = tokio_tungstenite::client_async("wss://localhost/v1/responses", stream);
    tokio::time::timeout(WAIT_MAX, opening)
        .await
        .expect("in time")
        .expect("a socket")
        .0
}

/// Sends a turn on a WebSocket over TLS, and returns its last event.
async fn turn_by_wss(authority: &Authority, address: SocketAddr) -> Value {
    let mut socket = open_wss(authority, address).await;
    let mut create = turn("wss");
    create["type"] = json!("response.create");
    socket
        .send(Message::text(create.to_string()))
        .await
        .expect("it is taken");
    loop {
        let message = tokio::time::timeout(WAIT_MAX, socket.next())
            .await
            .expect("in time");
        let text = message
            .expect("the socket stays open")
            .expect("a message")
            .into_text()
            .expect("text");
        let event: Value = serde_json::from_str(&text).expect("JSON");
        if event["type"]
            .as_str()
            .is_some_and(|kind| ["response.completed", "error"].contains(&kind))
        {
            return event;
        }
    }
}

/// A gateway with TLS on both sides; upstream offers `alpn`.
async fn between_tls(rig: &Rig, authority: &Authority, alpn: &[&str]) -> Program {
    let own = authority.sign(&["localhost"]);
    let address = terminator(
        rig.upstream.address(),
        &authority.sign(&["localhost"]),
        alpn,
    )
    .await;
    let mut config = behind(rig, address);
    config["services"][0]["tls"] =
        json!({ "enabled": true, "certificate": own.pem, "key": own.key });
    let trusted = rig.write("trusted.pem", &authority.pem);
    start_trusting(rig, &config, &trusted).await
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_pass_both_ways_at_once_over_tls() {
    const MESSAGES: usize = 8;
    const BYTES: usize = 3_000_000;
    let rig = Rig::new().await;
    let authority = Authority::new();
    let gateway = between_tls(&rig, &authority, &["http/1.1"]).await;
    rig.account("a").always_handshake(Upgrade::new().echo());
    let (mut sending, mut receiving) = open_wss(&authority, gateway.client().address())
        .await
        .split();
    let message = |number: usize| vec![number as u8; BYTES];
    let send = async {
        for number in 0..MESSAGES {
            sending
                .send(Message::binary(message(number)))
                .await
                .expect("it is taken");
        }
    };
    let receive = async {
        for number in 0..MESSAGES {
            let received = receiving
                .next()
                .await
                .expect("the socket stays open")
                .expect("a message");
            assert!(
                received.into_data() == message(number),
                "message {number} is another"
            );
        }
    };
    tokio::time::timeout(WAIT_MAX, async { tokio::join!(send, receive) })
        .await
        .expect("in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_passes_tls_on_both_sides_whatever_alpn_upstream_offers() {
    for alpn in [&["h2", "http/1.1"][..], &["http/1.1"], &[]] {
        let rig = Rig::new().await;
        let authority = Authority::new();
        let gateway = between_tls(&rig, &authority, alpn).await;
        let event = turn_by_wss(&authority, gateway.client().address()).await;
        assert_eq!(event["type"], "response.completed", "{alpn:?}");
        let row = wait_for_rows(&rig.ledger(), 1).await.remove(0);
        assert_eq!(
            (row.text("transport"), row.text("end")),
            (Some("websocket"), Some("complete")),
            "{alpn:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untrusted_upstream_certificate_gives_502_and_no_request_is_sent() {
    let (trusted, stranger) = (Authority::new(), Authority::new());
    let cases = [
        ("of another authority", stranger.sign(&["localhost"])),
        ("of another name", trusted.sign(&["elsewhere"])),
    ];
    for (what, certificate) in cases {
        let rig = Rig::new().await;
        let address = terminator(rig.upstream.address(), &certificate, &["h2", "http/1.1"]).await;
        let file = rig.write("trusted.pem", &trusted.pem);
        let gateway = start_trusting(&rig, &behind(&rig, address), &file).await;
        let answer = gateway.client().turn(&turn("https")).await;
        assert_eq!(
            answer.status,
            StatusCode::BAD_GATEWAY,
            "{what}: {}",
            answer.text()
        );
        assert_eq!(answer.json()["error"]["type"], "api_error", "{what}");
        assert_eq!(rig.upstream.request_count(), 0, "{what}");
        let rows = wait_for_rows(&rig.ledger(), 1).await;
        assert_eq!(
            (rows[0].number("status"), rows[0].text("end")),
            (Some(502), Some("upstream_gone")),
            "{what}"
        );
    }
}
