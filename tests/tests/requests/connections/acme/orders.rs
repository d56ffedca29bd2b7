//! When certificates are ordered: after reloads, lost files and failures, and for several services.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollgate_tests::peer::WAIT_MAX;
use tollgate_tests::{AcmeServer, Rig};

use super::{AcmeScene, DAY};

/// Returns the configuration of `scene` with `change` made to its `tls.acme`.
fn with_acme(scene: &AcmeScene, change: impl FnOnce(&mut Value)) -> Value {
    let mut config = scene.config.clone();
    change(&mut config["services"][0]["tls"]["acme"]);
    config
}

/// Waits until there were this many orders.
async fn wait_for_attempts(scene: &AcmeScene, count: usize) {
    let since = Instant::now();
    while scene.server.attempts() < count {
        assert!(since.elapsed() < WAIT_MAX, "no order in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_added_domain_keeps_the_certificate_until_another_is_issued() {
    let acme = json!({ "disable_http_challenge": true });
    let scene = AcmeScene::new("grown.example", acme).await;
    let first = scene.wait_for_another(None).await;
    scene.server.reject_orders(Some("not yet"));
    let domains = json!(["grown.example", "new.grown.example"]);
    let grown = with_acme(&scene, |acme| acme["domain"] = domains.clone());
    scene.rig.configure(&grown).await.expect("it is applied");
    assert_eq!(scene.presented().await.as_ref(), Some(&first));
    let problem = scene.wait_for_problem().await;
    assert!(problem.contains("not yet"), "{problem}");
    assert_eq!(scene.presented().await.as_ref(), Some(&first));
    scene.turn().await;
    // A changed section does not wait for the pause after that failure.
    scene.server.reject_orders(None);
    let changed = with_acme(&scene, |acme| {
        acme["domain"] = domains;
        acme["email"] = json!("ops@grown.example");
    });
    scene.rig.configure(&changed).await.expect("it is applied");
    scene.wait_for_another(Some(&first)).await;
    assert_eq!(scene.problem().await, Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_certificate_stays_in_use_until_another_is_issued() {
    let acme = json!({ "disable_http_challenge": true });
    let scene = AcmeScene::new("deleted.example", acme).await;
    let first = scene.wait_for_another(None).await;
    let file = scene.certificate_file();
    let content = std::fs::read(&file).expect("a certificate");
    std::fs::remove_file(&file).expect("it is there");
    let second = scene.wait_for_another(Some(&first)).await;
    scene.server.reject_orders(Some("not again"));
    std::fs::remove_file(&file).expect("it is there again");
    let problem = scene.wait_for_problem().await;
    assert!(problem.contains("not again"), "{problem}");
    assert_eq!(scene.presented().await.as_ref(), Some(&second));
    // The operator brings one back.
    std::fs::write(&file, content).expect("the file can be written");
    assert_eq!(scene.wait_for_another(Some(&second)).await, first);
    assert_eq!(scene.problem().await, Value::Null);
    assert_eq!((scene.server.orders(), scene.server.attempts()), (2, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_searched_is_no_missing_certificate() {
    let acme = json!({ "disable_http_challenge": true });
    let scene = AcmeScene::new("searched.example", acme).await;
    let first = scene.wait_for_another(None).await;
    // A file in place of the folder, because the tests may run as root.
    let folder = scene.rig.path("data").join("acme");
    std::fs::rename(&folder, scene.rig.path("aside")).expect("it is there");
    std::fs::write(&folder, "").expect("the file can be written");
    let problem = scene.wait_for_problem().await;
    assert!(problem.contains("cannot read"), "{problem}");
    assert_eq!(scene.presented().await, Some(first));
    assert_eq!(scene.server.attempts(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issued_certificate_that_has_expired_is_not_ordered_again_at_once() {
    let server = AcmeServer::start().await;
    server.set_age(100 * DAY);
    let acme = json!({ "disable_http_challenge": true });
    let scene = AcmeScene::with(server, "old.example", acme, json!({})).await;
    let problem = scene.wait_for_problem().await;
    assert!(problem.contains("to be renewed at once"), "{problem}");
    assert_eq!(scene.server.attempts(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_a_few_seconds_are_ordered_further_apart() {
    let server = AcmeServer::start().await;
    server.set_lifetime(Duration::from_secs(4));
    let acme = json!({ "disable_http_challenge": true });
    let scene = AcmeScene::with(server, "short.example", acme, json!({})).await;
    wait_for_attempts(&scene, 1).await;
    let since = Instant::now();
    wait_for_attempts(&scene, 2).await;
    assert!(since.elapsed() >= Duration::from_secs(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_do_not_repeat_an_order_that_failed() {
    let server = AcmeServer::start().await;
    server.reject_orders(Some("too many"));
    let scene = AcmeScene::with(server, "reloaded.example", json!({}), json!({})).await;
    let problem = scene.wait_for_problem().await;
    for round in 0..5 {
        let mut config = scene.config.clone();
        config["services"][0]["headers"] = json!({ "x-round": round.to_string() });
        // Other limits restart the task, which keeps the pause.
        config["limits"] = json!({ "connect_timeout": format!("{}s", 5 + round) });
        scene.rig.configure(&config).await.expect("it is applied");
        assert_eq!(scene.wait_for_problem().await, problem);
    }
    assert_eq!(scene.server.attempts(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn services_with_one_provider_share_its_certificate_and_its_account() {
    let server = AcmeServer::start().await;
    let mut rig = Rig::new().await;
    let service = |tag: &str, credential: Value| {
        let tls = json!({ "enabled": true, "certificate_provider": "shared" });
        json!({ "tag": tag, "credentials": [credential], "tls": tls })
    };
    let mut config = rig.config(service("one", rig.oauth("a")));
    let other = rig.config(service("two", rig.oauth("b")));
    config["services"]
        .as_array_mut()
        .expect("a list")
        .push(other["services"][0].clone());
    config["admin"] = json!({ "listen_port": 0 });
    config["certificate_providers"] = json!([{
        "type": "acme",
        "tag": "shared",
        "domain": "both.example",
        "provider": server.directory(),
        "disable_http_challenge": true,
    }]);
    let address = rig.start(config.clone()).await.address();
    server.validate_over_tls(address);
    let mut scene = AcmeScene {
        rig,
        server,
        domain: "both.example",
        config,
        address,
    };
    let first = scene.wait_for_another(None).await;
    scene.address = scene.rig.listening()[1];
    assert_eq!(scene.wait_for_another(None).await, first);
    assert_eq!(scene.problem().await, Value::Null);
    let counts = (scene.server.attempts(), scene.server.accounts().len());
    assert_eq!(counts, (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_the_server_forgot_is_registered_again() {
    let acme = json!({ "disable_http_challenge": true });
    let scene = AcmeScene::new("forgotten.example", acme).await;
    let first = scene.wait_for_another(None).await;
    scene.server.forget_accounts();
    std::fs::remove_file(scene.certificate_file()).expect("it is there");
    let second = scene.wait_for_another(Some(&first)).await;
    assert_eq!(scene.server.accounts().len(), 2);
    let names: Vec<String> = scene
        .files()
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    let aside = names.iter().filter(|name| name.ends_with(".json.unknown"));
    assert_eq!(aside.count(), 1, "{names:?}");
    // Another external account is another account, too.
    let external = json!({ "key_id": "kid-2", "mac_key": "c2VjcmV0LWtleQ" });
    let changed = with_acme(&scene, |acme| acme["external_account"] = external);
    scene.rig.configure(&changed).await.expect("it is applied");
    std::fs::remove_file(scene.certificate_file()).expect("it is there");
    scene.wait_for_another(Some(&second)).await;
    let accounts = scene.server.accounts();
    assert_eq!(accounts.len(), 3);
    assert!(accounts[2]["externalAccountBinding"].is_object());
}
