//! Certificates that clients present.

use rustls::HandshakeKind;
use serde_json::{Value, json};
use tollgate_tests::peer::{Peer, post};
use tollgate_tests::{Authority, Certificate, TLS_VERSIONS, TlsScene, turn};

use Access::{Rejected, Served};

/// What the gateway does with a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Served,
    Rejected,
}

/// Checks that the gateway treats a client with `certificate` as `access` says, with each version of
/// TLS.
async fn check(scene: &TlsScene, certificate: Option<&Certificate>, access: Access, what: &str) {
    for version in TLS_VERSIONS {
        let versions = &[*version];
        let client = match certificate {
            Some(certificate) => {
                scene
                    .authority
                    .client_presenting(versions, &["http/1.1"], certificate)
            }
            None => scene.authority.client(versions, &["http/1.1"]),
        };
        assert_eq!(
            scene.is_refused_by(&client).await,
            access == Rejected,
            "{what} over {:?}",
            version.version
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mode_serves_the_clients_that_it_names() {
    let (known, stranger) = (Authority::new(), Authority::new());
    let (good, other) = (known.sign(&["client"]), stranger.sign(&["client"]));
    let cases = [
        ("no", [Served, Served, Served]),
        ("request", [Served, Served, Served]),
        ("require-any", [Rejected, Served, Served]),
        ("verify-if-given", [Served, Served, Rejected]),
        ("require-and-verify", [Rejected, Served, Rejected]),
    ];
    for (mode, served) in cases {
        let tls = json!({ "client_authentication": mode, "client_certificate": known.pem });
        let scene = TlsScene::new(tls, json!({})).await;
        check(&scene, None, served[0], &format!("{mode}: none")).await;
        check(&scene, Some(&good), served[1], &format!("{mode}: good")).await;
        check(&scene, Some(&other), served[2], &format!("{mode}: other")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_without_a_mode_verify_every_client() {
    let known = Authority::new();
    let scene = TlsScene::new(json!({ "client_certificate": known.pem }), json!({})).await;
    check(&scene, None, Rejected, "none").await;
    check(&scene, Some(&known.sign(&["client"])), Served, "good").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_of_several_files_are_trusted() {
    let authorities = [Authority::new(), Authority::new(), Authority::new()];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let files: Vec<Value> = authorities[..2]
        .iter()
        .enumerate()
        .map(|(number, authority)| {
            let path = folder.path().join(format!("{number}.pem"));
            std::fs::write(&path, &authority.pem).expect("the folder can be written");
            json!(path)
        })
        .collect();
    let tls = json!({
        "client_authentication": "require-and-verify",
        "client_certificate_path": files,
    });
    let scene = TlsScene::new(tls, json!({})).await;
    for (authority, access) in authorities.iter().zip([Served, Served, Rejected]) {
        let certificate = authority.sign(&["client"]);
        check(&scene, Some(&certificate), access, "one of three").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_client_certificate_is_rejected_if_it_is_verified() {
    let known = Authority::new();
    let expired = known.sign_for_years(&["client"], 2001..2002);
    for (mode, access) in [("require-and-verify", Rejected), ("require-any", Served)] {
        let tls = json!({ "client_authentication": mode, "client_certificate": known.pem });
        let scene = TlsScene::new(tls, json!({})).await;
        check(&scene, Some(&expired), access, mode).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_key_is_accepted_by_its_digest() {
    let authority = Authority::new();
    let (named, other) = (authority.sign(&["one"]), authority.sign(&["two"]));
    let digest = named.public_key_sha256();
    for (mode, without) in [
        ("require-and-verify", Rejected),
        ("verify-if-given", Served),
    ] {
        let tls = json!({
            "client_authentication": mode,
            "client_certificate_public_key_sha256": digest,
        });
        let scene = TlsScene::new(tls, json!({})).await;
        check(&scene, Some(&named), Served, mode).await;
        check(&scene, Some(&other), Rejected, mode).await;
        check(&scene, None, without, mode).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_verified_present_their_certificate_each_time() {
    let known = Authority::new();
    let certificate = known.sign(&["client"]);
    for (tls, is_resumed) in [
        (json!({ "client_certificate": known.pem }), false),
        (json!({}), true),
    ] {
        let scene = TlsScene::new(tls, json!({})).await;
        for version in TLS_VERSIONS {
            let client =
                scene
                    .authority
                    .client_presenting(&[*version], &["http/1.1"], &certificate);
            let mut kinds = Vec::new();
            for _ in 0..2 {
                let stream = scene.connect_by(&client).await.expect("a handshake");
                kinds.push(stream.get_ref().1.handshake_kind());
                let mut peer = Peer::new(stream);
                peer.send(post(&turn("resumed").to_string())).await;
                peer.message().await.expect("an answer");
            }
            let is_full = kinds[1] == Some(HandshakeKind::Full);
            assert_eq!(!is_full, is_resumed, "{:?}: {kinds:?}", version.version);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_authorities_and_digests_a_certificate_must_satisfy_both() {
    let (known, stranger) = (Authority::new(), Authority::new());
    let (named, unnamed) = (known.sign(&["one"]), known.sign(&["two"]));
    let of_stranger = stranger.sign(&["three"]);
    let tls = json!({
        "client_certificate": known.pem,
        "client_certificate_public_key_sha256":
            [named.public_key_sha256(), of_stranger.public_key_sha256()],
    });
    let scene = TlsScene::new(tls, json!({})).await;
    check(&scene, Some(&named), Served, "signed and named").await;
    check(&scene, Some(&unnamed), Rejected, "signed alone").await;
    check(&scene, Some(&of_stranger), Rejected, "named alone").await;
}
