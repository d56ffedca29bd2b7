//! A policy's file that cannot be used: the current generation keeps serving, and the operator sees
//! stage and reason.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use tollgate_tests::{Conduct, OWN, Rig, guest, make_fifo, marked_pricer, turn, wait_for_rows};

/// What replaces the component, and the words of the message to the operator.
struct Case {
    name: &'static str,
    put: fn(&Rig),
    told: &'static [&'static str],
}

fn fine(nanousd: u64) -> Vec<u8> {
    marked_pricer(nanousd, Conduct::Fine)
}

/// A component in which each `old` stands as `new`, of the same length.
fn patched(old: &str, new: &str) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let mut component = fine(7);
    let places: Vec<usize> = (0..component.len())
        .filter(|place| component[*place..].starts_with(old.as_bytes()))
        .collect();
    assert!(!places.is_empty(), "{old} is not in the component");
    for place in places {
        component[place..place + new.len()].copy_from_slice(new.as_bytes());
    }
    component
}

/// Puts something else than a file in the component's place.
fn put(rig: &Rig, make: impl FnOnce(&std::path::Path)) {
    let next = rig.path("next");
    make(&next);
    // A folder does not replace a file.
    let _ = fs::remove_file(rig.path("own.wasm"));
    fs::rename(next, rig.path("own.wasm")).expect("it can be renamed");
}

