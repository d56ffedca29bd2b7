//! The configurations in `examples/configs`: those of sing-box's OCM documentation run with only
//! ports, endpoints and paths changed, and every file passes the check.

mod policies;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use http::StatusCode;
use rcgen::CertifiedKey;
use serde_json::{Value, json};
use tollgate::config;
use tollgate::values::limits::Limits;
use tollgate_tests::upstream::Standing;
use tollgate_tests::{Rig, binary, component, turn, wait_for_rows};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/configs")
}

fn text(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns the example as JSON. Its comments are on separate lines.
fn read(name: &str) -> Value {
    let text = text(name);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    serde_json::from_str(&lines.join("\n")).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns the example on a free port, with `rig`'s upstream and folder. Nothing else changes.
fn adapted(rig: &Rig, name: &str) -> Value {
    let mut config = read(name);
    config["data_dir"] = json!(rig.path("data"));
    let service = &mut config["services"][0];
    service["listen_port"] = json!(0);
    service["endpoints"] =
        json!({ "chatgpt": rig.upstream.chatgpt_url(), "api": rig.upstream.api_url() });
    config
}

/// Points the paths of `value`, a service or a credential, to files in `rig`'s folder, with an
/// account for them.
fn use_rig_paths(rig: &Rig, tag: &str, value: &mut Value) {
    value["credential_path"] = rig.oauth(tag)["credential_path"].clone();
    if value.get("usages_path").is_some() {
        value["usages_path"] = json!(rig.path(&format!("usages-{tag}.json")));
    }
}

fn usage_file(rig: &Rig, tag: &str) -> Value {
    let text = fs::read(rig.path(&format!("usages-{tag}.json")))
        .expect("the usage file is written at shutdown");
    serde_json::from_slice(&text).expect("the usage file is JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_example_serves_everyone_with_one_credential() {
    let mut rig = Rig::new().await;
    let mut config = adapted(&rig, "single.json");
    use_rig_paths(&rig, "me", &mut config["services"][0]);
    let client = rig.start(config).await;

    let answer = client.turn(&turn("one")).await;

    assert_eq!(answer.status, StatusCode::OK);
    let row = wait_for_rows(&rig.ledger(), 1).await.remove(0);
    assert_eq!(
        (row.text("user"), row.text("credential"), row.text("end")),
        (None, Some("default"), Some("complete"))
    );
    assert_eq!(
        rig.upstream.turns()[0].account.as_deref(),
        Some("account-me")
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_example_distinguishes_its_users() {
    let mut rig = Rig::new().await;
    let mut config = adapted(&rig, "users.json");
    use_rig_paths(&rig, "me", &mut config["services"][0]);
    let client = rig.start(config).await;

    let alice = client.token("sk-ocm-hello-world").turn(&turn("one")).await;
    let bob = client.token("sk-ocm-hello-bob").turn(&turn("two")).await;
    let without_token = client.turn(&turn("three")).await;
    let unknown_token = client.token("sk-ocm-hello-carol").turn(&turn("four")).await;

    assert_eq!((alice.status, bob.status), (StatusCode::OK, StatusCode::OK));
    assert_eq!(
        (without_token.status, unknown_token.status),
        (StatusCode::UNAUTHORIZED, StatusCode::UNAUTHORIZED)
    );
    assert_eq!(
        rig.upstream.turns().len(),
        2,
        "only the users' requests reach upstream"
    );
    rig.stop().await;
    let usage = usage_file(&rig, "me");
    let users: BTreeSet<&str> = usage["costs"]["by_user"]
        .as_object()
        .expect("sums")
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(users, BTreeSet::from(["alice", "bob"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_third_example_balances_alice_and_keeps_bob_on_one_credential() {
    let mut rig = Rig::new().await;
    let mut config = adapted(&rig, "team.json");
    for (place, tag) in ["a", "b"].into_iter().enumerate() {
        use_rig_paths(&rig, tag, &mut config["services"][0]["credentials"][place]);
    }
    let client = rig.start_polled(config).await;
    // a's first response reports use beyond its reserve of 20, and b's reserve is 10: the pool
    // still has b, and a alone is used up.
    for tag in ["a", "b"] {
        rig.account(tag)
            .set_standing(Standing::new("plus").five_hour_used(81.0));
    }
    let (alice, bob) = (
        client.token("sk-ocm-hello-world"),
        client.token("sk-ocm-hello-bob"),
    );

    let first = bob.turn(&turn("one")).await;
    let second = bob.turn(&turn("one")).await;
    let third = alice.turn(&turn("two")).await;

    assert_eq!(
        (first.status, third.status),
        (StatusCode::OK, StatusCode::OK)
    );
    assert_eq!(
        second.status,
        StatusCode::TOO_MANY_REQUESTS,
        "{}",
        second.text()
    );
    let accounts: Vec<_> = rig
        .upstream
        .turns()
        .into_iter()
        .map(|seen| seen.account)
        .collect();
    assert_eq!(
        accounts,
        [Some("account-a".to_owned()), Some("account-b".to_owned())]
    );
    rig.stop().await;
    assert_eq!(
        usage_file(&rig, "a")["combinations"][0]["total"]["request_count"],
        1
    );
    assert!(!rig.path("usages-b.json").exists(), "b has no usages_path");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_credential_path_the_file_in_codex_home_is_used() {
    let rig = Rig::new().await;
    let config = adapted(&rig, "single.json");
    rig.upstream.account("access-home", "account-home");
    rig.write(
        "auth.json",
        tollgate_tests::oauth_file("access-home", "account-home").to_string(),
    );
    let (file, ready) = (
        rig.write("config.json", config.to_string()),
        rig.path("ready.json"),
    );
    // Not started by the rig, whose programs inherit the environment of this process.
    let folder = rig.folder().to_str().expect("a plain name").to_owned();
    let mut child = Command::new(binary())
        .args(["run", "-c", &file, "--ready-file"])
        .arg(&ready)
        .env("CODEX_HOME", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let address = wait_for_address(&ready).await;

    let answer = tollgate_tests::Client::new(address)
        .turn(&turn("one"))
        .await;

    child.kill().expect("it can be killed");
    child.wait().expect("it can be waited for");
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(
        rig.upstream.turns()[0].account.as_deref(),
        Some("account-home")
    );
}

async fn wait_for_address(ready: &Path) -> std::net::SocketAddr {
    let wait = async {
        loop {
            if let Ok(text) = fs::read(ready) {
                let ready: Value =
                    serde_json::from_slice(&text).expect("the ready file is written atomically");
                return ready["services"][0]["address"]
                    .as_str()
                    .expect("a text")
                    .parse()
                    .expect("an address");
            }
            // The ready file is the only signal.
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), wait)
        .await
        .expect("the gateway is ready in time")
}

/// Returns the example with its paths in `folder`, and creates the files that they name.
fn with_paths_in(folder: &Path, text: &str) -> String {
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()])
            .expect("a certificate can be made");
    fs::write(folder.join("cert.pem"), cert.pem()).expect("the folder can be written");
    fs::write(folder.join("key.pem"), signing_key.serialize_pem())
        .expect("the folder can be written");
    let folder = folder.to_str().expect("temporary folders have plain names");
    let shadow = component("random");
    text.replace("/etc/tollgate/policies/gentle.wasm", "builtin:least-used")
        .replace(
            "/etc/tollgate/policies/gentler.wasm",
            shadow.to_str().expect("its path is plain"),
        )
        .replace("\"/etc/tollgate/", &format!("\"{folder}/"))
        .replace("\"/var/lib/tollgate", &format!("\"{folder}"))
        .replace("\"/home/", &format!("\"{folder}/"))
        .replace("\"/data/", &format!("\"{folder}/"))
}

#[test]
fn every_example_passes_the_check() {
    let entries = fs::read_dir(folder()).expect("the examples are there");
    let names: BTreeSet<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert!(names.len() >= 4, "{names:?}");
    for path in names {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let text = fs::read_to_string(&path).expect("an example can be read");
        fs::write(
            temporary.path().join("case.json"),
            with_paths_in(temporary.path(), &text),
        )
        .expect("a file");
        let output = Command::new(binary())
            .args(["check", "-c", "case.json"])
            .current_dir(temporary.path())
            .env("HOME", temporary.path())
            .output()
            .expect("the binary runs");
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        // The only warnings are about the credentials' files and the folders of usage files, which
        // do not exist.
        let unexpected: Vec<&str> = printed
            .lines()
            .filter(|line| !line.contains("auth.json: no such file"))
            .filter(|line| !line.contains("usages") || !line.contains(": there is no folder "))
            .collect();
        assert!(
            output.status.success() && unexpected.is_empty(),
            "{}: {printed}",
            path.display()
        );
    }
}

#[test]
fn the_full_example_shows_every_field() {
    let text = text("full.jsonc");
    let schema = config::schema();
    let forms = schema["$defs"]
        .as_object()
        .expect("the schema has forms")
        .values()
        .chain([&schema]);
    let fields = forms
        .filter_map(|form| form["properties"].as_object())
        .flatten();
    let missing: BTreeSet<&str> = fields
        .filter(|(_, about)| {
            !about["description"].as_str().is_some_and(|text| {
                text.starts_with("Not supported") || text.starts_with("Has no effect")
            })
        })
        .map(|(name, _)| name.as_str())
        .filter(|name| !text.contains(&format!("\"{name}\":")))
        .collect();
    assert!(missing.is_empty(), "not in full.jsonc: {missing:?}");
}

#[test]
fn the_full_example_explains_every_field_at_its_first_use() {
    let text = text("full.jsonc");
    let mut explained = BTreeSet::new();
    let mut before = "";
    for line in text.lines().map(str::trim) {
        let key = line
            .strip_prefix('"')
            .and_then(|rest| rest.split_once("\":"))
            .map(|(key, _)| key);
        // Keys in a policy's configuration, and names of headers and models, are explained around
        // them.
        if let Some(key) = key.filter(|key| is_field(key)) {
            assert!(
                explained.contains(key) || before.starts_with("//"),
                "{key:?} follows {before:?} instead of a comment"
            );
            explained.insert(key.to_owned());
        }
        before = line;
    }
}

fn is_field(key: &str) -> bool {
    let schema = config::schema();
    let forms = schema["$defs"]
        .as_object()
        .expect("the schema has forms")
        .values()
        .chain([&schema])
        .cloned();
    forms
        .filter_map(|form| form["properties"].as_object().cloned())
        .any(|fields| fields.contains_key(key))
}

#[test]
fn the_full_example_names_the_defaults_as_they_are() {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let full = config::parse(&with_paths_in(temporary.path(), &text("full.jsonc")))
        .expect("the example is good")
        .config;
    assert_eq!(full.limits, Limits::default());
    let [team, mine] = full.services.as_slice() else {
        panic!("two services")
    };
    assert_eq!(team.endpoints.chatgpt, mine.endpoints.chatgpt);
    assert_eq!(team.endpoints.api, mine.endpoints.api);
    let own = full
        .policies
        .iter()
        .find(|policy| policy.tag == "gentle")
        .expect("the policy");
    assert_eq!(
        (own.timeout, own.memory),
        (config::POLICY_TIMEOUT, config::POLICY_MEMORY)
    );
    let tls = team.tls.as_ref().expect("TLS");
    assert_eq!(tls.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
}
