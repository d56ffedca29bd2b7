//! `tollgate run`: its ports, folders, ready file and signals.

use super::*;

/// Writes a valid configuration into `folder`. Returns the name of its file.
fn config(folder: &Path, service: Value, more: Value) -> &'static str {
    let mut whole =
        json!({ "services": [{ "type": "ocm", "listen_port": 0 }], "data_dir": "data" });
    let fields = |value: Value| value.as_object().expect("an object").clone();
    whole["services"][0]
        .as_object_mut()
        .expect("an object")
        .extend(fields(service));
    whole
        .as_object_mut()
        .expect("an object")
        .extend(fields(more));
    fs::write(folder.join("case.json"), whole.to_string()).expect("a file");
    "case.json"
}

/// Returns the error of a `tollgate run` that does not start: the last line on standard error,
/// after the log in JSON.
#[track_caller]
fn check_refused(folder: &Path, file: &str, expected: &str) {
    let said = tollgate(folder, &["run", "-c", file, "--ready-file", "ready.json"]);
    assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""), "{said:?}");
    assert_eq!(
        said.stderr.lines().last(),
        Some(expected),
        "{}",
        said.stderr
    );
    assert!(!folder.join("ready.json").exists(), "it was never ready");
}

#[test]
fn with_a_port_in_use_names_service_and_address() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port();
    let folder = folder();
    let file = config(
        folder.path(),
        json!({ "listen_port": port, "tag": "front" }),
        json!({}),
    );
    let expected = format!(
        "tollgate: case.json: service \"front\": cannot listen on 127.0.0.1:{port}: address already in use"
    );
    check_refused(folder.path(), file, &expected);
}

#[test]
fn on_an_address_of_another_machine_reports_it() {
    let folder = folder();
    let users = json!([{ "name": "alice", "token": "t" }]);
    // TEST-NET-1 (RFC 5737): no machine has it.
    let file = config(
        folder.path(),
        json!({ "listen": "192.0.2.1", "users": users }),
        json!({}),
    );
    let expected = "tollgate: case.json: service \"ocm\": cannot listen on 192.0.2.1:0: cannot assign requested address";
    check_refused(folder.path(), file, expected);
}

#[test]
fn with_a_data_dir_that_is_a_file_reports_it() {
    let folder = folder();
    fs::write(folder.path().join("taken"), "").expect("a file");
    let file = config(folder.path(), json!({}), json!({ "data_dir": "taken" }));
    check_refused(
        folder.path(),
        file,
        "tollgate: case.json: ledger: cannot use taken: file exists",
    );
}

#[test]
fn with_a_data_dir_that_cannot_be_created_reports_it() {
    let folder = folder();
    let file = config(
        folder.path(),
        json!({}),
        json!({ "data_dir": "/proc/tollgate" }),
    );
    let expected =
        "tollgate: case.json: ledger: cannot use /proc/tollgate: no such file or directory";
    check_refused(folder.path(), file, expected);
}

