//! The example policies as an author starts from them: a copy outside this workspace builds, and
//! the gateway loads the component.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use http::StatusCode;
use serde_json::json;
use tollgate_tests::{Rig, turn};

/// The dependency that an author replaces, and what the copy has in its place.
const SDK_IN_REPOSITORY: &str = r#"tollgate-policy = { path = "../../../guest-sdk" }"#;
const SDK_IN_COPY: &str = r#"tollgate-policy = { path = "../tollgate/guest-sdk" }"#;

const TARGET: &str = "wasm32-wasip2";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the copy's folder can be created");
    for entry in fs::read_dir(from).expect("the folder can be read") {
        let entry = entry.expect("an entry can be read");
        let copy = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &copy);
        } else {
            fs::copy(entry.path(), copy).expect("a file can be copied");
        }
    }
}

/// Copies the example `name` into an empty folder, next to the SDK and the contract.
fn copy_example(name: &str, folder: &Path) -> PathBuf {
    let repository = repository();
    for part in ["guest-sdk", "wit"] {
        copy_folder(&repository.join(part), &folder.join("tollgate").join(part));
    }
    let copy = folder.join(name);
    copy_folder(&repository.join("examples/policies").join(name), &copy);
    let manifest = fs::read_to_string(copy.join("Cargo.toml")).expect("the example has a manifest");
    assert!(manifest.contains(SDK_IN_REPOSITORY), "{manifest}");
    let manifest = manifest.replace(SDK_IN_REPOSITORY, SDK_IN_COPY);
    fs::write(copy.join("Cargo.toml"), manifest).expect("the copy can be changed");
    // For the versions that were downloaded for the workspace: the build does not use the network.
    fs::copy(repository.join("Cargo.lock"), copy.join("Cargo.lock"))
        .expect("the lock file can be copied");
    copy
}

#[track_caller]
fn run_cargo(folder: &Path, arguments: &[&str]) {
    let status = Command::new(env!("CARGO"))
        .current_dir(folder)
        .args(arguments)
        .args(["--quiet", "--offline", "--target", TARGET, "--release"])
        .arg("--target-dir")
        .arg(repository().join("target/standalone"))
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .expect("cargo runs");
    assert!(status.success(), "cargo {}", arguments.join(" "));
}

/// Returns the component that a copy of the example `name` builds.
fn build_alone(name: &str) -> Vec<u8> {
    // `cargo clean` does not wait for another build in the same target folder.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let copy = copy_example(name, folder.path());
    run_cargo(&copy, &["build"]);
    let file = format!("{TARGET}/release/{}.wasm", name.replace('-', "_"));
    let component = fs::read(repository().join("target/standalone").join(file))
        .expect("the build writes the component");
    // Only the dependencies are of use to the next run: the paths of the copies change.
    run_cargo(&copy, &["clean", "-p", name, "-p", "tollgate-policy"]);
    component
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_balancer_builds_outside_the_workspace_and_chooses() {
    let mut rig = Rig::new().await;
    let path = rig.write("mine.wasm", build_alone("fewest-in-flight"));
    let mut config = rig.team(&["a", "b"], json!({ "strategy": "mine" }));
    config["policies"] = json!([{ "tag": "mine", "kind": "balancer", "path": path }]);
    let client = rig.start(config).await.token("token-alice");

    let answer = client.turn(&turn("one")).await;

    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let policy = rig.policy("mine").await;
    assert_eq!(
        (&policy["name"], &policy["calls"], &policy["state"]),
        (&json!("fewest-in-flight"), &json!(1), &json!("serving")),
        "{policy:#}"
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_rewriter_builds_outside_the_workspace_and_edits() {
    let mut rig = Rig::new().await;
    let path = rig.write("marks.wasm", build_alone("tag-sessions"));
    let mut config = rig.team(&["a"], json!({}));
    config["policies"] = json!([{ "tag": "marks", "kind": "rewriter", "path": path }]);
    config["services"][0]["rewriters"] = json!(["marks"]);
    let client = rig.start(config).await.token("token-alice");

    let answer = client.turn(&turn("one")).await;

    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(rig.upstream.turns()[0].header("x-team-user"), Some("alice"));
    rig.stop().await;
}
