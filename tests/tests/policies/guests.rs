//! Malformed policies are rejected at the start, with an error that says what is wrong.

use serde_json::{Value, json};
use tollgate::server::StartError;
use tollgate_tests::Rig;

const MODULE: &[u8] = b"\0asm\x01\0\0\0";
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// A section of a binary component: its number, its length and what is in it.
fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [
        &[id, u8::try_from(content.len()).expect("a short section")],
        content,
    ]
    .concat()
}

/// A component that imports an instance of that name and is nothing else:
/// `(component (type (instance)) (import "…" (instance (type 0))))`.
fn importing(name: &str) -> Vec<u8> {
    let types = section(7, &[1, 0x42, 0]);
    let length = u8::try_from(name.len()).expect("a short name");
    let imports = section(10, &[&[1, 0, length], name.as_bytes(), &[5, 0]].concat());
    [COMPONENT, &types, &imports].concat()
}

/// A policy of each kind, used where such a policy is.
fn config(rig: &Rig, kind: &str, path: &str) -> Value {
    let a = rig.oauth("a");
    let strategy = if kind == "balancer" {
        "own"
    } else {
        "least_used"
    };
    let pool =
        json!({ "tag": "pool", "type": "balancer", "strategy": strategy, "credentials": ["a"] });
    let user = json!({ "name": "alice", "token": "token-alice", "credential": "pool" });
    let mut service = json!({ "credentials": [a, pool], "users": [user] });
    match kind {
        "rewriter" => service["rewriters"] = json!(["own"]),
        "pricer" => service["pricer"] = json!("own"),
        _ => {}
    }
    let mut config = rig.config(service);
    config["policies"] = json!([{ "tag": "own", "kind": kind, "path": path }]);
    config
}

async fn check(component: &[u8], named: &[&str]) {
    check_as(&["balancer"], component, named).await;
}

async fn check_as(kinds: &[&str], component: &[u8], named: &[&str]) {
    for kind in kinds {
        let mut rig = Rig::new().await;
        let path = rig.write("own.wasm", component);
        let started = rig.try_start(config(&rig, kind, &path)).await;
        let error = started
            .err()
            .unwrap_or_else(|| panic!("{kind}: it starts"))
            .to_string();
        for word in named.iter().chain(&["policies[0].path: "]) {
            assert!(error.contains(word), "{kind}: {word:?} is not in {error:?}");
        }
        assert!(
            !rig.ledger().exists(),
            "{kind}: a gateway that does not start makes no ledger"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_file_is_refused() {
    check(b"", &["expected a WebAssembly component"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_wasm_is_refused() {
    check(
        b"#!/bin/sh\necho hello\n",
        &["expected a WebAssembly component"],
    )
    .await;
    check(b"\0as", &["expected a WebAssembly component"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_core_module_is_rejected() {
    check(MODULE, &["core module", "wasm32-wasip2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_that_breaks_off_is_refused() {
    let whole = importing("wasi:cli/environment@0.2.0");
    check(
        &whole[..whole.len() - 4],
        &["expected a WebAssembly component", "invalid bytes"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_that_is_no_policy_is_refused() {
    check(COMPONENT, &["tollgate:policy"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_that_asks_for_the_network_or_files_is_refused_with_the_import_named() {
    for import in [
        "wasi:sockets/tcp@0.2.0",
        "wasi:filesystem/types@0.2.6",
        "wasi:http/outgoing-handler@0.2.0",
    ] {
        check_as(
            &["balancer", "rewriter", "pricer"],
            &importing(import),
            &[import],
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_of_another_contract_is_refused_with_the_import_named() {
    for import in ["tollgate:policy/host@0.2.0", "wasi:io/streams@0.3.0"] {
        check(&importing(import), &[import]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_without_a_file_is_refused() {
    let mut rig = Rig::new().await;
    let missing = rig.path("missing.wasm");
    let started = rig
        .try_start(config(
            &rig,
            "balancer",
            missing.to_str().expect("a plain name"),
        ))
        .await;
    let Err(StartError::Config(error)) = started else {
        panic!("no error of the configuration")
    };
    assert!(error.to_string().contains("missing.wasm"), "{error}");
    let folder = rig.folder().to_str().expect("a plain name").to_owned();
    let started = rig.try_start(config(&rig, "balancer", &folder)).await;
    assert!(
        started
            .err()
            .expect("a folder is no policy")
            .to_string()
            .contains("expected a file")
    );
}
