//! A changed configuration of the real binary: when its file is written in any way, and on SIGHUP.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use http::StatusCode;
use rcgen::CertifiedKey;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tollgate_tests::upstream::{Gate, Reply};
use tollgate_tests::{Metrics, Program, Rig, binary, make_fifo, replace_file, send_signal, turn};

/// The longest wait for what the gateway does by itself.
const SOON: Duration = Duration::from_secs(20);

/// A writer's pause in the middle of a file: shorter than the time for which the gateway reads an
/// incomplete file again.
const PAUSE: Duration = Duration::from_millis(100);

fn config(rig: &Rig) -> Value {
    let mut config = rig.team(&["a"], json!({}));
    config["admin"] = json!({ "listen_port": 0 });
    config
}

fn with_token(config: &Value, token: &str) -> String {
    let mut config = config.clone();
    config["services"][0]["users"][0]["token"] = json!(token);
    config.to_string()
}

/// Starts the gateway with `config`, and waits until it has reloaded its file once.
async fn following(rig: &Rig, config: &Value) -> Program {
    let program = rig.spawn(config).await;
    program.signal(libc::SIGHUP);
    wait_for_reloads(&program, "ok", 1.0).await;
    program
}

async fn reloads(program: &Program, outcome: &str) -> f64 {
    let metrics = Metrics::parse(&program.admin().get("/metrics").await.text());
    metrics.value("tollgate_config_reloads_total", &[("outcome", outcome)])
}

