//! Certificates, keys and authorities that are replaced while the gateway runs.

use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tollgate_tests::peer::{Peer, WAIT_MAX, post};
use tollgate_tests::{Authority, Metrics, TLS_VERSIONS, TlsScene, make_fifo, turn};

/// Without a change event, the gateway reads the files every ten seconds: less than that shows that
/// it noticed the change.
const NOTICED: Duration = Duration::from_secs(5);

/// Returns the certificate of `pem`.
fn leaf(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")
}

/// Waits until new connections are presented the certificate `pem`.
async fn wait_for_certificate(scene: &TlsScene, pem: &str) {
    let since = Instant::now();
    while scene.presented().await != Some(leaf(pem)) {
        assert!(since.elapsed() < NOTICED, "it is not presented in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn metrics(scene: &TlsScene) -> Metrics {
    Metrics::parse(&scene.rig.admin().get("/metrics").await.text())
}

/// Returns how many replacements were used and how many were rejected.
async fn reloads(scene: &TlsScene) -> (f64, f64) {
    let metrics = metrics(scene).await;
    let count = |outcome| metrics.value("tollgate_tls_reloads_total", &[("outcome", outcome)]);
    (count("ok"), count("failed"))
}

/// Returns why the newest certificate is not in use, from the status.
async fn problem(scene: &TlsScene) -> Value {
    let status = scene.rig.admin().get("/api/status").await.json();
    status["services"][0]["tls"]["problem"].clone()
}

async fn wait_for_rejections(scene: &TlsScene, count: f64) {
    let since = Instant::now();
    while reloads(scene).await.1 < count {
        assert!(since.elapsed() < WAIT_MAX, "it is not rejected in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_certificate_is_presented_and_no_connection_is_dropped() {
    let scene = TlsScene::in_files(json!({})).await;
    let stream = scene
        .connect(TLS_VERSIONS, &["http/1.1"])
        .await
        .expect("a handshake");
    let mut open = Peer::new(stream);
    for round in 0..3 {
        let next = scene.authority.sign(&["localhost"]);
        scene.replace("cert.pem", &next.pem);
        scene.replace("key.pem", &next.key);
        wait_for_certificate(&scene, &next.pem).await;
        open.send(post(&turn(&format!("open {round}")).to_string()))
            .await;
        let answer = open.message().await.expect("the connection is still open");
        assert!(answer.status() == 200 && answer.whole);
        scene.turn(&["h2"]).await;
    }
    // The certificate and its key changed one after the other, which is no broken replacement.
    assert_eq!(reloads(&scene).await, (3.0, 0.0));
    assert_eq!(problem(&scene).await, Value::Null);
    scene.end(6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_replacement_keeps_the_certificate_and_is_reported() {
    let scene = TlsScene::in_files(json!({})).await;
    let first = scene.presented().await.expect("a certificate");
    let next = scene.authority.sign(&["localhost"]);
    let half = &next.pem[..next.pem.len() / 2];
    let other = scene.authority.sign(&["localhost"]);
    let broken = [
        ("cert.pem", "garbage", "expected certificates in PEM"),
        ("cert.pem", half, "expected certificates in PEM"),
        ("cert.pem", &next.pem, "found that of another"),
        ("key.pem", "", "expected a private key in PEM"),
        ("key.pem", &other.key, "found that of another"),
    ];
    for (number, (name, content, expected)) in broken.into_iter().enumerate() {
        scene.replace(name, content);
        wait_for_rejections(&scene, (number + 1) as f64).await;
        let problem = problem(&scene).await;
        assert!(
            problem.as_str().is_some_and(|text| text.contains(expected)),
            "{name}, {content:?}: {problem}"
        );
        assert_eq!(
            metrics(&scene).await.value("tollgate_tls_failing", &[]),
            1.0
        );
        assert_eq!(
            scene.presented().await.as_ref(),
            Some(&first),
            "{content:?}"
        );
    }
    scene.remove("key.pem");
    wait_for_rejections(&scene, 6.0).await;
    scene.turn(&["h2"]).await;
    scene.replace("key.pem", &next.key);
    wait_for_certificate(&scene, &next.pem).await;
    assert_eq!(reloads(&scene).await, (1.0, 6.0));
    assert_eq!(problem(&scene).await, Value::Null);
    assert_eq!(
        metrics(&scene).await.value("tollgate_tls_failing", &[]),
        0.0
    );
    scene.end(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_that_clients_reject_keeps_the_certificate() {
    let scene = TlsScene::in_files(json!({ "server_name": "localhost" })).await;
    let first = scene.presented().await.expect("a certificate");
    for (number, (certificate, expected)) in [
        (
            scene.authority.sign_for_years(&["localhost"], 2001..2002),
            "expired at",
        ),
        (
            scene.authority.sign_for_years(&["localhost"], 3000..3001),
            "not valid before",
        ),
        (scene.authority.sign(&["elsewhere"]), "not valid for"),
    ]
    .into_iter()
    .enumerate()
    {
        scene.replace("cert.pem", &certificate.pem);
        scene.replace("key.pem", &certificate.key);
        wait_for_rejections(&scene, (number + 1) as f64).await;
        let problem = problem(&scene).await;
        assert!(
            problem.as_str().is_some_and(|text| text.contains(expected)),
            "{problem}"
        );
        assert_eq!(scene.presented().await.as_ref(), Some(&first));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reverting_a_broken_replacement_clears_its_problem() {
    let scene = TlsScene::in_files(json!({})).await;
    let first = std::fs::read_to_string(scene.rig.path("cert.pem")).expect("a file");
    scene.replace("cert.pem", "garbage");
    wait_for_rejections(&scene, 1.0).await;
    scene.replace("cert.pem", &first);
    let since = Instant::now();
    while problem(&scene).await != Value::Null {
        assert!(since.elapsed() < NOTICED, "it is not noticed in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(reloads(&scene).await, (0.0, 1.0));
    scene.turn(&["h2"]).await;
    scene.end(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_written_byte_by_byte_is_used_once_it_is_complete() {
    let scene = TlsScene::in_files(json!({})).await;
    let next = scene.authority.sign(&["localhost"]);
    scene.replace("key.pem", &next.key);
    let mut file = std::fs::File::create(scene.rig.path("cert.pem")).expect("a file");
    for piece in next.pem.as_bytes().chunks(next.pem.len() / 8) {
        std::io::Write::write_all(&mut file, piece).expect("the file can be written");
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    drop(file);
    wait_for_certificate(&scene, &next.pem).await;
    assert_eq!(reloads(&scene).await, (1.0, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_authorities_decide_about_new_connections() {
    let (old, new) = (Authority::new(), Authority::new());
    let scene = TlsScene::in_files_with(
        json!({ "client_authentication": "require-and-verify", "client_certificate_path": "clients.pem" }),
        &[("clients.pem", &old.pem)],
    )
    .await;
    let client = |authority: &Authority| {
        scene
            .authority
            .client_presenting(TLS_VERSIONS, &["http/1.1"], &authority.sign(&["client"]))
    };
    let (of_old, of_new) = (client(&old), client(&new));
    assert!(!scene.is_refused_by(&of_old).await);
    assert!(scene.is_refused_by(&of_new).await);
    scene.replace("clients.pem", &new.pem);
    let since = Instant::now();
    while scene.is_refused_by(&of_new).await {
        assert!(since.elapsed() < NOTICED, "it is not noticed in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(scene.is_refused_by(&of_old).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_expiry_of_the_certificate_is_a_metric() {
    let authority = Authority::new();
    let certificate = authority.sign_for_years(&["localhost"], 2001..2002);
    let scene = TlsScene::in_files_with(
        json!({}),
        &[
            ("cert.pem", &certificate.pem),
            ("key.pem", &certificate.key),
        ],
    )
    .await;
    let name = "tollgate_tls_certificate_expiry_timestamp_seconds";
    // 2002-01-01T00:00:00Z
    assert_eq!(metrics(&scene).await.value(name, &[]), 1_009_843_200.0);
    let status = scene.rig.admin().get("/api/status").await.json();
    assert_eq!(
        status["services"][0]["tls"]["expires_at"],
        1_009_843_200_000_u64
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_configuration_follows_the_files_that_it_names() {
    let scene = TlsScene::in_files(json!({})).await;
    let (second, third) = (
        scene.authority.sign(&["localhost"]),
        scene.authority.sign(&["localhost"]),
    );
    scene.rig.write("second.pem", &second.pem);
    scene.rig.write("second-key.pem", &second.key);
    let mut config = scene.config.clone();
    config["services"][0]["tls"]["certificate_path"] = json!(scene.rig.path("second.pem"));
    config["services"][0]["tls"]["key_path"] = json!(scene.rig.path("second-key.pem"));
    scene.rig.configure(&config).await.expect("it is applied");
    assert_eq!(scene.presented().await, Some(leaf(&second.pem)));
    scene.replace("second.pem", &third.pem);
    scene.replace("second-key.pem", &third.key);
    wait_for_certificate(&scene, &third.pem).await;
    // The files of before are of no interest.
    scene.replace("cert.pem", "garbage");
    assert_eq!(reloads(&scene).await, (1.0, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_replacement_is_rejected_beside_one_for_another_name() {
    let scene = TlsScene::in_files(json!({ "server_name": "elsewhere" })).await;
    let first = scene.presented().await.expect("a certificate");
    let expired = scene.authority.sign_for_years(&["elsewhere"], 2001..2002);
    scene.replace("cert.pem", &expired.pem);
    scene.replace("key.pem", &expired.key);
    wait_for_rejections(&scene, 1.0).await;
    let problem = problem(&scene).await.to_string();
    assert!(problem.contains("expired at"), "{problem}");
    assert_eq!(scene.presented().await, Some(first));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_configuration_does_not_bring_a_rejected_certificate_into_use() {
    let scene = TlsScene::in_files(json!({})).await;
    let first = scene.presented().await.expect("a certificate");
    let expired = scene.authority.sign_for_years(&["localhost"], 2001..2002);
    scene.replace("cert.pem", &expired.pem);
    scene.replace("key.pem", &expired.key);
    wait_for_rejections(&scene, 1.0).await;
    let mut config = scene.config.clone();
    config["services"][0]["headers"] = json!({ "x-new": "1" });
    scene.rig.configure(&config).await.expect("it is applied");
    assert_eq!(scene.presented().await.as_ref(), Some(&first));
    let reported = problem(&scene).await.to_string();
    assert!(reported.contains("expired at"), "{reported}");
    scene.turn(&["http/1.1"]).await;
    // The other settings of the section are those of the new configuration.
    config["services"][0]["tls"]["alpn"] = json!("http/1.1");
    scene.rig.configure(&config).await.expect("it is applied");
    assert_eq!(scene.presented().await, Some(first));
    assert!(scene.is_refused(TLS_VERSIONS, &["h2"]).await);
    // Other files are used as they are: the operator named them.
    scene.rig.write("old.pem", &expired.pem);
    scene.rig.write("old-key.pem", &expired.key);
    config["services"][0]["tls"]["certificate_path"] = json!(scene.rig.path("old.pem"));
    config["services"][0]["tls"]["key_path"] = json!(scene.rig.path("old-key.pem"));
    scene.rig.configure(&config).await.expect("it is applied");
    assert_eq!(scene.presented().await, None, "an expired one is rejected");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_certificate_does_not_keep_a_configuration_from_being_applied() {
    let scene = TlsScene::in_files(json!({})).await;
    let first = scene.presented().await.expect("a certificate");
    scene.turn(&["h2"]).await;
    scene.replace("cert.pem", "garbage");
    wait_for_rejections(&scene, 1.0).await;
    let mut config = scene.config.clone();
    config["services"][0]["users"] = json!([{ "name": "alice", "token": "token-alice" }]);
    scene.rig.configure(&config).await.expect("it is applied");
    assert_eq!(scene.presented().await, Some(first));
    let stream = scene.connect(TLS_VERSIONS, &["http/1.1"]).await;
    let mut peer = Peer::new(stream.expect("a handshake"));
    peer.send(post(&turn("without a token").to_string())).await;
    let answer = peer.message().await.expect("an answer");
    assert_eq!(answer.status(), 401);
    let reported = problem(&scene).await.to_string();
    assert!(
        reported.contains("expected certificates in PEM"),
        "{reported}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_in_place_of_the_certificate_is_rejected() {
    let scene = TlsScene::in_files(json!({})).await;
    let first = scene.presented().await.expect("a certificate");
    make_fifo(&scene.rig.path("fifo"));
    std::fs::rename(scene.rig.path("fifo"), scene.rig.path("cert.pem")).expect("it is replaced");
    wait_for_rejections(&scene, 1.0).await;
    let reported = problem(&scene).await.to_string();
    assert!(
        reported.contains("expected a file, found something else"),
        "{reported}"
    );
    assert_eq!(scene.presented().await, Some(first));
}
