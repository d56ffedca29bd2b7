//! Upgrades: a new process takes over from the old one. No connection is refused, nothing in flight
//! is cut, and each duty has one owner.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tollgate_tests::reverse::{REVERSE_TOKEN, YamuxFrame, YamuxPeer, back_config, front_config};
use tollgate_tests::upstream::{Gate, Reply, SocketReply};
use tollgate_tests::{
    Client, Event, Rig, Socket, UpgradeScene, binary, is_running, replace_file, rows, send_signal,
    tollgate, turn,
};

/// The upgrades under load, without the environment variable `TOLLGATE_TEST_UPGRADES`.
const UPGRADES: usize = 20;

/// The longest wait for the end of an idle stream. It would be kept for 120 seconds.
const STREAM_END_MAX: Duration = Duration::from_secs(30);

/// The code of a close frame after which a client connects again.
const RESTART: u16 = 1012;

/// A team on one account with a usage file, with these limits.
fn config(rig: &Rig, limits: Value) -> Value {
    let mut config = rig.team(&["a"], json!({}));
    config["services"][0]["credentials"][0]["usages_path"] = json!(rig.path("usages.json"));
    // Kept connections that nothing uses end soon.
    config["limits"] = json!({ "head_timeout": "2s" });
    for (name, limit) in limits.as_object().expect("limits") {
        config["limits"][name] = limit.clone();
    }
    config
}

async fn scene(limits: Value) -> UpgradeScene {
    let rig = Rig::new().await;
    let config = config(&rig, limits);
    UpgradeScene::new(rig, &config).await
}

