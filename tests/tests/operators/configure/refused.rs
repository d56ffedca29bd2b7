//! A changed configuration on a running gateway: what needs a restart is named, and a rejected
//! configuration changes nothing.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_tests::{Authority, Rig, ask_socket, turn};

const APPLIED: &str = "configuration applied";
const NEEDS_RESTART: &str = "configuration applied; restart to change ";

/// Two services, `one` with a team and `two` with an account and no users.
fn base(rig: &Rig) -> Value {
    let mut config = rig.team(&["a"], json!({}));
    config["services"][0]["tag"] = json!("one");
    let mut two = rig.config(json!({ "tag": "two", "credentials": [rig.oauth("b")] }));
    config["services"]
        .as_array_mut()
        .expect("a list")
        .push(two["services"][0].take());
    config["log"] = json!({ "level": "info" });
    config
}

// What needs a start

fn with(mut config: Value, path: &str, value: Value) -> Value {
    *config
        .pointer_mut(path)
        .unwrap_or_else(|| panic!("{path} is not there")) = value;
    config
}

/// Changes that need a start, by how they are named.
fn changes(rig: &Rig, base: &Value) -> Vec<(&'static str, Value)> {
    let limit = |name: &str, value: Value| {
        let mut config = base.clone();
        config["limits"] = json!({ name: value });
        config
    };
    let new = rig.config(json!({ "tag": "three", "credentials": [rig.oauth("c")] }))["services"][0]
        .take();
    let mut more = base.clone();
    more["services"].as_array_mut().expect("a list").push(new);
    let mut fewer = base.clone();
    fewer["services"].as_array_mut().expect("a list").pop();
    let mut admin = base.clone();
    admin["admin"] = json!({ "listen_port": 0 });
    vec![
        (
            "services[0].listen",
            with(base.clone(), "/services/0/listen_port", json!(1)),
        ),
        (
            "services[1].listen",
            with(base.clone(), "/services/1/listen", json!("127.0.0.2")),
        ),
        (
            "data_dir",
            with(base.clone(), "/data_dir", json!(rig.path("elsewhere"))),
        ),
        ("log", with(base.clone(), "/log/level", json!("debug"))),
        ("admin", admin),
        ("services[2] (added)", more),
        ("service \"two\" (removed)", fewer),
        ("limits.connections", limit("connections", json!(5))),
        ("limits.settle_queue", limit("settle_queue", json!(5))),
        ("limits.ledger_bytes", limit("ledger_bytes", json!(1 << 30))),
        ("limits.ledger_full", limit("ledger_full", json!("serve"))),
        ("limits.sessions", limit("sessions", json!(5))),
        (
            "limits.session_lifetime",
            limit("session_lifetime", json!("1s")),
        ),
        ("limits.auth_addresses", limit("auth_addresses", json!(5))),
        ("limits.policy_threads", limit("policy_threads", json!(5))),
        ("limits.policy_queue", limit("policy_queue", json!(5))),
        (
            "limits.policy_cache_bytes",
            limit("policy_cache_bytes", json!(5)),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_need_a_restart_are_named_and_the_others_applied() {
    let mut rig = Rig::new().await;
    let base = base(&rig);
    let client = rig.start(base.clone()).await;
    for (place, (name, mut config)) in changes(&rig, &base).into_iter().enumerate() {
        let token = format!("token-{place}");
        config["services"][0]["users"][0]["token"] = json!(token);
        assert_eq!(
            rig.configure(&config).await,
            Ok(format!("{NEEDS_RESTART}{name}"))
        );
        let answer = client.token(&token).turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::OK, "{name}: {}", answer.text());
        assert!(!rig.path("elsewhere").exists());
        // Back to what it was.
        rig.configure(&base).await.expect("it is applied");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_need_a_restart_are_named_until_they_are_reverted() {
    let mut rig = Rig::new().await;
    let base = base(&rig);
    rig.start(base.clone()).await;
    for (name, config) in changes(&rig, &base) {
        for time in ["first", "second"] {
            assert_eq!(
                rig.configure(&config).await,
                Ok(format!("{NEEDS_RESTART}{name}")),
                "{name}, the {time} time"
            );
        }
        assert_eq!(
            rig.configure(&base).await.as_deref(),
            Ok(APPLIED),
            "{name}: it is as it was at the start"
        );
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_limit_is_either_applied_or_named() {
    let mut rig = Rig::new().await;
    let base = base(&rig);
    rig.start(base.clone()).await;
    // Each is read when a policy is added, or when the gateway starts.
    for (name, value) in [
        ("policy_faults", json!(1)),
        ("policy_fault_window", json!("1s")),
        ("policy_quarantine", json!("1s")),
        ("policy_quarantine_max", json!("20m")),
        ("policy_probation_calls", json!(1)),
        ("policy_log_lines", json!(1)),
        ("policy_slow_after", json!("1ms")),
        ("client_stall_timeout", json!("1s")),
        ("drain_timeout", json!("1s")),
    ] {
        let mut config = base.clone();
        config["limits"] = json!({ name: value });
        assert_eq!(
            rig.configure(&config).await,
            Ok(format!("{NEEDS_RESTART}limits.{name}"))
        );
        rig.configure(&base).await.expect("it is applied");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_service_keeps_serving_and_can_come_back() {
    let mut rig = Rig::new().await;
    let base = base(&rig);
    let mut swapped = base.clone();
    swapped["services"]
        .as_array_mut()
        .expect("a list")
        .reverse();
    // The rig's first listener is that of the removed service.
    let two = rig.start(swapped.clone()).await;
    let mut fewer = swapped.clone();
    fewer["services"].as_array_mut().expect("a list").remove(0);
    for (config, headers, seen) in [(&fewer, "1", None), (&swapped, "2", Some("2"))] {
        let mut config = config.clone();
        config["services"][0]["headers"] = json!({ "x-new": headers });
        rig.configure(&config).await.expect("it is applied");
        let answer = two.turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert_eq!(
            rig.upstream.turns().pop().expect("a turn").header("x-new"),
            seen
        );
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_written_at_once_are_applied_one_after_another() {
    let mut rig = Rig::new().await;
    let mut whole = base(&rig);
    whole["policies"] =
        json!([{ "tag": "mine", "kind": "pricer", "path": "builtin:openai-pricing" }]);
    rig.start(whole.clone()).await;
    let mut bare = whole.clone();
    bare["policies"] = json!([]);
    for _ in 0..20 {
        let (first, second) = tokio::join!(rig.configure(&bare), rig.configure(&whole));
        assert_eq!(
            (first.as_deref(), second.as_deref()),
            (Ok(APPLIED), Ok(APPLIED))
        );
        assert_eq!(
            rig.policy("mine").await["state"],
            "serving",
            "the last one serves"
        );
    }
    rig.stop().await;
}

// Rejected configurations

/// Returns the configuration with an API key in its pool.
fn with_key_in_pool(rig: &Rig, mut config: Value) -> Value {
    let credentials = &mut config["services"][0]["credentials"];
    credentials[1] = json!({ "tag": "pool", "type": "balancer", "credentials": ["a", "k"] });
    let credentials = credentials.as_array_mut().expect("a list");
    credentials.push(rig.api_key("k"));
    config
}

/// Configurations that are rejected, each with a part of the reason.
fn broken(rig: &Rig, base: &Value) -> Vec<(&'static str, Value, &'static str)> {
    let own = |kind: &str, path: &str, config: Value| {
        let mut whole = base.clone();
        whole["policies"] = json!([{ "tag": "own", "kind": kind, "path": path, "config": config }]);
        whole
    };
    let mut tls = base.clone();
    tls["services"][0]["tls"] =
        json!({ "enabled": true, "certificate": "no PEM", "key": "no PEM" });
    let mut shadowed = own("pricer", "builtin:openai-pricing", json!({}));
    shadowed["policies"][0]["shadow"] = json!(rig.path("missing.wasm"));
    let mut recorded = own("pricer", "builtin:openai-pricing", json!({}));
    recorded["policies"][0]["record"] = json!(rig.path("no-folder/record.jsonl"));
    let module = rig.write("module.wasm", b"\0asm\x01\0\0\0");
    vec![
        (
            "an unknown key",
            with(base.clone(), "/services/0/tag", json!(7)),
            "services[0].tag",
        ),
        (
            "an unknown credential",
            with(base.clone(), "/services/0/users/0/credential", json!("x")),
            "users[0].credential",
        ),
        (
            "a file that is not there",
            own("pricer", "/nowhere/p.wasm", json!({})),
            "policies[0].path",
        ),
        (
            "a core module",
            own("pricer", &module, json!({})),
            "core module",
        ),
        (
            "settings that a policy refuses",
            own("pricer", "builtin:openai-pricing", json!({ "x": 1 })),
            "policies[0].config",
        ),
        (
            "an API key in a pool",
            with_key_in_pool(rig, base.clone()),
            "services[0].credentials[1].credentials[1]",
        ),
        (
            "a certificate that is none",
            tls,
            "services[0].tls.certificate",
        ),
        ("a shadow that is not there", shadowed, "missing.wasm"),
        (
            "a record that cannot be written",
            recorded,
            "no-folder/record.jsonl",
        ),
        (
            "too much memory",
            {
                let mut whole = own("pricer", "builtin:openai-pricing", json!({}));
                whole["policies"][0]["memory"] = json!(64 << 20);
                whole
            },
            "policies[0].memory",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_be_applied_is_reported_and_changes_nothing() {
    let mut rig = Rig::new().await;
    let base = base(&rig);
    let client = rig.start(base.clone()).await;
    let before = rig.policies().await["policies"].clone();
    for (place, (what, mut config, named)) in broken(&rig, &base).into_iter().enumerate() {
        config["services"][0]["users"][1]["token"] = json!("token-new");
        config["services"][0]["headers"] = json!({ "x-new": "1" });
        let reason = rig.configure(&config).await.expect_err(what);
        assert!(
            reason.contains(named),
            "{what}: {named:?} is not in {reason:?}"
        );
        let answer = client.token("token-bob").turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::OK, "{what}: {}", answer.text());
        assert_eq!(
            rig.upstream.turns().pop().expect("a turn").header("x-new"),
            None,
            "{what}"
        );

        let reported = rig.policies().await;
        let last = &reported["last_configuration"];
        assert_eq!(
            (&last["outcome"], &last["reason"]),
            (&json!("failed"), &json!(reason)),
            "{what}: {last:#}"
        );
        let tags = |all: &Value| -> Vec<Value> {
            let all = all.as_array().expect("a list").iter();
            all.map(|policy| json!([policy["tag"], policy["generation"], policy["digest"]]))
                .collect()
        };
        assert_eq!(tags(&reported["policies"]), tags(&before), "{what}");
        let failed = rig
            .metrics()
            .await
            .value("tollgate_config_reloads_total", &[("outcome", "failed")]);
        assert_eq!(failed, (place + 1) as f64, "{what}");
    }
    assert_eq!(rig.configure(&base).await.as_deref(), Ok(APPLIED));
    assert_eq!(rig.policies().await["last_configuration"]["outcome"], "ok");
    assert_eq!(
        rig.metrics()
            .await
            .value("tollgate_config_reloads_total", &[("outcome", "ok")]),
        1.0
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_problems_are_reported_at_once() {
    let mut rig = Rig::new().await;
    let base = base(&rig);
    rig.start(base.clone()).await;
    let mut config = base.clone();
    let own =
        |tag: &str| json!({ "tag": tag, "kind": "pricer", "path": format!("/nowhere/{tag}.wasm") });
    config["policies"] = json!([own("p"), own("q")]);
    config["services"][1]["tls"] =
        json!({ "enabled": true, "certificate": "no PEM", "key": "no PEM" });
    let reason = rig.configure(&config).await.expect_err("it is refused");
    for named in [
        "policies[0].path",
        "policies[1].path",
        "services[1].tls.certificate",
    ] {
        assert!(reason.contains(named), "{named:?} is not in {reason:?}");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_gateway_has_no_last_configuration() {
    let mut rig = Rig::new().await;
    let base = base(&rig);
    rig.start(base).await;
    let reported = ask_socket(&rig.socket(), Method::GET, "/api/policies")
        .await
        .json();
    assert_eq!(reported["last_configuration"], Value::Null);
    rig.stop().await;
}

/// The listener stays where it is until a restart: it must not let everyone in meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_moves_a_listener_cannot_remove_its_users() {
    let mut rig = Rig::new().await;
    let base = base(&rig);
    let client = rig.start(base.clone()).await;
    let mut config = with(base.clone(), "/services/0/listen_port", json!(1));
    config["services"][0]["users"] = json!([]);
    let reason = rig.configure(&config).await.expect_err("it is rejected");
    let expected = format!(
        "services[0].users: cannot be removed or weakened by a reload: the service listens on {} \
         until a restart",
        client.address()
    );
    assert!(reason.contains(&expected), "{reason}");
    let answer = client.turn(&turn("one")).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    // Without the move, they can be removed.
    let config = with(base, "/services/0/users", json!([]));
    rig.configure(&config).await.expect("it is applied");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_moves_a_listener_cannot_weaken_its_tls() {
    let mut rig = Rig::new().await;
    let (authority, mut base) = (Authority::new(), base(&rig));
    let own = authority.sign(&["127.0.0.1"]);
    base["services"][0]["tls"] = json!({
        "enabled": true,
        "certificate": own.pem,
        "key": own.key,
        "client_authentication": "require-and-verify",
        "client_certificate": authority.pem,
    });
    rig.start(base.clone()).await;
    let moved = with(base, "/services/0/listen_port", json!(1));
    for mode in ["no", "request", "require-any", "verify-if-given"] {
        let path = "/services/0/tls/client_authentication";
        let mut config = with(moved.clone(), path, json!(mode));
        if mode == "no" || mode == "request" || mode == "require-any" {
            let tls = config["services"][0]["tls"].as_object_mut();
            tls.expect("an object").remove("client_certificate");
        }
        let reason = rig.configure(&config).await.expect_err(mode);
        let expected = "services[0].tls.client_authentication: cannot be removed or weakened";
        assert!(reason.contains(expected), "{mode}: {reason}");
    }
    let mut config = moved;
    config["services"][0]["tls"] = json!({ "enabled": false });
    let reason = rig.configure(&config).await.expect_err("no TLS");
    assert!(
        reason.contains("services[0].tls: cannot be removed"),
        "{reason}"
    );
    rig.stop().await;
}
