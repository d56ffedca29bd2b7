//! Certificates that the gateway obtains from an ACME server, and renews.

mod orders;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tollgate_tests::peer::{Peer, WAIT_MAX, find, post};
use tollgate_tests::{AcmeServer, Authority, Metrics, Rig, read_json, turn};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A gateway with a certificate from an ACME server.
struct AcmeScene {
    rig: Rig,
    server: AcmeServer,
    domain: &'static str,
    config: Value,
    address: SocketAddr,
}

impl AcmeScene {
    /// Starts a gateway with these fields of `tls.acme`. Each scene needs its own domain,
    /// because all gateways of a process answer for all domains.
    async fn new(domain: &'static str, acme: Value) -> Self {
        Self::with(AcmeServer::start().await, domain, acme, json!({})).await
    }

    async fn with(server: AcmeServer, domain: &'static str, acme: Value, tls: Value) -> Self {
        let mut rig = Rig::new().await;
        let mut whole = json!({ "domain": domain, "provider": server.directory() });
        let mut section = json!({ "enabled": true });
        for (target, fields) in [(&mut whole, acme), (&mut section, tls)] {
            for (name, value) in fields.as_object().expect("fields") {
                target[name] = value.clone();
            }
        }
        section["acme"] = whole;
        let mut config = rig.config(json!({ "credentials": [rig.oauth("a")], "tls": section }));
        config["admin"] = json!({ "listen_port": 0 });
        let address = rig.start(config.clone()).await.address();
        if !server.validates_over_tls() {
            server.validate_over_tls(address);
        }
        Self {
            rig,
            server,
            domain,
            config,
            address,
        }
    }

