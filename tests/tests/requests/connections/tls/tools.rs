//! The TLS settings as openssl, curl and testssl.sh see them. A program that is not installed is
//! skipped.

use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tokio::process::Command;
use tollgate_tests::{Authority, TlsScene, turn};

/// What openssl's client sees.
enum Seen {
    /// The handshake succeeds, and these texts are in the report.
    Accepted(&'static [&'static str]),
    /// The gateway ends the handshake.
    Rejected,
}

/// Runs a program to its end, or returns `None` if it is not installed.
async fn run(program: &str, args: &[&str]) -> Option<Output> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    match command.output().await {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: {program} is not installed");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// Runs `openssl s_client` against a listener with the fields `tls`.
async fn check_s_client(tls: Value, args: &[&str], expected: Seen) {
    let scene = TlsScene::new(tls.clone(), json!({})).await;
    let authority = scene.rig.write("authority.pem", &scene.authority.pem);
    let address = scene.address.to_string();
    let common = [
        "s_client",
        "-connect",
        &address,
        "-CAfile",
        &authority,
        "-servername",
        "localhost",
        "-verify_hostname",
        "localhost",
        "-verify_return_error",
    ];
    let Some(output) = run("openssl", &[&common, args].concat()).await else {
        return;
    };
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    match expected {
        Seen::Accepted(texts) => {
            assert!(output.status.success(), "{tls} {args:?}: {report}{errors}");
            for text in texts.iter().chain(&["Verify return code: 0 (ok)"]) {
                assert!(
                    report.contains(text),
                    "{tls} {args:?}: no {text:?}: {report}"
                );
            }
        }
        Seen::Rejected => assert!(!output.status.success(), "{tls} {args:?}: {report}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_sees_the_versions() {
    let old = ["-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"];
    let cases: [(Value, &[&str], Seen); 6] = [
        (
            json!({}),
            &["-tls1_3"],
            Seen::Accepted(&["New, TLSv1.3, Cipher is TLS_AES_256_GCM_SHA384"]),
        ),
        (
            json!({}),
            &["-tls1_2"],
            Seen::Accepted(&["New, TLSv1.2, Cipher is ECDHE-ECDSA-AES256-GCM-SHA384"]),
        ),
        (json!({}), &old, Seen::Rejected),
        (json!({ "min_version": "1.0" }), &old, Seen::Rejected),
        (
            json!({ "min_version": "1.3" }),
            &["-tls1_2"],
            Seen::Rejected,
        ),
        (
            json!({ "max_version": "1.2" }),
            &["-tls1_3"],
            Seen::Rejected,
        ),
    ];
    for (tls, args, expected) in cases {
        check_s_client(tls, args, expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_sees_the_cipher_suites() {
    let one = json!({ "cipher_suites": "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256" });
    let cases: [(Value, &[&str], Seen); 5] = [
        (
            one.clone(),
            &["-tls1_2"],
            Seen::Accepted(&["Cipher is ECDHE-ECDSA-CHACHA20-POLY1305"]),
        ),
        (
            one.clone(),
            &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"],
            Seen::Rejected,
        ),
        // Those of TLS 1.3 are always offered.
        (
            one,
            &["-ciphersuites", "TLS_AES_128_GCM_SHA256"],
            Seen::Accepted(&["New, TLSv1.3, Cipher is TLS_AES_128_GCM_SHA256"]),
        ),
        // The gateway's order counts.
        (
            json!({}),
            &[
                "-tls1_2",
                "-cipher",
                "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES256-GCM-SHA384",
            ],
            Seen::Accepted(&["Cipher is ECDHE-ECDSA-AES256-GCM-SHA384"]),
        ),
        (
            json!({}),
            &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA"],
            Seen::Rejected,
        ),
    ];
    for (tls, args, expected) in cases {
        check_s_client(tls, args, expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_sees_the_key_exchanges_and_protocols() {
    let cases: [(Value, &[&str], Seen); 6] = [
        (
            json!({}),
            &["-groups", "X25519:P-256"],
            Seen::Accepted(&["Temp Key: X25519"]),
        ),
        (
            json!({ "curve_preferences": ["P384", "X25519"] }),
            &["-groups", "P-384"],
            Seen::Accepted(&["secp384r1"]),
        ),
        (
            json!({ "curve_preferences": "P384" }),
            &["-groups", "X25519:P-256"],
            Seen::Rejected,
        ),
        (
            json!({ "curve_preferences": "P256" }),
            &["-tls1_2"],
            Seen::Accepted(&["prime256v1"]),
        ),
        (
            json!({ "alpn": "http/1.1" }),
            &["-alpn", "h2,http/1.1"],
            Seen::Accepted(&["ALPN protocol: http/1.1"]),
        ),
        (
            json!({ "alpn": ["h3", "h2"] }),
            &["-alpn", "http/1.1,h2"],
            Seen::Accepted(&["ALPN protocol: h2"]),
        ),
    ];
    for (tls, args, expected) in cases {
        check_s_client(tls, args, expected).await;
    }
}

/// Sends a turn by curl. Returns its exit code, and the text of the response with the version of
/// HTTP at its end; `None` if it is not installed.
async fn curl(scene: &TlsScene, args: &[&str]) -> Option<(i32, String)> {
    let url = format!("https://localhost:{}/v1/responses", scene.address.port());
    let body = turn("curl").to_string();
    let common = [
        "--silent",
        "--max-time",
        "20",
        "--header",
        "content-type: application/json",
        "--data",
        &body,
        "--write-out",
        " version %{http_version}",
        &url,
    ];
    let output = run("curl", &[args, &common].concat()).await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some((output.status.code().expect("it ends by itself"), text))
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_is_served_with_every_version() {
    let scene = TlsScene::new(json!({}), json!({})).await;
    let trusted = scene.rig.write("authority.pem", &scene.authority.pem);
    let cases: [(&[&str], &str); 4] = [
        (&[], "version 2"),
        (&["--http1.1"], "version 1.1"),
        (&["--tls-max", "1.2"], "version 2"),
        (&["--tlsv1.3", "--http1.1"], "version 1.1"),
    ];
    for (args, version) in cases {
        let args = [args, &["--cacert", &trusted]].concat();
        let Some((code, text)) = curl(&scene, &args).await else {
            return;
        };
        assert_eq!(code, 0, "{args:?}: {text}");
        assert!(text.contains("response.completed"), "{args:?}: {text}");
        assert!(text.ends_with(version), "{args:?}: {text}");
    }
    let stranger = scene.rig.write("stranger.pem", &Authority::new().pem);
    let rejected = curl(&scene, &["--cacert", &stranger]).await;
    let (code, text) = rejected.expect("it is installed");
    assert_ne!(code, 0, "{text}");
    assert!(!text.contains("response."), "{text}");
    scene.end(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_is_served_with_a_good_certificate_alone() {
    let (known, stranger) = (Authority::new(), Authority::new());
    let tls = json!({
        "client_authentication": "require-and-verify",
        "client_certificate": known.pem,
    });
    let scene = TlsScene::new(tls, json!({})).await;
    let trusted = scene.rig.write("authority.pem", &scene.authority.pem);
    let present = |name: &str, authority: &Authority| {
        let certificate = authority.sign(&["client"]);
        let folder = &scene.rig;
        (
            folder.write(&format!("{name}.pem"), &certificate.pem),
            folder.write(&format!("{name}-key.pem"), &certificate.key),
        )
    };
    let (good, good_key) = present("good", &known);
    let (bad, bad_key) = present("bad", &stranger);
    for version in [&["--tls-max", "1.2"][..], &["--tlsv1.3"]] {
        let common = [version, &["--cacert", &trusted]].concat();
        let args = [&common[..], &["--cert", &good, "--key", &good_key]].concat();
        let Some((code, text)) = curl(&scene, &args).await else {
            return;
        };
        assert_eq!(code, 0, "{version:?}: {text}");
        assert!(text.contains("response.completed"), "{version:?}: {text}");
        let args = [&common[..], &["--cert", &bad, "--key", &bad_key]].concat();
        for args in [args, common] {
            let (code, text) = curl(&scene, &args).await.expect("it is installed");
            assert_ne!(code, 0, "{args:?}: {text}");
            assert!(!text.contains("response."), "{args:?}: {text}");
        }
    }
    scene.end(2).await;
}

/// The severities of testssl.sh above LOW.
const SEVERE: [&str; 4] = ["MEDIUM", "HIGH", "CRITICAL", "FATAL"];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes: make tls"]
async fn testssl_finds_nothing_above_low() {
    let scene = TlsScene::new(json!({}), json!({})).await;
    let authority = scene.rig.write("authority.pem", &scene.authority.pem);
    let findings = scene.rig.path("findings.json");
    let address = format!("localhost:{}", scene.address.port());
    let program = "testssl";
    let args = [
        "--quiet",
        "--warnings",
        "off",
        "--color",
        "0",
        "--ip",
        "127.0.0.1",
        "--add-ca",
        &authority,
        "--jsonfile",
        text(&findings),
        // Protocols, cipher suites, forward secrecy, preferences, the certificate, vulnerabilities.
        "-p",
        "-s",
        "-f",
        "-P",
        "-S",
        "-U",
        &address,
    ];
    let Some(output) = run(program, &args).await else {
        return;
    };
    let found = std::fs::read_to_string(&findings).unwrap_or_else(|error| {
        let report = String::from_utf8_lossy(&output.stdout);
        panic!("{program} reports nothing: {error}: {report}")
    });
    let found: Vec<Value> = serde_json::from_str(&found).expect("JSON");
    let of = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    assert!(
        found.iter().any(|finding| of(finding, "id") == "TLS1_3"),
        "{found:?}"
    );
    // The certificate is one of the test: it names neither a CRL nor OCSP.
    let severe: Vec<&Value> = found
        .iter()
        .filter(|finding| SEVERE.contains(&&*of(finding, "severity")))
        .filter(|finding| !of(finding, "id").starts_with("cert"))
        .collect();
    assert!(severe.is_empty(), "{severe:#?}");
}