/// Returns the requests in the usage file.
fn used(scene: &UpgradeScene) -> u64 {
    let text = fs::read_to_string(scene.rig.path("usages.json")).expect("a usage file");
    let file: Value = serde_json::from_str(&text).expect("the usage file is JSON");
    let combinations = file["combinations"].as_array().expect("a list");
    let requests = |one: &Value| one["total"]["request_count"].as_u64().expect("a number");
    combinations.iter().map(requests).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_replaces_the_process() {
    let mut scene = scene(json!({})).await;
    let client = scene.client().token("token-alice");
    assert_eq!(client.turn(&turn("before")).await.status, StatusCode::OK);
    let old = scene.upgrade().await;
    scene.ended(old).await;
    assert_eq!(client.turn(&turn("after")).await.status, StatusCode::OK);
    // The commands reach the new process.
    let config = scene.rig.path("config.json");
    let config = config.to_str().expect("a plain name");
    let status = tollgate(["status", "-c", config, "--json"]);
    assert_eq!(status.code, Some(0), "{status:?}");
    scene.stop().await;
    assert_eq!(rows(&scene.rig.ledger()).len(), 2);
    assert_eq!(used(&scene), 2);
    assert!(!scene.rig.path("data/admin.sock").exists());
}

/// How the requests of all load clients ended.
#[derive(Default)]
struct LoadOutcome {
    stop: AtomicBool,
    served: AtomicUsize,
    failures: std::sync::Mutex<Vec<String>>,
}

impl LoadOutcome {
    fn fail(&self, message: String) {
        self.failures.lock().expect("no panics").push(message);
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Sends turns until the load is over. `client` makes the client of each.
async fn send_turns(outcome: Arc<LoadOutcome>, client: impl Fn() -> Client) {
    while !outcome.is_over() {
        let body = turn("load").to_string();
        let client = client();
        let sent = client.try_send(Method::POST, "/v1/responses", body).await;
        match sent {
            Ok(stream) => {
                let answer = stream.finish().await;
                if answer.status == StatusCode::OK && answer.whole {
                    outcome.served.fetch_add(1, Ordering::Relaxed);
                } else {
                    outcome.fail(format!("{}: {}", answer.status, answer.text()));
                }
            }
            Err(error) => outcome.fail(format!("{error:?}")),
        }
    }
}

/// Sends turns over a WebSocket, and connects again whenever the gateway asks for it.
async fn send_socket_turns(outcome: Arc<LoadOutcome>, client: Client) {
    while !outcome.is_over() {
        let mut socket = match client.socket().await {
            Ok(socket) => socket,
            Err(answer) => {
                outcome.fail(format!("no socket: {}", answer.status));
                continue;
            }
        };
        while !outcome.is_over() {
            socket.create(&turn("socket")).await;
            match end_of_turn(&mut socket).await {
                Ok(true) => {
                    outcome.served.fetch_add(1, Ordering::Relaxed);
                }
                // Closed before it began to answer: the turn crossed the close frame.
                Ok(false) => break,
                Err(message) => {
                    outcome.fail(message);
                    break;
                }
            }
        }
    }
}

/// Returns whether the turn was answered to its end, or `false` if the gateway asked to connect
/// again before the first event.
async fn end_of_turn(socket: &mut Socket) -> Result<bool, String> {
    let mut events = 0;
    loop {
        match socket.next_message().await {
            Event::Text(text) if text.contains("\"response.completed\"") => return Ok(true),
            Event::Text(_) => events += 1,
            Event::Close(RESTART, _) if events == 0 => return Ok(false),
            event => return Err(format!("a turn was cut after {events} events: {event:?}")),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrades_under_load_refuse_nothing() {
    let upgrades = std::env::var("TOLLGATE_TEST_UPGRADES").ok();
    let upgrades = upgrades.map_or(UPGRADES, |text| text.parse().expect("a number"));
    let mut scene = scene(json!({})).await;
    let outcome = Arc::new(LoadOutcome::default());
    let mut load = Vec::new();
    let (address, kept) = (scene.address(), scene.client().token("token-alice"));
    let fresh = move || Client::new(address).token("token-bob");
    load.push(tokio::spawn(send_turns(Arc::clone(&outcome), fresh)));
    load.push(tokio::spawn(send_turns(Arc::clone(&outcome), move || {
        kept.clone()
    })));
    let socket = scene.client().token("token-bob");
    load.push(tokio::spawn(send_socket_turns(
        Arc::clone(&outcome),
        socket,
    )));
    for round in 0..upgrades {
        let served = outcome.served.load(Ordering::Relaxed);
        scene.upgrade().await;
        // Each process serves something.
        while outcome.served.load(Ordering::Relaxed) <= served {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let failures = outcome.failures.lock().expect("no panics").clone();
        assert!(
            failures.is_empty(),
            "upgrade {round}: {failures:#?}\n{}",
            scene.log()
        );
    }
    outcome.stop.store(true, Ordering::Relaxed);
    for client in load {
        client.await.expect("no panic");
    }
    let failures = outcome.failures.lock().expect("no panics").clone();
    assert!(failures.is_empty(), "{failures:#?}");
    scene.stop().await;
    let complete = rows(&scene.rig.ledger())
        .iter()
        .filter(|row| row.text("end") == Some("complete"))
        .count();
    let served = outcome.served.load(Ordering::Relaxed);
    assert!(complete >= served, "{complete} rows of {served} responses");
    assert_eq!(used(&scene), complete as u64);
}

/// The only credential is another gateway, which connects to the new process once the old one asks
/// it to.
#[tokio::test(flavor = "multi_thread")]
async fn upgrades_of_a_gateway_with_a_reverse_connection_refuse_nothing() {
    let rig = Rig::new().await;
    let mut config = front_config(&rig);
    config["services"][0]["users"][0]["credential"] = json!("x");
    config["limits"] = json!({ "head_timeout": "2s" });
    let mut scene = UpgradeScene::new(rig, &config).await;
    let mut back = Rig::new().await;
    back.start(back_config(&back, scene.address())).await;
    scene.rig.wait_for_state("x", "ready").await;
    let outcome = Arc::new(LoadOutcome::default());
    let (address, kept) = (scene.address(), scene.client().token("token-alice"));
    let socket = kept.clone();
    let fresh = move || Client::new(address).token("token-alice");
    let load = [
        tokio::spawn(send_turns(Arc::clone(&outcome), fresh)),
        tokio::spawn(send_turns(Arc::clone(&outcome), move || kept.clone())),
        tokio::spawn(send_socket_turns(Arc::clone(&outcome), socket)),
    ];
    // The last one follows at once.
    for round in 0..3 {
        let served = outcome.served.load(Ordering::Relaxed);
        scene.upgrade().await;
        scene.rig.wait_for_state("x", "ready").await;
        while outcome.served.load(Ordering::Relaxed) <= served {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let failures = outcome.failures.lock().expect("no panics").clone();
        assert!(
            failures.is_empty(),
            "upgrade {round}: {failures:#?}\n{}",
            scene.log()
        );
    }
    outcome.stop.store(true, Ordering::Relaxed);
    for client in load {
        client.await.expect("no panic");
    }
    let failures = outcome.failures.lock().expect("no panics").clone();
    assert!(failures.is_empty(), "{failures:#?}\n{}", scene.log());
    scene.stop().await;
    back.stop().await;
}

/// The other gateway keeps its idle stream, although it was asked to connect to the new process.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_ends_the_idle_streams_of_a_reverse_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let rig = Rig::new().await;
    let config = back_config(&rig, address);
    let mut scene = UpgradeScene::new(rig, &config).await;
    let (mut peer, _) = YamuxPeer::accept(&listener).await;
    let mut bytes = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
    bytes.extend(YamuxFrame::header(1, 1, 1, 0));
    let request = format!(
        "GET /ocm/v1/status HTTP/1.1\r\nHost: reverse-proxy\r\n\
         Authorization: Bearer {REVERSE_TOKEN}\r\n\r\n"
    );
    bytes.extend(YamuxFrame::data(0, 1, request.as_bytes()));
    peer.send(&bytes).await.expect("it reads");
    peer.until(1, "plan_weight").await;

    let old = scene.upgrade().await;

    let ending = async {
        let farewell = peer.frame_that(|frame| frame.kind == 3).await;
        assert_eq!(farewell.length, 0, "it asks for no more streams");
        // A request that was on its way is still answered.
        let late = YamuxFrame::data(0, 1, request.as_bytes());
        peer.send(&late).await.expect("it reads");
        let answer = peer.until(1, "plan_weight").await;
        assert!(answer.contains("200 OK"), "{answer}");
        peer.frame_that(|frame| frame.stream == 1 && frame.flags & 4 != 0)
            .await;
    };
    let ending = tokio::time::timeout(STREAM_END_MAX, ending).await;
    ending.expect("the stream ends");
    peer.send(YamuxFrame::header(1, 4, 1, 0))
        .await
        .expect("it reads");
    scene.ended(old).await;
}

/// A stream and a WebSocket turn outlive `limits.drain_timeout`: the old process is not stopping.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_cuts_neither_a_stream_nor_a_websocket_turn() {
    let mut scene = scene(json!({ "drain_timeout": "100ms" })).await;
    let gate = Gate::new();
    let account = scene.rig.account("a");
    account.then(Reply::ok().hold_after(2, &gate));
    let alice = scene.client().token("token-alice");
    let stream = alice.start_turn(&turn("stream")).await;
    let mut socket = alice.socket().await.expect("a socket");
    let socket_gate = Gate::new();
    account.then_socket(SocketReply::begun().hold(&socket_gate).completed());
    socket.create(&turn("socket")).await;
    socket.next_json().await;
    let old = scene.upgrade().await;
    scene
        .logged("waiting for in-flight requests of this one")
        .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(is_running(old), "the old process is gone:\n{}", scene.log());
    gate.open();
    let answer = stream.finish().await;
    assert!(answer.whole && answer.text().contains("response.completed"));
    socket_gate.open();
    let events = socket.rest_of_turn().await;
    let last = events.last().and_then(|event| event["type"].as_str());
    assert_eq!(last, Some("response.completed"));
    assert!(matches!(
        socket.next_message().await,
        Event::Close(RESTART, _)
    ));
    drop(socket);
    scene.ended(old).await;
    scene.stop().await;
    let rows = rows(&scene.rig.ledger());
    assert_eq!(rows.len(), 2);
    assert!(
        rows.iter().all(|row| row.text("end") == Some("complete")),
        "{rows:#?}"
    );
    // The old process recorded them, and the new one added them to the file.
    assert_eq!(used(&scene), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_accepted_before_an_upgrade_is_served() {
    let mut scene = scene(json!({ "head_timeout": "60s" })).await;
    let mut silent = TcpStream::connect(scene.address()).await.expect("connects");
    // Connections are accepted in order: the silent one is accepted by the old process.
    let client = scene.client().token("token-alice");
    assert_eq!(client.turn(&turn("before")).await.status, StatusCode::OK);
    let old = scene.upgrade().await;
    scene
        .logged("waiting for in-flight requests of this one")
        .await;
    silent
        .write_all(
            b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer token-alice\r\n\r\n",
        )
        .await
        .expect("the connection is open");
    let mut answer = String::new();
    silent.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer
            .to_ascii_lowercase()
            .contains("\r\nconnection: close\r\n"),
        "{answer}"
    );
    // The other connection of the old process is kept open by its client until it is used again.
    assert_eq!(client.turn(&turn("last")).await.status, StatusCode::OK);
    scene.ended(old).await;
    assert_eq!(client.turn(&turn("after")).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_to_a_broken_configuration_changes_nothing() {
    let mut scene = scene(json!({})).await;
    let client = scene.client().token("token-alice");
    let good = fs::read_to_string(scene.rig.path("config.json")).expect("the configuration");
    let file = scene.rig.path("config.json");
    replace_file(&file, "{ \"services\": 1 }");
    scene.signal(libc::SIGUSR2);
    scene.logged("upgrade failed, this process continues").await;
    assert_eq!(client.turn(&turn("still")).await.status, StatusCode::OK);
    replace_file(&file, &good);
    let old = scene.upgrade().await;
    scene.ended(old).await;
    assert_eq!(client.turn(&turn("after")).await.status, StatusCode::OK);
    scene.stop().await;
    assert_eq!(used(&scene), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_upgrade_leaves_the_unix_socket_of_the_process_that_continues() {
    let rig = Rig::new().await;
    let socket = rig.path("service.sock");
    let mut config = config(&rig, json!({}));
    let mut unix = rig.config(json!({ "tag": "unix", "credentials": [rig.oauth("b")] }));
    unix["services"][0]["listen"] = json!(format!("unix:{}", socket.display()));
    let services = config["services"].as_array_mut().expect("a list");
    services.push(unix["services"][0].take());
    let mut scene = UpgradeScene::new(rig, &config).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut broken = config.clone();
    let mut third = broken["services"][0].clone();
    third["tag"] = json!("third");
    third["listen_port"] = json!(taken.local_addr().expect("it is bound").port());
    broken["services"]
        .as_array_mut()
        .expect("a list")
        .push(third);
    let file = scene.rig.path("config.json");
    replace_file(&file, broken.to_string());
    scene.signal(libc::SIGUSR2);
    scene.logged("upgrade failed, this process continues").await;
    tokio::net::UnixStream::connect(&socket)
        .await
        .expect("the socket is still there");
    replace_file(&file, config.to_string());
    let old = scene.upgrade().await;
    scene.ended(old).await;
    tokio::net::UnixStream::connect(&socket)
        .await
        .expect("the new process has it");
    scene.stop().await;
    assert!(!socket.exists(), "the last process removes it");
}

#[tokio::test(flavor = "multi_thread")]
async fn listen_options_that_an_upgrade_cannot_change_are_named() {
    let rig = Rig::new().await;
    let config = config(&rig, json!({}));
    let mut scene = UpgradeScene::new(rig, &config).await;
    let mut changed = config.clone();
    changed["services"][0]["bind_interface"] = json!("lo");
    replace_file(&scene.rig.path("config.json"), changed.to_string());
    let needed = "\"needs_restart\":\"services[0].bind_interface\"";
    scene.logged(needed).await;
    let old = scene.upgrade().await;
    scene.ended(old).await;
    assert!(
        scene.log().contains("the socket keeps its options"),
        "{}",
        scene.log()
    );
    let before = scene.log().matches(needed).count();
    scene.signal(libc::SIGHUP);
    let begun = Instant::now();
    while scene.log().matches(needed).count() == before {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", scene.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_without_a_ready_file_leaves_a_process() {
    let scene = scene(json!({})).await;
    let client = scene.client().token("token-alice");
    fs::create_dir(scene.rig.path("ready.json.tmp")).expect("the folder can be written");
    scene.signal(libc::SIGUSR2);
    scene.logged("no ready file").await;
    scene.ended(scene.process()).await;
    assert_eq!(client.turn(&turn("after")).await.status, StatusCode::OK);
    // The log is the only place that names it.
    let log = scene.log();
    let new = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|line| line["message"] == "upgrade: starting a new process")
        .and_then(|line| u32::try_from(line["pid"].as_u64()?).ok())
        .expect("a process");
    send_signal(new, libc::SIGTERM);
    scene.ended(new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_not_ready_in_time_is_killed() {
    let scene = scene(json!({ "upgrade_ready_timeout": "1ms" })).await;
    let client = scene.client().token("token-alice");
    scene.signal(libc::SIGUSR2);
    scene
        .logged("the new process was not ready within limits.upgrade_ready_timeout")
        .await;
    assert_eq!(client.turn(&turn("still")).await.status, StatusCode::OK);
    scene.stop().await;
    assert_eq!((rows(&scene.rig.ledger()).len(), used(&scene)), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_new_process_polls() {
    let rig = Rig::new().await;
    let mut config = config(&rig, json!({ "head_timeout": "60s" }));
    config["services"][0]["credentials"][1]["poll_interval"] = json!("50ms");
    let mut scene = UpgradeScene::new(rig, &config).await;
    let silent = TcpStream::connect(scene.address()).await.expect("connects");
    // Connections are accepted in order: the silent one is accepted by the old process.
    let client = scene.client().token("token-alice");
    assert_eq!(client.turn(&turn("before")).await.status, StatusCode::OK);
    let account = scene.rig.account("a");
    account.wait_for_polls(1).await;
    let polls = account.poll_count();
    scene.upgrade().await;
    account.wait_for_polls(polls + 1).await;
    // While the new process stands still, a request of the old one makes no poll due.
    scene.signal(libc::SIGSTOP);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let polls = account.poll_count();
    let answer = post_turn(silent).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(account.poll_count(), polls);
    scene.signal(libc::SIGCONT);
}

/// Sends a turn, and returns what comes back until the end of the connection.
async fn post_turn(mut stream: TcpStream) -> String {
    let body = turn("late").to_string();
    let head = format!(
        "POST /v1/responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer token-alice\r\n\
        content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), body.as_bytes()].concat();
    stream.write_all(&request).await.expect("it is read");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

/// Returns the only child of a process.
fn child_of(process: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_process_of_a_container_is_not_replaced() {
    let probe = Command::new("unshare")
        .args(["-U", "-r", "-p", "-f", "true"])
        .output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        eprintln!("skipped: this user cannot make process namespaces");
        return;
    }
    let rig = Rig::new().await;
    let config = config(&rig, json!({}));
    let mut command = Command::new("unshare");
    command
        .args(["-U", "-r", "-p", "-f", "--kill-child"])
        .arg(binary())
        .stdin(Stdio::null());
    let program = rig.spawn_as(command, &config).await;
    let gateway = child_of(program.id()).expect("unshare has a child");
    send_signal(gateway, libc::SIGUSR2);
    let begun = Instant::now();
    while !program
        .log()
        .contains("process 1 of a container cannot be replaced")
    {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{}",
            program.log()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let client = program.client().token("token-alice");
    assert_eq!(client.turn(&turn("still")).await.status, StatusCode::OK);
}