    async fn connect(&self) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from(self.domain).expect("a name");
        let mut stream = self.server.client().connect(name, stream).await?;
        stream.flush().await?;
        Ok(stream)
    }

    /// Returns the certificate that a client accepts, if there is one.
    async fn presented(&self) -> Option<CertificateDer<'static>> {
        let stream = self.connect().await.ok()?;
        let presented = stream.get_ref().1.peer_certificates()?;
        presented.first().map(|leaf| leaf.clone().into_owned())
    }

    /// Waits until another certificate than `old` is presented.
    async fn wait_for_another(&self, old: Option<&CertificateDer<'_>>) -> CertificateDer<'static> {
        let since = Instant::now();
        loop {
            let presented = self.presented().await;
            if let Some(presented) = presented.filter(|presented| old != Some(presented)) {
                return presented;
            }
            assert!(since.elapsed() < WAIT_MAX, "no certificate in time");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns why there is no new certificate, from the status.
    async fn problem(&self) -> Value {
        let status = self.rig.admin().get("/api/status").await.json();
        status["services"][0]["tls"]["problem"].clone()
    }

    async fn wait_for_problem(&self) -> String {
        let since = Instant::now();
        loop {
            if let Some(problem) = self.problem().await.as_str() {
                return problem.to_owned();
            }
            assert!(since.elapsed() < WAIT_MAX, "no problem in time");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns the files in the folder of accounts and certificates.
    fn files(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.rig.path("data").join("acme")) else {
            return Vec::new();
        };
        entries
            .map(|entry| entry.expect("an entry").path())
            .collect()
    }

    /// Returns the file of the certificate.
    fn certificate_file(&self) -> PathBuf {
        let is_certificate = |file: &PathBuf| file.extension().is_some_and(|name| name == "pem");
        let found = self.files().into_iter().find(is_certificate);
        found.expect("a certificate")
    }

    async fn turn(&self) {
        let mut peer = Peer::new(self.connect().await.expect("a handshake"));
        peer.send(post(&turn("acme").to_string())).await;
        let answer = peer.message().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK.as_u16());
    }
}

/// Returns an address on which nothing listens.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("an address")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_issued_over_tls_alpn_and_kept() {
    let acme = json!({ "email": "ops@alpn.example", "disable_http_challenge": true });
    let mut scene = AcmeScene::new("alpn.example", acme).await;
    let first = scene.wait_for_another(None).await;
    scene.turn().await;
    let accounts = scene.server.accounts();
    assert_eq!(accounts.len(), 1);
    assert_eq!(accounts[0]["contact"], json!(["mailto:ops@alpn.example"]));
    assert_eq!(accounts[0]["termsOfServiceAgreed"], true);
    let files = scene.files();
    assert_eq!(files.len(), 2, "{files:?}");
    for file in files {
        let mode = std::fs::metadata(&file)
            .expect("a file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
    // The next start finds both, and orders nothing.
    scene.rig.stop().await;
    scene.address = scene.rig.start(scene.config.clone()).await.address();
    assert_eq!(scene.presented().await, Some(first));
    assert_eq!(
        (scene.server.orders(), scene.server.accounts().len()),
        (1, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_issued_over_http() {
    let address = free_address();
    let acme = json!({
        "disable_tls_alpn_challenge": true,
        "alternative_http_port": address.port(),
        "key_type": "p384",
    });
    let server = AcmeServer::start().await;
    server.validate_over_http(address);
    let scene = AcmeScene::with(server, "http.example", acme, json!({})).await;
    scene.wait_for_another(None).await;
    scene.turn().await;
    // The port is open while the order is.
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_challenge_is_tried_if_the_first_fails() {
    let address = free_address();
    let server = AcmeServer::start().await;
    server.validate_over_http(address);
    // Nothing listens where the certificate authority looks for the first challenge.
    server.validate_over_tls(free_address());
    let acme = json!({ "alternative_http_port": address.port() });
    let scene = AcmeScene::with(server, "other.example", acme, json!({})).await;
    scene.wait_for_another(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_is_answered_on_another_port_whatever_clients_must_present() {
    let address = free_address();
    let acme = json!({ "disable_http_challenge": true, "alternative_tls_port": address.port() });
    let server = AcmeServer::start().await;
    server.validate_over_tls(address);
    let tls = json!({ "client_certificate": Authority::new().pem });
    let scene = AcmeScene::with(server, "port.example", acme, tls).await;
    let since = Instant::now();
    while scene.server.orders() == 0 || scene.files().len() < 2 {
        assert!(since.elapsed() < WAIT_MAX, "no certificate in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_and_no_connection_is_dropped() {
    let server = AcmeServer::start().await;
    server.set_lifetime(Duration::from_secs(9));
    let acme = json!({ "disable_http_challenge": true });
    let scene = AcmeScene::with(server, "renewed.example", acme, json!({})).await;
    let first = scene.wait_for_another(None).await;
    let mut open = Peer::new(scene.connect().await.expect("a handshake"));
    scene.server.set_lifetime(90 * DAY);
    let second = scene.wait_for_another(Some(&first)).await;
    assert_ne!(first, second);
    open.send(post(&turn("open").to_string())).await;
    let answer = open.message().await.expect("the connection is still open");
    assert!(answer.status() == 200 && answer.whole);
    assert_eq!(
        (scene.server.orders(), scene.server.accounts().len()),
        (2, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_order_is_reported_and_clients_are_not_served() {
    let server = AcmeServer::start().await;
    server.reject_orders(Some("this name is forbidden"));
    let scene = AcmeScene::with(server, "rejected.example", json!({}), json!({})).await;
    let problem = scene.wait_for_problem().await;
    assert!(problem.starts_with("services[0].tls.acme: "), "{problem}");
    assert!(problem.contains("this name is forbidden"), "{problem}");
    assert_eq!(scene.presented().await, None);
    let metrics = scene.rig.admin().get("/metrics").await.text();
    let metrics = Metrics::parse(&metrics);
    assert_eq!(metrics.value("tollgate_tls_failing", &[]), 1.0);
    let failed = metrics.value("tollgate_tls_reloads_total", &[("outcome", "failed")]);
    assert_eq!(failed, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_validation_names_the_servers_reason() {
    let acme = json!({ "disable_http_challenge": true });
    let server = AcmeServer::start().await;
    server.validate_over_tls(free_address());
    let scene = AcmeScene::with(server, "failed.example", acme, json!({})).await;
    let problem = scene.wait_for_problem().await;
    assert!(
        problem.contains("failed.example: tls-alpn-01 failed"),
        "{problem}"
    );
    assert!(problem.contains("cannot connect"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_nonce_is_replaced_and_an_external_account_is_named() {
    let server = AcmeServer::start().await;
    server.spoil_nonce();
    let acme = json!({
        "disable_http_challenge": true,
        "external_account": { "key_id": "kid-1", "mac_key": "c2VjcmV0LWtleQ" },
    });
    let scene = AcmeScene::with(server, "external.example", acme, json!({})).await;
    scene.wait_for_another(None).await;
    let binding = &scene.server.accounts()[0]["externalAccountBinding"];
    let protected = binding["protected"].as_str().expect("it is signed");
    // {"alg":"HS256","kid":"kid-1", in base64url.
    assert!(
        protected.starts_with("eyJhbGciOiJIUzI1NiIsImtpZCI6ImtpZC0xIi"),
        "{protected}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_found_by_its_tag() {
    let server = AcmeServer::start().await;
    let mut rig = Rig::new().await;
    let tls = json!({ "enabled": true, "certificate_provider": "shared" });
    let mut config = rig.config(json!({ "credentials": [rig.oauth("a")], "tls": tls }));
    config["admin"] = json!({ "listen_port": 0 });
    config["certificate_providers"] = json!([
        { "type": "tailscale", "tag": "other", "endpoint": "ts" },
        {
            "type": "acme",
            "tag": "shared",
            "domain": ["one.example", "two.example"],
            "provider": server.directory(),
            "data_directory": rig.path("certificates"),
            "disable_http_challenge": true,
        },
    ]);
    let address = rig.start(config.clone()).await.address();
    server.validate_over_tls(address);
    let mut scene = AcmeScene {
        rig,
        server,
        domain: "one.example",
        config,
        address,
    };
    let first = scene.wait_for_another(None).await;
    scene.domain = "two.example";
    assert_eq!(scene.presented().await, Some(first));
    assert!(scene.rig.path("certificates").is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inline_provider_with_an_account_key_issues_an_ed25519_certificate() {
    let server = AcmeServer::start().await;
    let mut rig = Rig::new().await;
    let key = KeyPair::generate().expect("a key");
    let tls = json!({ "enabled": true, "certificate_provider": {
        "type": "acme",
        "domain": "inline.example",
        "provider": server.directory(),
        "account_key": key.serialize_pem(),
        "key_type": "ed25519",
        "disable_http_challenge": true,
    } });
    let config = rig.config(json!({ "credentials": [rig.oauth("a")], "tls": tls }));
    let address = rig.start(config.clone()).await.address();
    server.validate_over_tls(address);
    let scene = AcmeScene {
        rig,
        server,
        domain: "inline.example",
        config,
        address,
    };
    let issued = scene.wait_for_another(None).await;
    // The identifier of Ed25519 (RFC 8410).
    assert!(find(issued.as_ref(), &[0x2b, 0x65, 0x70]).is_some());
    let is_account = |file: &PathBuf| file.extension().is_some_and(|name| name == "json");
    let account = scene.files().into_iter().find(is_account);
    let account = read_json(&account.expect("an account"));
    let stored = URL_SAFE_NO_PAD.encode(key.serialize_der());
    assert_eq!(account["key_pkcs8"], stored);
}
