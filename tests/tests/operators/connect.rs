//! `tollgate check --connect`: which way each credential takes to upstream, and what fails on it.

use serde_json::{Value, json};
use tollgate_tests::{Nowhere, Proxy, Rig, Said, tollgate};

/// Runs `tollgate check --connect` on a configuration.
fn connect(rig: &Rig, config: &Value) -> Said {
    let file = rig.write("config.json", config.to_string());
    tollgate(["check", "--connect", "-c", &file])
}

fn with_detour(mut credential: Value, tag: &str) -> Value {
    credential["detour"] = json!(tag);
    credential
}

#[tokio::test(flavor = "multi_thread")]
async fn every_credential_connects_over_its_own_way() {
    let rig = Rig::new().await;
    let proxy = Proxy::start().await;
    let external = json!({ "type": "external", "tag": "x", "url": rig.upstream.chatgpt_url(),
        "token": "canary-token", "server": "localhost" });
    let credentials = json!([
        with_detour(rig.oauth("a"), "near"),
        rig.api_key("k"),
        with_detour(external, "direct")
    ]);
    let mut config = rig.config(json!({ "credentials": credentials }));
    config["outbounds"] = json!([
        proxy.outbound("socks", "near"),
        { "type": "direct", "tag": "direct" },
    ]);
    let said = connect(&rig, &config);
    assert_eq!(said.code, Some(0), "{said:?}");
    let origin = format!("http://{}", rig.upstream.address());
    for expected in [
        format!("credential \"a\": {origin}: connected through outbound \"near\"\n"),
        format!("credential \"k\": {origin}: connected\n"),
        format!("credential \"x\": {origin}: connected through outbound \"direct\"\n"),
    ] {
        let expected = format!("service \"ocm\", {expected}");
        assert!(said.stdout.contains(&expected), "{said:?}");
    }
    assert_eq!(proxy.tunnels().len(), 1, "one host, one connection");
    assert_eq!(rig.upstream.request_count(), 0, "no request is sent");
    assert!(!format!("{said:?}").contains("canary"), "{said:?}");
    assert!(!rig.path("data").exists(), "nothing is written");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hop_that_fails_is_named_and_the_others_are_tried() {
    let rig = Rig::new().await;
    let near = Proxy::start().await;
    let nowhere = Nowhere::new();
    let far = json!({ "type": "socks", "tag": "far", "server": "127.0.0.1", "server_port": nowhere.port(),
        "username": "canary-name", "password": "canary-password", "detour": "near" });
    let mut dead = far.clone();
    dead["tag"] = json!("dead");
    dead.as_object_mut().expect("an object").remove("detour");
    let credentials = json!([
        with_detour(rig.oauth("a"), "far"),
        with_detour(rig.oauth("b"), "dead"),
        rig.oauth("c")
    ]);
    let mut config = rig.config(json!({ "credentials": credentials }));
    config["outbounds"] = json!([far, dead, near.outbound("http", "near")]);
    let said = connect(&rig, &config);
    assert_eq!(said.code, Some(1), "{said:?}");
    let origin = format!("http://{}", rig.upstream.address());
    let port = nowhere.port();
    for expected in [
        format!(
            "service \"ocm\", credential \"a\": {origin}: outbound \"near\": the HTTP proxy answered CONNECT \
             127.0.0.1:{port} with 502\n"
        ),
        format!(
            "service \"ocm\", credential \"b\": {origin}: outbound \"dead\": 127.0.0.1:{port}: connection refused\n"
        ),
    ] {
        assert!(said.stderr.contains(&expected), "{said:?}");
    }
    assert!(
        said.stdout
            .contains(&format!("credential \"c\": {origin}: connected\n")),
        "{said:?}"
    );
    assert!(!format!("{said:?}").contains("canary"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_whose_certificate_is_not_trusted_is_not_blamed_on_an_outbound() {
    let rig = Rig::over_http2(|_| {}).await;
    let proxy = Proxy::start().await;
    let credentials = json!([with_detour(rig.oauth("a"), "near")]);
    let mut config = rig.config(json!({ "credentials": credentials }));
    config["outbounds"] = json!([proxy.outbound("http", "near")]);
    let said = connect(&rig, &config);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains(": TLS with "), "{said:?}");
    assert!(!said.stderr.contains("outbound \"near\""), "{said:?}");
    assert_eq!(proxy.tunnels().len(), 1);
}