#[test]
fn with_an_invalid_ledger_reports_it_and_does_not_change_it() {
    let folder = folder();
    fs::create_dir(folder.path().join("data")).expect("a folder");
    let ledger = folder.path().join("data/ledger.db");
    fs::write(&ledger, "my diary\n".repeat(100)).expect("a file");
    let file = config(folder.path(), json!({}), json!({}));
    let expected = "tollgate: case.json: ledger: data/ledger.db: expected a Tollgate ledger, found another kind of \
            file; the file was not changed";
    check_refused(folder.path(), file, expected);
    assert_eq!(
        fs::read_to_string(&ledger).expect("it is there"),
        "my diary\n".repeat(100)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_data_dir_of_another_gateway_reports_it_and_does_not_affect_that_gateway() {
    let mut rig = Rig::new().await;
    let first = rig.team(&["a"], json!({}));
    let client = rig.start(first).await.token("token-alice");
    let file = config(rig.folder(), json!({}), json!({}));
    let expected = "tollgate: case.json: ledger: data: in use by another process; give each gateway its own data_dir";
    check_refused(rig.folder(), file, expected);
    assert_eq!(client.turn(&turn("one")).await.status, 200);
    wait_for_rows(&rig.ledger(), 1).await;
    rig.stop().await;
}

#[test]
fn with_a_log_that_cannot_be_written_reports_it() {
    let folder = folder();
    let file = config(
        folder.path(),
        json!({}),
        json!({ "log": { "output": "nowhere/tollgate.log" } }),
    );
    let expected = "tollgate: case.json: log.output: cannot open nowhere/tollgate.log: no such file or directory";
    check_refused(folder.path(), file, expected);
}

#[test]
fn with_a_ready_file_that_cannot_be_written_reports_it() {
    let folder = folder();
    let file = config(folder.path(), json!({}), json!({}));
    let said = tollgate(
        folder.path(),
        &["run", "-c", file, "--ready-file", "nowhere/ready.json"],
    );
    assert_eq!(said.code, Some(1));
    let expected = "tollgate: cannot write nowhere/ready.json: no such file or directory";
    assert_eq!(said.stderr.lines().last(), Some(expected));
}

#[test]
fn does_not_overwrite_a_credential_with_a_usage_file() {
    let folder = folder();
    let auth = tollgate_tests::oauth_file("access", "account").to_string();
    fs::write(folder.path().join("auth.json"), &auth).expect("a file");
    // An address of another machine: the gateway starts until it listens, and ends.
    let service = json!({ "credential_path": "auth.json", "usages_path": "auth.json", "listen": "192.0.2.1" });
    let file = config(folder.path(), service, json!({}));
    assert_eq!(tollgate(folder.path(), &["run", "-c", file]).code, Some(1));
    let left = fs::read_to_string(folder.path().join("auth.json"));
    assert_eq!(
        left.ok().as_deref(),
        Some(auth.as_str()),
        "the credential is where and what it was"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_a_ready_file_with_every_address_once_all_are_up() {
    let rig = Rig::new().await;
    let mut whole = rig.config(json!({ "tag": "one", "credential_path": "a.json" }));
    let mut second = whole["services"][0].clone();
    second["tag"] = json!("two");
    second["credential_path"] = json!("b.json");
    second["listen"] = json!("::1");
    whole["services"]
        .as_array_mut()
        .expect("a list")
        .push(second);
    let program = rig.spawn(&whole).await;

    let ready: Value =
        serde_json::from_slice(&fs::read(rig.path("ready.json")).expect("it is there"))
            .expect("the ready file is JSON");

    let addresses: Vec<SocketAddr> = ["one", "two"]
        .into_iter()
        .enumerate()
        .map(|(place, tag)| {
            assert_eq!(ready["services"][place]["tag"], tag);
            ready["services"][place]["address"]
                .as_str()
                .expect("a text")
                .parse()
                .expect("an address")
        })
        .collect();
    let expected = json!({
        "services": [
            { "tag": "one", "address": addresses[0].to_string() },
            { "tag": "two", "address": addresses[1].to_string() },
        ],
        "admin": null,
        "pid": program.id(),
    });
    assert_eq!(ready, expected, "and nothing else");
    assert!(addresses[0].is_ipv4() && addresses[1].is_ipv6());
    for address in addresses {
        assert_ne!(address.port(), 0);
        TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("it is up");
    }
    program.kill();
}

/// A reader sees all of the old file or all of the new one, at any instant.
#[tokio::test(flavor = "multi_thread")]
async fn replaces_the_ready_file_in_one_step() {
    let rig = Rig::new().await;
    let old = "an older and much longer file\n".repeat(100);
    let path = rig.write("ready.json", &old);
    let link = rig.path("link.json");
    fs::hard_link(&path, &link).expect("a second name for the old file");
    let program = rig.spawn(&rig.config(json!({}))).await;

    assert_eq!(
        fs::read_to_string(&link).expect("it is there"),
        old,
        "the old file was written into"
    );
    assert_ne!(fs::read_to_string(&path).expect("it is there"), old);
    let left: Vec<String> = fs::read_dir(rig.folder())
        .expect("the folder can be read")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("plain names")
        })
        .filter(|name| name.contains("ready"))
        .collect();
    assert_eq!(left, ["ready.json"], "nothing half-made is left beside it");
    program.kill();
}

#[track_caller]
fn check_ended_in_order(rig: &Rig, code: Option<i32>, log: &str) {
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("shut down"), "{log}");
    assert!(
        !rig.path("data/ledger.db-wal").exists(),
        "the ledger was not closed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_with_0_on_sigterm() {
    let rig = Rig::new().await;
    let program = rig.spawn(&rig.team(&["a"], json!({}))).await;
    assert_eq!(
        program
            .client()
            .token("token-alice")
            .turn(&turn("one"))
            .await
            .status,
        200
    );
    program.signal(libc::SIGTERM);
    let status = program.wait(COMMAND_MAX).await;
    check_ended_in_order(
        &rig,
        status.code(),
        &fs::read_to_string(rig.path("gateway.log")).expect("a log"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_with_0_on_sigint() {
    let rig = Rig::new().await;
    let program = rig.spawn(&rig.team(&["a"], json!({}))).await;
    program.signal(libc::SIGINT);
    let status = program.wait(COMMAND_MAX).await;
    check_ended_in_order(
        &rig,
        status.code(),
        &fs::read_to_string(rig.path("gateway.log")).expect("a log"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_aborts_in_flight_requests() {
    let rig = Rig::new().await;
    let program = rig.spawn(&rig.team(&["a"], json!({}))).await;
    let gate = Gate::new();
    rig.account("a")
        .then(tollgate_tests::upstream::Reply::ok().hold_after(1, &gate));
    let client = program.client().token("token-alice");
    let mut stream = client.start_turn(&turn("one")).await;
    stream.until("response.created").await;

    program.signal(libc::SIGTERM);
    wait_for_log(&rig, "SIGTERM").await;
    // Sooner it would count as the same signal.
    tokio::time::sleep(Duration::from_millis(60)).await;
    program.signal(libc::SIGINT);

    assert_eq!(
        program.wait(Duration::from_secs(20)).await.code(),
        Some(1),
        "sooner than limits.drain_timeout"
    );
    gate.open();
}

async fn wait_for_log(rig: &Rig, text: &str) {
    let wait = async {
        while !fs::read_to_string(rig.path("gateway.log")).is_ok_and(|log| log.contains(text)) {
            // The log is the signal; there is nothing else to wait for.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(COMMAND_MAX, wait)
        .await
        .unwrap_or_else(|_| panic!("{text:?} is not in the log"));
}