const CASES: [Case; 16] = [
    Case {
        name: "empty",
        put: |rig| rig.replace_own(b""),
        told: &["rejected at inspect", "something else"],
    },
    Case {
        name: "a script",
        put: |rig| rig.replace_own(b"#!/bin/sh\necho hello\n"),
        told: &["rejected at inspect", "expected a WebAssembly component"],
    },
    Case {
        name: "a core module",
        put: |rig| rig.replace_own(b"\0asm\x01\0\0\0"),
        told: &["rejected at inspect", "core module"],
    },
    Case {
        name: "another world",
        put: |rig| rig.replace_own(&fs::read(guest("faulty-balancer")).expect("it was built")),
        told: &[
            "rejected at inspect",
            "expected a pricer",
            "found a balancer",
        ],
    },
    Case {
        name: "another minor version of the contract",
        put: |rig| rig.replace_own(&patched("@0.1.0", "@0.2.0")),
        told: &["rejected at inspect", "tollgate:policy/"],
    },
    Case {
        name: "an unknown import",
        put: |rig| rig.replace_own(&patched("wasi:cli/environment", "wasi:sys/environment")),
        told: &[
            "rejected at inspect",
            "unsupported import \"wasi:sys/environment",
        ],
    },
    Case {
        name: "truncated",
        put: |rig| rig.replace_own(&fine(8)[..20_000]),
        told: &["rejected at inspect", "invalid bytes"],
    },
    Case {
        name: "200 MB",
        put: |rig| {
            put(rig, |path| {
                fs::File::create(path)
                    .and_then(|file| file.set_len(200 << 20))
                    .expect("a file")
            })
        },
        told: &["rejected at read", "67108864"],
    },
    Case {
        name: "a FIFO",
        put: |rig| {
            put(rig, make_fifo);
        },
        told: &["rejected at read", "expected a file"],
    },
    Case {
        name: "a link to nowhere",
        put: |rig| put(rig, |path| symlink("nowhere", path).expect("a link")),
        told: &["rejected at read", "no such file"],
    },
    Case {
        name: "a link to itself",
        put: |rig| put(rig, |path| symlink("own.wasm", path).expect("a link")),
        told: &["rejected at read", "symbolic links"],
    },
    Case {
        name: "deleted",
        put: |rig| fs::remove_file(rig.path("own.wasm")).expect("it is there"),
        told: &["rejected at read", "no such file"],
    },
    Case {
        name: "a component that rejects its configuration",
        put: |rig| rig.replace_own(&marked_pricer(2, Conduct::RefusesConfig)),
        told: &[
            "rejected at configure",
            "the guest rejects any configuration",
        ],
    },
    Case {
        name: "a component that panics in configure",
        put: |rig| rig.replace_own(&marked_pricer(3, Conduct::PanicsInConfigure)),
        told: &["rejected at configure", "in new"],
    },
    Case {
        name: "a component that panics in its self-test",
        put: |rig| rig.replace_own(&marked_pricer(4, Conduct::PanicsWhenTried)),
        told: &[
            "rejected at self-test",
            "panic in the self-test",
            "in price",
        ],
    },
    Case {
        name: "a folder",
        put: |rig| put(rig, |path| fs::create_dir(path).expect("a folder")),
        told: &["rejected at read", "expected a file"],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_file_keeps_the_current_generation_and_is_reported_with_stage_and_reason() {
    let mut rig = Rig::new().await;
    let client = rig.start_priced(json!({})).await;
    for (place, Case { name, put, told }) in CASES.iter().enumerate() {
        put(&rig);
        let is_reported = |policy: &Value| {
            let last = &policy["last_reload"];
            let reason = last["reason"].as_str().unwrap_or_default();
            last["outcome"] == "failed" && told.iter().all(|words| reason.contains(words))
        };
        let policy = rig
            .wait_for_policy(OWN, &format!("{name}: {told:?}"), is_reported)
            .await;
        let found = (
            &policy["generation"],
            &policy["state"],
            &policy["last_reload"]["generation"],
        );
        assert_eq!(found, (&json!(1), &json!("serving"), &json!(1)), "{name}");
        client.turn(&turn(name)).await;
        let row = wait_for_rows(&rig.ledger(), place + 1).await.remove(place);
        assert_eq!(row.number("cost_nanousd"), Some(1), "{name}");
    }
    fs::remove_dir(rig.path("own.wasm")).expect("the last case is an empty folder");
    rig.replace_own(&fine(2));
    let policy = rig.wait_for_generation(OWN, 2).await;
    assert_eq!(policy["last_reload"]["outcome"], "ok");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_with_an_unusable_policy_is_not_applied() {
    let mut rig = Rig::new().await;
    let client = rig.start_priced(json!({})).await;
    let of_policy = |change: &dyn Fn(&mut Value)| {
        let mut config = rig.priced();
        change(&mut config["policies"][0]);
        // What comes with it is left, too.
        config["services"][0]["users"] =
            json!([{ "name": "carol", "token": "token-carol", "credential": "pool" }]);
        config
    };
    let elsewhere = rig.write("traps.wasm", marked_pricer(2, Conduct::PanicsInConfigure));
    let cases = [
        (
            of_policy(&|policy| policy["config"] = json!({ "markup": 2 })),
            "policies[0].config",
        ),
        (
            of_policy(&|policy| policy["path"] = json!(elsewhere)),
            "in new",
        ),
        (
            of_policy(&|policy| policy["path"] = json!("/nowhere.wasm")),
            "/nowhere.wasm",
        ),
        (
            of_policy(&|policy| policy["kind"] = json!("balancer")),
            "expected a pricer",
        ),
    ];
    for (place, (config, told)) in cases.into_iter().enumerate() {
        let refused = rig.configure(&config).await.expect_err("it cannot be used");
        assert!(refused.contains(told), "{told:?} is not in {refused:?}");
        assert!(client.turn(&turn("continues")).await.status.is_success());
        let row = wait_for_rows(&rig.ledger(), place + 1).await.remove(place);
        assert_eq!(
            (row.text("user"), row.number("cost_nanousd")),
            (Some("alice"), Some(1))
        );
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_component_and_changed_users_apply_to_the_next_request() {
    let mut rig = Rig::new().await;
    let client = rig.start_priced(json!({})).await;
    let mut config = rig.priced();
    config["policies"][0]["path"] = json!(rig.write("other.wasm", fine(2)));
    config["services"][0]["users"] =
        json!([{ "name": "carol", "token": "token-carol", "credential": "pool" }]);
    client.turn(&turn("before")).await;
    rig.configure(&config).await.expect("it can be used");
    assert_eq!(client.turn(&turn("gone")).await.status.as_u16(), 401);
    let carol = tollgate_tests::Client::new(client.address()).token("token-carol");
    assert!(carol.turn(&turn("after")).await.status.is_success());
    let row = wait_for_rows(&rig.ledger(), 2).await.remove(1);
    assert_eq!(
        (row.text("user"), row.number("cost_nanousd")),
        (Some("carol"), Some(2))
    );
    assert_eq!(rig.policy(OWN).await["generation"], 2);
    // And the file that is watched from now on is the other one.
    fs::rename(rig.write("next.wasm", fine(3)), rig.path("other.wasm"))
        .expect("a file can be renamed");
    rig.wait_for_generation(OWN, 3).await;
    rig.stop().await;
}