async fn wait_for_reloads(program: &Program, outcome: &str, count: f64) {
    let begun = Instant::now();
    while reloads(program, outcome).await < count {
        assert!(
            begun.elapsed() < SOON,
            "no {count} that are {outcome}:\n{}",
            program.log()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn status(program: &Program, token: &str) -> StatusCode {
    program
        .client()
        .token(token)
        .turn(&turn("one"))
        .await
        .status
}

async fn wait_for_token(program: &Program, token: &str) {
    let begun = Instant::now();
    while status(program, token).await != StatusCode::OK {
        assert!(
            begun.elapsed() < SOON,
            "{token} is not known:\n{}",
            program.log()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_followed_in_whatever_way_it_is_written_and_a_stream_continues() {
    let rig = Rig::new().await;
    let config = config(&rig);
    let program = following(&rig, &config).await;
    let path = rig.path("config.json");
    let gate = Gate::new();
    rig.account("a").then(Reply::ok().hold_after(2, &gate));
    let stream = program
        .client()
        .token("token-alice")
        .start_turn(&turn("held"))
        .await;
    gate.wait_until_reached().await;

    replace_file(&path, with_token(&config, "token-renamed"));
    wait_for_token(&program, "token-renamed").await;
    assert_eq!(
        status(&program, "token-alice").await,
        StatusCode::UNAUTHORIZED
    );

    fs::write(&path, with_token(&config, "token-in-place")).expect("the folder can be written");
    wait_for_token(&program, "token-in-place").await;

    let linked = rig.write("linked.json", with_token(&config, "token-linked"));
    symlink(linked, rig.path("link")).expect("a link can be made");
    fs::rename(rig.path("link"), &path).expect("a file can be renamed");
    wait_for_token(&program, "token-linked").await;

    gate.open();
    let answer = stream.finish().await;
    assert!(
        answer.whole && answer.text().contains("response.completed"),
        "{}",
        answer.text()
    );
    assert_eq!(reloads(&program, "failed").await, 0.0, "{}", program.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_up_reloads_the_file_even_if_its_bytes_are_the_same() {
    let rig = Rig::new().await;
    let config = config(&rig);
    let program = rig.spawn(&config).await;
    for count in [1.0, 2.0] {
        program.signal(libc::SIGHUP);
        wait_for_reloads(&program, "ok", count).await;
    }
    assert_eq!(status(&program, "token-alice").await, StatusCode::OK);
    let reported = program.admin().get("/api/policies").await.json();
    assert_eq!(reported["last_configuration"]["outcome"], "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_is_reported_once_and_changes_nothing_until_it_is_repaired() {
    let rig = Rig::new().await;
    let config = config(&rig);
    let program = following(&rig, &config).await;
    let path = rig.path("config.json");
    for (place, (what, text, reason)) in [
        ("no JSON", "{\"services\": canary".to_owned(), "line 1"),
        ("empty", String::new(), "empty"),
        (
            "an unknown key",
            config.to_string().replace("\"admin\"", "\"canary-admin\""),
            "unknown",
        ),
        (
            "a bad policy",
            {
                let mut config = config.clone();
                config["policies"] =
                    json!([{ "tag": "p", "kind": "pricer", "path": "/nowhere/p.wasm" }]);
                config.to_string()
            },
            "/nowhere/p.wasm",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        replace_file(&path, text);
        wait_for_reloads(&program, "failed", (place + 1) as f64).await;
        let last = program.admin().get("/api/policies").await.json()["last_configuration"].take();
        assert_eq!(last["outcome"], "failed", "{what}");
        let reported = last["reason"].as_str().expect("a reason");
        assert!(
            reported.contains(reason) || what == "an unknown key",
            "{what}: {reported}"
        );
        assert!(
            what == "an unknown key" || !reported.contains("canary"),
            "{what}: {reported}"
        );
        assert_eq!(
            status(&program, "token-alice").await,
            StatusCode::OK,
            "{what}"
        );
        assert!(
            program.log().contains("configuration rejected"),
            "{what}: {}",
            program.log()
        );
    }
    replace_file(&path, with_token(&config, "token-mended"));
    wait_for_token(&program, "token-mended").await;
    assert_eq!(reloads(&program, "failed").await, 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_written_file_is_not_reported() {
    let rig = Rig::new().await;
    let config = config(&rig);
    let program = following(&rig, &config).await;
    for time in 0..3 {
        let text = with_token(&config, &format!("token-{time}"));
        let (first, rest) = text.split_at(text.len() / 2);
        let mut file = File::create(rig.path("config.json")).expect("the folder can be written");
        for part in [first, rest] {
            file.write_all(part.as_bytes())
                .expect("the file can be written");
            // The writer's pause; the test does not wait for anything here.
            tokio::time::sleep(PAUSE).await;
        }
        drop(file);
        wait_for_token(&program, &format!("token-{time}")).await;
    }
    assert_eq!(reloads(&program, "failed").await, 0.0, "{}", program.log());
}

/// A configuration with an outbound whose certificates are in a FIFO: reading them waits until
/// something is written there.
struct Held {
    config: Value,
    fifo: PathBuf,
    pem: String,
}

impl Held {
    fn new(rig: &Rig, config: &Value) -> Self {
        let CertifiedKey { cert, .. } =
            rcgen::generate_simple_self_signed(["proxy".to_owned()]).expect("a certificate");
        let fifo = rig.path("cert.pem");
        make_fifo(&fifo);
        let mut config = config.clone();
        config["outbounds"] = json!([{
            "type": "http",
            "tag": "held",
            "server": "127.0.0.1",
            "server_port": 1,
            "tls": { "enabled": true, "certificate_path": fifo },
        }]);
        let pem = cert.pem();
        Self { config, fifo, pem }
    }

    /// Waits until it is being read, does something, and lets it be read.
    async fn during(self, act: impl FnOnce()) {
        // Opening it succeeds once the reader has opened it.
        let writing = spawn_blocking(move || {
            File::options()
                .write(true)
                .open(self.fifo)
                .expect("a reader")
        });
        let mut writer = writing.await.expect("it opens");
        act();
        writer
            .write_all(self.pem.as_bytes())
            .expect("the reader is there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_during_an_earlier_reload_is_applied_too() {
    let rig = Rig::new().await;
    let config = config(&rig);
    let program = following(&rig, &config).await;
    let path = rig.path("config.json");
    let held = Held::new(&rig, &config);
    replace_file(&path, held.config.to_string());
    held.during(|| replace_file(&path, with_token(&config, "token-second")))
        .await;
    wait_for_reloads(&program, "ok", 3.0).await;
    assert_eq!(status(&program, "token-second").await, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_during_the_start_is_applied_too() {
    let rig = Rig::new().await;
    let config = config(&rig);
    let path = rig.path("config.json");
    let held = Held::new(&rig, &config);
    let first = held.config.clone();
    let (program, ()) = tokio::join!(
        rig.spawn(&first),
        held.during(|| replace_file(&path, with_token(&config, "token-second")))
    );
    wait_for_reloads(&program, "ok", 1.0).await;
    assert_eq!(status(&program, "token-second").await, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_during_the_start_do_not_end_it() {
    let rig = Rig::new().await;
    let config = config(&rig);
    let held = Held::new(&rig, &config);
    let file = rig.write("config.json", held.config.to_string());
    let ready = rig.path("ready.json");
    let mut process = Command::new(binary())
        .args(["run", "-c", &file, "--ready-file"])
        .arg(&ready)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let id = process.id();
    held.during(|| {
        replace_file(&rig.path("config.json"), config.to_string());
        send_signal(id, libc::SIGHUP);
    })
    .await;
    let begun = Instant::now();
    while !ready.exists() {
        let ended = process.try_wait().expect("it can be asked");
        assert!(ended.is_none(), "{ended:?}");
        assert!(begun.elapsed() < SOON, "it is not ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    send_signal(id, libc::SIGTERM);
    let ended = spawn_blocking(move || process.wait()).await;
    let ended = ended.expect("no panic").expect("it ends");
    assert_eq!(ended.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_up_does_not_reload_what_is_unchanged() {
    let rig = Rig::new().await;
    let mut config = config(&rig);
    let component = tollgate_tests::component("openai-pricing");
    let path = rig.write("prices.wasm", fs::read(component).expect("it is built"));
    config["policies"] = json!([{ "tag": "mine", "kind": "pricer", "path": path }]);
    config["services"][0]["pricer"] = json!("mine");
    let program = rig.spawn(&config).await;
    let log = program.log();
    assert!(!log.contains("\"ERROR\""), "{log}");
    program.signal(libc::SIGHUP);
    wait_for_reloads(&program, "ok", 1.0).await;
    let policies = program.admin().get("/api/policies").await.json();
    let mine = policies["policies"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|policy| policy["tag"] == "mine");
    assert_eq!(
        mine.expect("it is there")["generation"],
        1,
        "an unchanged policy is not loaded again"
    );
}
