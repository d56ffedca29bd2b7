//! Components of former releases, kept as they were: each still loads, and returns the same
//! results.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tollgate::config::{PolicyConfig, PolicySource, ShippedPolicy};
use tollgate::policy::{PolicyEngine, PolicyGeneration, RecordedCall, load_standalone};

const RELEASES: [&str; 1] = ["0.1.0"];
const MEMORY: usize = 16 * 1024 * 1024;

fn folder(release: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/policies")
        .join(release)
}

fn config_of(shipped: ShippedPolicy) -> Value {
    match shipped {
        ShippedPolicy::StandardHeaders => {
            json!({ "set": { "x-team": ["platform"], "user-agent": ["ours/1"] } })
        }
        _ => json!({}),
    }
}

fn file(release: &str, name: &str) -> PathBuf {
    folder(release).join(format!("{}.wasm", name.replace('-', "_")))
}

fn load(release: &str, shipped: ShippedPolicy) -> PolicyGeneration {
    let engine = PolicyEngine::of_the_process(MEMORY).expect("an engine");
    let source = PolicySource::File(file(release, shipped.name()));
    // Debug builds of the gateway are slow, and this is about answers.
    let timeout = std::time::Duration::from_secs(1);
    let policy = PolicyConfig {
        source,
        timeout,
        ..PolicyConfig::shipped(shipped, config_of(shipped))
    };
    load_standalone(&engine, &policy).unwrap_or_else(|error| panic!("{release}: {error}"))
}

#[test]
fn old_components_load_and_return_the_same_results() {
    for release in RELEASES {
        let calls =
            std::fs::read_to_string(folder(release).join("calls.jsonl")).expect("recorded calls");
        let calls: Vec<RecordedCall> = calls
            .lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
            })
            .collect();
        let mut differ = Vec::new();
        for &shipped in ShippedPolicy::ALL {
            let (name, policy) = (shipped.name(), load(release, shipped));
            assert_eq!(
                (
                    policy.identity().name.as_str(),
                    policy.identity().version.as_str()
                ),
                (name, release)
            );
            let mut of_it = calls.iter().filter(|call| call.policy == name).peekable();
            assert!(of_it.peek().is_some(), "{name} has no recorded call");
            for call in of_it {
                let said = policy.repeat(call).expect("a call of its kind");
                if said != call.outcome {
                    differ.push(
                        serde_json::to_string(&RecordedCall {
                            outcome: said,
                            ..call.clone()
                        })
                        .expect("JSON"),
                    );
                }
            }
        }
        assert!(
            differ.is_empty(),
            "{release}: these say something else now:\n{}",
            differ.join("\n")
        );
    }
}

#[test]
fn every_shipped_policy_is_kept() {
    for release in RELEASES {
        for shipped in ShippedPolicy::ALL {
            let name = shipped.name();
            let file = file(release, name);
            let bytes =
                std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            assert_eq!(
                tollgate::policy::kind_of(&bytes),
                Some(shipped.kind()),
                "{release}: {name}"
            );
        }
    }
}
