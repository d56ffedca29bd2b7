//! What goes through a detour, in each protocol of a proxy.

use http::StatusCode;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tollgate_tests::peer::{Peer, WAIT_MAX};
use tollgate_tests::{Authority, LoginScene, Nowhere, Proxy, Rig, SeenTunnel, over_both, turn};

use super::scene::{check_tunnels, config, start, tunnel, with, with_remote_name};

/// The login `name:password` in base64.
const BASIC: &str = "Basic bmFtZTpwYXNzd29yZA==";

fn login() -> Value {
    json!({ "username": "name", "password": "password" })
}

/// Sends a turn through a proxy, and checks how the proxy was asked.
async fn check_protocol(
    proxy: &Proxy,
    outbound: Value,
    host: &str,
    protocol: &'static str,
    login: &str,
) {
    let mut rig = Rig::new().await;
    let mut config = config(&rig, json!([outbound]));
    if host == super::scene::REMOTE {
        config = with_remote_name(config);
    }
    let client = rig.start(config).await;
    let answer = client.turn(&turn("s")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(rig.upstream.turns().len(), 1);
    check_tunnels(proxy, &tunnel(&rig, protocol, host, login));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_goes_through_socks_4_with_a_local_name() {
    let proxy = Proxy::start().await;
    let outbound = with(proxy.outbound("socks", "out"), json!({ "version": "4" }));
    check_protocol(&proxy, outbound, "127.0.0.1", "socks4", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_goes_through_socks_4_with_a_user_id() {
    let proxy = Proxy::start().await;
    let more = json!({ "version": "4", "username": "name" });
    let outbound = with(proxy.outbound("socks", "out"), more);
    check_protocol(&proxy, outbound, "127.0.0.1", "socks4", "name").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn socks_4a_and_5_and_http_resolve_names_at_the_proxy() {
    for (kind, version, protocol) in [
        ("socks", Some("4a"), "socks4a"),
        ("socks", Some("5"), "socks5"),
        ("socks", None, "socks5"),
        ("http", None, "http"),
    ] {
        let proxy = Proxy::start().await;
        let mut outbound = proxy.outbound(kind, "out");
        if let Some(version) = version {
            outbound["version"] = json!(version);
        }
        check_protocol(&proxy, outbound, "upstream.invalid", protocol, "").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_goes_through_socks_5_with_a_login() {
    let proxy = Proxy::with_login("name:password").await;
    let outbound = with(proxy.outbound("socks", "out"), login());
    check_protocol(&proxy, outbound, "127.0.0.1", "socks5", "name:password").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_goes_through_http_with_a_login() {
    let proxy = Proxy::with_login(BASIC).await;
    let outbound = with(proxy.outbound("http", "out"), login());
    check_protocol(&proxy, outbound, "127.0.0.1", "http", BASIC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn path_and_headers_are_sent_to_an_http_proxy() {
    let proxy = Proxy::start().await;
    let more = json!({ "path": "tunnel?x=1", "headers": { "X-Team": ["red", "blue"] } });
    let outbound = with(proxy.outbound("http", "out"), more);
    check_protocol(&proxy, outbound, "127.0.0.1", "http", "").await;
    let head = &proxy.tunnels()[0].head;
    assert!(
        head.starts_with("connect /tunnel?x=1 http/1.1\r\n"),
        "{head}"
    );
    assert!(
        head.contains("\r\nx-team: red\r\nx-team: blue\r\n"),
        "{head}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_field_replaces_that_of_the_target() {
    let proxy = Proxy::start().await;
    let more = json!({ "headers": { "Host": "front.example" } });
    let outbound = with(proxy.outbound("http", "out"), more);
    check_protocol(&proxy, outbound, "127.0.0.1", "http", "").await;
    let head = &proxy.tunnels()[0].head;
    assert!(head.contains("\r\nhost: front.example\r\n"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_can_speak_tls() {
    let authority = Authority::new();
    let certificate = authority.sign(&["proxy.example"]);
    for tls in [
        json!({ "certificate": authority.pem, "server_name": "proxy.example" }),
        json!({ "certificate": authority.pem, "server_name": "proxy.example", "disable_sni": true,
            "max_version": "1.2" }),
        json!({ "certificate_public_key_sha256": [key_digest(&certificate.key)] }),
        json!({ "insecure": true }),
    ] {
        let proxy = Proxy::over_tls(certificate.server(&["http/1.1"])).await;
        let more = json!({ "tls": with(json!({ "enabled": true }), tls) });
        let outbound = with(proxy.outbound("http", "out"), more);
        check_protocol(&proxy, outbound, "127.0.0.1", "http", "").await;
    }
}

/// Returns the SHA-256 digest of the public key that belongs to a private one, in base64.
fn key_digest(pem: &str) -> String {
    use base64::Engine;
    use sha2::Digest;

    let key = KeyPair::from_pem(pem).expect("a key");
    let digest = sha2::Sha256::digest(key.subject_public_key_info());
    base64::prelude::BASE64_STANDARD.encode(digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_with_another_certificate_is_not_used() {
    let authority = Authority::new();
    let other = CertificateParams::new(vec!["proxy.example".to_owned()]).expect("a name");
    let key = KeyPair::generate().expect("a key");
    let other = other.self_signed(&key).expect("signs").pem();
    for tls in [
        // The system does not trust it.
        json!({ "server_name": "proxy.example" }),
        json!({ "certificate": other, "server_name": "proxy.example" }),
        json!({ "certificate": authority.pem, "server_name": "another.example" }),
        json!({ "certificate_public_key_sha256": [key_digest(&key.serialize_pem())] }),
    ] {
        let certificate = authority.sign(&["proxy.example"]);
        let proxy = Proxy::over_tls(certificate.server(&["http/1.1"])).await;
        let more = json!({ "tls": with(json!({ "enabled": true }), tls) });
        let outbound = with(proxy.outbound("http", "out"), more);
        let mut rig = Rig::new().await;
        let client = start(&mut rig, json!([outbound])).await;
        let answer = client.turn(&turn("s")).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{}", answer.text());
        assert_eq!(proxy.tunnels(), []);
        let failure = rig.credential("a").await["connect_failure"].to_string();
        assert!(failure.contains("TLS with "), "{failure}");
    }
}

over_both!(requests_polls_and_sockets_go_through_the_detour);
async fn requests_polls_and_sockets_go_through_the_detour() {
    let proxy = Proxy::start().await;
    let mut rig = Rig::new().await;
    let config = config(&rig, json!([proxy.outbound("socks", "out")]));
    let client = rig.start_polled(config).await;
    let after_poll = proxy.tunnels().len();
    assert!(after_poll > 0, "the poll did not go through the proxy");
    let mut socket = client.socket().await.expect("a socket");
    assert_eq!(proxy.tunnels().len(), after_poll + 1);
    socket.turn(&turn("s")).await;
    let answer = client.turn(&turn("s")).await;
    assert_eq!(answer.status, StatusCode::OK);
    let host = if rig.upstream.chatgpt_url().starts_with("https://localhost") {
        "localhost"
    } else {
        "127.0.0.1"
    };
    check_tunnels(&proxy, &tunnel(&rig, "socks5", host, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_connects_through_the_detour() {
    let proxy = Proxy::start().await;
    let mut scene = LoginScene::new(-10).await;
    scene.credential["detour"] = json!("out");
    let mut config = scene
        .rig
        .config(json!({ "credentials": [scene.credential] }));
    config["outbounds"] = json!([proxy.outbound("http", "out")]);
    let client = scene.rig.start(config).await;
    assert_eq!(client.turn(&turn("s")).await.status, StatusCode::OK);
    assert_eq!(scene.token_posts(), 1);
    // One connection for the refresh, one for the request at least.
    assert!(proxy.tunnels().len() >= 2, "{:?}", proxy.tunnels());
}

/// Without the outbound, the process that refreshes would resolve the name, and fail.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_process_connects_through_the_detour() {
    let proxy = Proxy::with_login("name:password").await;
    let mut scene = LoginScene::new(-10).await;
    scene.credential["detour"] = json!("out");
    let mut config = scene
        .rig
        .config(json!({ "credentials": [scene.credential] }));
    config["outbounds"] = json!([with(proxy.outbound("socks", "out"), login())]);
    let program = scene.rig.spawn(&with_remote_name(config)).await;
    let answer = program.client().turn(&turn("s")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(scene.token_posts(), 1);
    let expected = tunnel(&scene.rig, "socks5", "upstream.invalid", "name:password");
    check_tunnels(&proxy, &expected);
    program.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reverse_connection_goes_through_the_detour() {
    let proxy = Proxy::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut rig = Rig::new().await;
    // Only the proxy resolves the name.
    let credential = json!({ "type": "external", "tag": "up", "url": format!("http://upstream.invalid:{port}"),
        "reverse": true, "token": "token-up", "detour": "out" });
    let mut config = rig.config(json!({ "credentials": [rig.oauth("a"), credential] }));
    config["outbounds"] = json!([proxy.outbound("http", "out")]);
    rig.start(config).await;
    let asking = async {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            let asked = Peer::new(stream).message().await;
            // The gateway asks for the other gateway's usage besides.
            if asked.is_some_and(|asked| asked.head.starts_with("get /ocm/v1/reverse ")) {
                return;
            }
        }
    };
    timeout(WAIT_MAX, asking).await.expect("it is asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbound_connects_through_its_detour() {
    let (far, near) = (
        Proxy::with_login("name:password").await,
        Proxy::start().await,
    );
    let direct = json!({ "type": "direct", "tag": "here", "connect_timeout": "5s" });
    let outbounds = json!([
        with(
            with(far.outbound("socks", "out"), login()),
            json!({ "detour": "near" })
        ),
        with(near.outbound("http", "near"), json!({ "detour": "here" })),
        direct,
    ]);
    let mut rig = Rig::new().await;
    let client = start(&mut rig, outbounds).await;
    let answer = client.turn(&turn("s")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    check_tunnels(&far, &tunnel(&rig, "socks5", "127.0.0.1", "name:password"));
    let to_far = SeenTunnel {
        protocol: "http",
        target: far.address().to_string(),
        ..SeenTunnel::default()
    };
    check_tunnels(&near, &to_far);
}

/// A pool of `dead`, whose detour does not answer, and `b` without one.
fn pool_with_a_dead_outbound(rig: &Rig, outbounds: Value) -> Value {
    let mut dead = rig.oauth("dead");
    dead["detour"] = json!("out");
    let pool = json!({ "tag": "pool", "type": "fallback", "credentials": ["dead", "b"] });
    let mut config = rig.config(json!({ "credentials": [pool, dead, rig.oauth("b")] }));
    config["outbounds"] = outbounds;
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_outbound_fails_over_and_its_name_is_in_status_and_log() {
    let nowhere = Nowhere::new();
    let port = nowhere.port();
    let outbound =
        json!({ "type": "socks", "tag": "out", "server": "127.0.0.1", "server_port": port });
    let rig = Rig::new().await;
    let config = pool_with_a_dead_outbound(&rig, json!([outbound]));
    let program = rig.spawn(&config).await;
    let answer = program.client().turn(&turn("s")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(rig.upstream.turns().len(), 1);
    let failure = rig.credential("dead").await["connect_failure"].clone();
    let expected = format!("outbound \"out\": 127.0.0.1:{port}: connection refused");
    assert_eq!(failure, json!(expected));
    assert_eq!(rig.credential("b").await["connect_failure"], Value::Null);
    let log = program.log();
    assert!(log.contains("no response from upstream"), "{log}");
    assert!(log.contains(&expected.replace('"', "\\\"")), "{log}");
    program.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_outbound_of_the_only_credential_is_named_to_the_client() {
    let near = Proxy::start().await;
    let nowhere = Nowhere::new();
    let port = nowhere.port();
    let far = json!({ "type": "socks", "tag": "out", "server": "127.0.0.1", "server_port": port,
        "detour": "near" });
    let mut rig = Rig::new().await;
    let client = start(&mut rig, json!([far, near.outbound("http", "near")])).await;
    let answer = client.turn(&turn("s")).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    let error = &answer.json()["error"];
    assert_eq!(error["code"], "upstream_unreachable");
    // The hop that failed is the near one: it cannot reach the far one.
    assert_eq!(
        error["message"],
        "upstream cannot be reached: the outbound \"near\" failed: the HTTP proxy answered 502"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_outbound_takes_effect_without_a_restart() {
    let (first, second) = (Proxy::start().await, Proxy::start().await);
    let mut rig = Rig::new().await;
    let config_through =
        |rig: &Rig, proxy: &Proxy| config(rig, json!([proxy.outbound("socks", "out")]));
    let client = rig.start(config_through(&rig, &first)).await;
    assert_eq!(client.turn(&turn("s")).await.status, StatusCode::OK);
    assert_eq!(second.tunnels(), []);
    let changed = config_through(&rig, &second);
    rig.configure(&changed).await.expect("it is applied");
    assert_eq!(client.turn(&turn("s")).await.status, StatusCode::OK);
    assert!(!second.tunnels().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_with_different_detours_do_not_mix() {
    let proxies = [Proxy::start().await, Proxy::start().await];
    let mut rig = Rig::new().await;
    let credential = |rig: &Rig, tag: &str| with(rig.oauth(tag), json!({ "detour": tag }));
    let user =
        |tag: &str| json!({ "name": tag, "token": format!("token-{tag}"), "credential": tag });
    let mut config = rig.config(json!({
        "credentials": [credential(&rig, "a"), credential(&rig, "b")],
        "users": [user("a"), user("b")],
    }));
    config["outbounds"] = json!([
        proxies[0].outbound("socks", "a"),
        proxies[1].outbound("http", "b")
    ]);
    let client = rig.start_polled(config).await;
    let before = proxies.each_ref().map(|proxy| proxy.tunnels().len());
    assert_eq!(
        client.token("token-b").turn(&turn("s")).await.status,
        StatusCode::OK
    );
    assert_eq!(proxies[0].tunnels().len(), before[0]);
    assert!(
        proxies[1]
            .tunnels()
            .iter()
            .all(|seen| seen.protocol == "http")
    );
}
