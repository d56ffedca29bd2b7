//! The commands as a shell sees them: what they print and where, their exit codes, and what `run`
//! does with ports, folders, its ready file and signals.
//!
//! `UPDATE_CASES=1` writes the expected help texts (`tests/cases/help`) again. Read each before you
//! commit it.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tollgate_tests::upstream::Gate;
use tollgate_tests::{Rig, binary, turn, wait_for_rows};

/// The longest time for a command: a debug build compiles its policies first.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// What a command printed, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs `tollgate` in `folder` to its end, with nothing in its environment but `HOME`.
fn tollgate(folder: &Path, args: &[&str]) -> Said {
    tollgate_given(folder, args, b"")
}

/// As [`tollgate`], with `input` on its standard input.
fn tollgate_given(folder: &Path, args: &[&str], input: &[u8]) -> Said {
    let mut command = Command::new(binary());
    command
        .args(args)
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder);
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.expect("the binary runs");
    // It may end without reading it.
    let _ = child.stdin.take().expect("it is piped").write_all(input);
    let pid = libc::pid_t::try_from(child.id()).expect("a process id");
    let (sender, ended) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = ended.recv_timeout(COMMAND_MAX) else {
        // SAFETY: kill has no memory to be unsafe with, and the child is not reaped yet.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        panic!("tollgate {args:?} does not end");
    };
    let output = output.expect("the binary ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("messages are UTF-8");
    Said {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn text_of(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

mod help {
    use super::*;

    fn cases() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/help")
    }

    #[track_caller]
    fn check(name: &str, args: &[&str]) {
        let said = tollgate(folder().path(), args);
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
        let path = cases().join(name);
        if std::env::var_os("UPDATE_CASES").is_some() {
            fs::write(&path, &said.stdout).expect("the case can be written");
        }
        let expected =
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(said.stdout, expected, "{}", path.display());
    }

    /// The commands that the help of `args` names, without `help`.
    fn commands(args: &[&str]) -> Vec<String> {
        let said = tollgate(folder().path(), args);
        let list = said
            .stdout
            .split("Commands:\n")
            .nth(1)
            .expect("commands are listed");
        let names = list
            .lines()
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_whitespace().next());
        names
            .filter(|name| *name != "help")
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn of_the_program_is_as_expected() {
        check("tollgate.txt", &["--help"]);
        check("tollgate.txt", &["help"]);
    }

    #[test]
    fn of_every_command_is_as_expected() {
        let commands = commands(&["--help"]);
        for wanted in [
            "run",
            "check",
            "status",
            "usage",
            "policy",
            "explain",
            "version",
            "config-schema",
        ] {
            assert!(
                commands.contains(&wanted.to_owned()),
                "{wanted} is not among {commands:?}"
            );
        }
        for name in commands {
            check(&format!("{name}.txt"), &[&name, "--help"]);
            check(&format!("{name}.txt"), &["help", &name]);
        }
    }

    #[test]
    fn of_every_policy_command_is_as_expected() {
        for name in commands(&["policy", "--help"]) {
            check(&format!("policy-{name}.txt"), &["policy", &name, "--help"]);
            check(&format!("policy-{name}.txt"), &["policy", "help", &name]);
        }
    }

    #[test]
    fn fits_a_page_of_100_columns() {
        for entry in fs::read_dir(cases()).expect("the cases are there") {
            let path = entry.expect("an entry").path();
            let text = fs::read_to_string(&path).expect("a case can be read");
            assert!(
                text.lines().all(|line| line.chars().count() <= 100),
                "{}",
                path.display()
            );
        }
    }
}

#[test]
fn the_version_is_that_of_the_workspace() {
    let expected = Said {
        code: Some(0),
        stdout: format!("tollgate {}\n", env!("CARGO_PKG_VERSION")),
        stderr: String::new(),
    };
    for args in [["version"], ["--version"], ["-V"]] {
        assert_eq!(tollgate(folder().path(), &args), expected, "{args:?}");
    }
}

#[test]
fn wrong_usage_ends_with_2_and_a_message_on_standard_error() {
    let uses: [&[&str]; 15] = [
        &[],
        &["rum"],
        &["--config", "x.json"],
        &["run", "x.json"],
        &["run", "-c"],
        &["run", "--redy-file", "x"],
        &["check"],
        &["check", "x.json"],
        &["status", "x.json"],
        &["status", "--csv"],
        &["usage", "--by", "nonsense"],
        &["usage", "--json", "--csv"],
        &["version", "now"],
        &["config-schema", "--json"],
        &["refresh-credential", "auth.json"],
    ];
    for args in uses {
        let said = tollgate(folder().path(), args);
        assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""), "{args:?}");
        let is_told =
            said.stderr.contains("Usage: tollgate") || said.stderr.contains("try '--help'");
        assert!(is_told, "{args:?}: {}", said.stderr);
    }
}

#[test]
fn a_misspelt_command_names_the_nearest() {
    assert!(
        tollgate(folder().path(), &["chek"])
            .stderr
            .contains("'check'")
    );
    assert!(
        tollgate(folder().path(), &["run", "--redy-file", "x"])
            .stderr
            .contains("'--ready-file'")
    );
}

#[test]
fn a_bad_configuration_ends_every_command_that_reads_it_with_1() {
    let folder = folder();
    fs::write(folder.path().join("case.json"), "{}").expect("a file");
    let said = "tollgate: case.json: services: expected at least one service of type \"ocm\", found none\n";
    for command in ["run", "check", "status", "usage"] {
        let expected = Said {
            code: Some(1),
            stdout: String::new(),
            stderr: said.to_owned(),
        };
        assert_eq!(
            tollgate(folder.path(), &[command, "-c", "case.json"]),
            expected,
            "{command}"
        );
    }
}

#[test]
fn output_to_a_closed_pipe_does_not_panic() {
    for args in [&["config-schema"][..], &["version"], &["--help"]] {
        let mut command = Command::new(binary());
        let child = command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.expect("the binary runs");
        // As by `tollgate config-schema | head -0`.
        drop(child.stdout.take());
        let mut said = String::new();
        child
            .stderr
            .take()
            .expect("it is piped")
            .read_to_string(&mut said)
            .expect("messages are UTF-8");
        child.wait().expect("it ends");
        assert!(!said.contains("panicked"), "{args:?}: {said}");
    }
}

/// What the gateway runs to refresh a credential's tokens.
mod refresh_credential {
    use super::*;

    const COMMAND: &str = "refresh-credential";

    #[test]
    fn is_not_shown_in_help() {
        for args in [&["--help"][..], &["-h"], &["help"], &[]] {
            let said = tollgate(folder().path(), args);
            assert!(
                !(said.stdout + &said.stderr).contains("refresh"),
                "{args:?}"
            );
        }
    }

    #[test]
    fn without_a_refresh_request_ends_with_1_and_a_message() {
        let canary =
            br#"{ "job": { "path": "auth.json", "due": "canary" }, "endpoint": "canary" }"#;
        let inputs: [&[u8]; 9] = [
            b"",
            b"canary\n",
            b"{}",
            b"[]",
            b"null",
            b"\"",
            canary,
            b"\xff\xfe",
            &[b'['; 1 << 20],
        ];
        for input in inputs {
            let folder = folder();
            let said = tollgate_given(folder.path(), &[COMMAND], input);
            let start: String = String::from_utf8_lossy(input).chars().take(40).collect();
            assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""), "{start}");
            let is_one_line = said.stderr.starts_with("tollgate: standard input: ")
                && said.stderr.lines().count() == 1;
            assert!(
                is_one_line && !said.stderr.contains("canary"),
                "{start}: {}",
                said.stderr
            );
            let left = fs::read_dir(folder.path())
                .expect("the folder can be read")
                .count();
            assert_eq!(left, 0, "{start}: something was made");
        }
    }
}

mod config_schema {
    use super::*;

    fn printed() -> Value {
        let said = tollgate(folder().path(), &["config-schema"]);
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
        serde_json::from_str(&said.stdout).expect("the schema is JSON")
    }

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    fn example(name: &str) -> Value {
        let text = fs::read_to_string(root().join("examples/configs").join(name))
            .expect("the example is there");
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect();
        let mut text = lines.join("\n");
        // JSON has no trailing commas; the examples have each before a line that closes.
        while let Some(at) = trailing_comma(&text) {
            text.remove(at);
        }
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn trailing_comma(text: &str) -> Option<usize> {
        text.match_indices(',')
            .map(|(at, _)| at)
            .find(|at| text[at + 1..].trim_start().starts_with(['}', ']']))
    }

    #[test]
    fn is_the_one_that_is_checked_in() {
        let path = root().join("host/config.schema.json");
        let kept = fs::read_to_string(&path).unwrap_or_default();
        let printed = tollgate(folder().path(), &["config-schema"]).stdout;
        assert!(
            kept == printed,
            "write it again: cargo run -p tollgate -- config-schema > host/config.schema.json"
        );
    }

    #[test]
    fn is_a_json_schema_that_says_of_which_draft() {
        let schema = printed();
        assert_eq!(
            schema["$schema"],
            "https://json-schema.org/draft/2020-12/schema"
        );
        jsonschema::meta::validate(&schema).expect("a JSON Schema");
        jsonschema::validator_for(&schema).expect("a JSON Schema that can be used");
    }

    #[test]
    fn accepts_the_examples() {
        let validator = jsonschema::validator_for(&printed()).expect("a JSON Schema");
        for name in ["single.json", "users.json", "team.json", "full.jsonc"] {
            let problems: Vec<String> = validator
                .iter_errors(&example(name))
                .map(|error| error.to_string())
                .collect();
            assert!(problems.is_empty(), "{name}: {problems:?}");
        }
    }

    #[test]
    fn refuses_what_the_gateway_refuses() {
        let validator = jsonschema::validator_for(&printed()).expect("a JSON Schema");
        let service = |fields: Value| json!({ "services": [fields] });
        for case in [
            json!([]),
            json!({ "servces": [] }),
            service(json!({ "type": "ocn" })),
            service(json!({ "type": "ocm", "listen_port": 70000 })),
            service(json!({ "type": "ocm", "credentials": [{ "tag": "a", "reserve_5h": 100 }] })),
            service(json!({ "type": "ocm", "users": [{ "name": "alice", "token": 5 }] })),
            json!({ "policies": [{ "tag": "p", "kind": "judge" }] }),
            json!({ "limits": { "drain_timeout": "30" } }),
        ] {
            assert!(!validator.is_valid(&case), "{case}");
        }
    }

    #[test]
    fn describes_every_field() {
        let schema = printed();
        let forms = schema["$defs"].as_object().expect("forms").iter();
        let silent: Vec<String> = forms
            .filter_map(|(name, form)| Some((name, form["properties"].as_object()?)))
            .flat_map(|(name, fields)| {
                fields
                    .iter()
                    .map(move |(field, about)| (format!("{name}.{field}"), about))
            })
            .filter(|(_, about)| about["description"].as_str().is_none_or(str::is_empty))
            .map(|(name, _)| name)
            .collect();
        assert!(silent.is_empty(), "{silent:?}");
    }
}

mod run {
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
    fn on_an_address_of_another_machine_says_so() {
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
    fn with_a_data_dir_that_is_a_file_says_so() {
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
    fn with_a_data_dir_that_cannot_be_made_says_so() {
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
    fn with_a_ledger_that_is_none_says_so_and_leaves_it_alone() {
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
    async fn with_the_data_dir_of_another_gateway_says_so_and_leaves_that_one_alone() {
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
    fn with_a_log_that_cannot_be_written_says_so() {
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
    fn with_a_ready_file_that_cannot_be_written_says_so() {
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
    fn never_takes_a_credential_for_a_usage_file() {
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
    async fn a_second_signal_cuts_what_the_first_let_finish() {
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
}

mod usage {
    use super::*;

    /// A rig whose gateway has served alice two turns and bob one, and was stopped.
    async fn served() -> Rig {
        let mut rig = Rig::new().await;
        let config = rig.team(&["a"], json!({}));
        rig.write("case.json", config.to_string());
        let client = rig.start(config).await;
        for (token, session) in [
            ("token-alice", "one"),
            ("token-alice", "one"),
            ("token-bob", "two"),
        ] {
            assert_eq!(client.token(token).turn(&turn(session)).await.status, 200);
        }
        rig.stop().await;
        rig
    }

    fn usage(rig: &Rig, args: &[&str]) -> String {
        let said = tollgate(
            rig.folder(),
            &[&["usage", "-c", "case.json"], args].concat(),
        );
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
        said.stdout
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn is_a_table_for_people() {
        let rig = served().await;
        let expected = "\
user   requests  not complete  input  cached  output  reasoning     cost  unpriced
----------------------------------------------------------------------------------
alice         2             0  2,400   1,600     300        100  $0.0069         0
bob           1             0  1,200     800     150         50  $0.0035         0
----------------------------------------------------------------------------------
all           3             0  3,600   2,400     450        150  $0.0104         0
";
        let table = usage(&rig, &[]);
        assert_eq!(table, expected);
        assert_eq!(
            usage(&rig, &["--by", "user"]),
            table,
            "by user is the default"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn sums_what_the_ledger_has_in_every_form() {
        let rig = served().await;
        let rows = wait_for_rows(&rig.ledger(), 3).await;
        let of = |user: &str, column: &str| -> i64 {
            let of_user = rows.iter().filter(|row| row.text("user") == Some(user));
            of_user
                .map(|row| row.number(column).expect("a number"))
                .sum()
        };

        let found: Value = serde_json::from_str(&usage(&rig, &["--json"])).expect("JSON");
        let row = |user: &str, requests: i64| {
            json!({
                "user": user, "requests": requests, "not_complete": 0,
                "input_tokens": of(user, "input_tokens"), "cached_tokens": of(user, "cached_tokens"),
                "output_tokens": of(user, "output_tokens"), "reasoning_tokens": of(user, "reasoning_tokens"),
                "cost_nanousd": of(user, "cost_nanousd"), "unpriced": 0,
            })
        };
        assert_eq!(
            found,
            json!([row("alice", 2), row("bob", 1)]),
            "the most expensive first"
        );

        let csv = usage(&rig, &["--csv"]);
        let line = |user: &str, requests: i64| {
            let cost = of(user, "cost_nanousd");
            let tokens = [
                "input_tokens",
                "cached_tokens",
                "output_tokens",
                "reasoning_tokens",
            ]
            .map(|name| of(user, name));
            let tokens: Vec<String> = tokens.iter().map(i64::to_string).collect();
            format!(
                "{user},{requests},0,{},{}.{:09},0\n",
                tokens.join(","),
                cost / 1_000_000_000,
                cost % 1_000_000_000
            )
        };
        let head = "user,requests,not_complete,input,cached,output,reasoning,cost_usd,unpriced\n";
        assert_eq!(csv, format!("{head}{}{}", line("alice", 2), line("bob", 1)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn can_be_summed_by_each_thing() {
        let rig = served().await;
        let started = wait_for_rows(&rig.ledger(), 3).await[0]
            .number("started_at")
            .expect("a number");
        let at = time::OffsetDateTime::from_unix_timestamp(started / 1000).expect("a time");
        for (by, expected) in [
            ("model", "gpt-5.4".to_owned()),
            ("credential", "a".to_owned()),
            ("day", at.date().to_string()),
        ] {
            let found: Value =
                serde_json::from_str(&usage(&rig, &["--by", by, "--json"])).expect("JSON");
            assert_eq!(
                (&found[0][by], &found[0]["requests"]),
                (&json!(expected), &json!(3)),
                "{by}"
            );
            assert_eq!(found.as_array().map(Vec::len), Some(1), "{by}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn is_told_while_the_gateway_runs() {
        let mut rig = Rig::new().await;
        let config = rig.team(&["a"], json!({}));
        rig.write("case.json", config.to_string());
        let client = rig.start(config).await.token("token-alice");
        client.turn(&turn("one")).await;
        wait_for_rows(&rig.ledger(), 1).await;
        assert!(usage(&rig, &["--csv"]).contains("\nalice,1,0,"));
        assert_eq!(
            client.turn(&turn("one")).await.status,
            200,
            "and the gateway keeps running"
        );
        rig.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_a_ledger_without_requests_is_empty_in_every_form() {
        let mut rig = Rig::new().await;
        let config = rig.team(&["a"], json!({}));
        rig.write("case.json", config.to_string());
        rig.start(config).await;
        rig.stop().await;
        assert_eq!(usage(&rig, &[]), "no requests yet\n");
        assert_eq!(usage(&rig, &["--json"]), "[]\n");
        let head = "user,requests,not_complete,input,cached,output,reasoning,cost_usd,unpriced\n";
        assert_eq!(usage(&rig, &["--csv"]), head);
    }

    #[track_caller]
    fn check_refused(folder: &Path, expected: &str) {
        for form in [&[][..], &["--json"], &["--csv"]] {
            let said = tollgate(folder, &[&["usage", "-c", "case.json"], form].concat());
            let expected = Said {
                code: Some(1),
                stdout: String::new(),
                stderr: format!("tollgate: {expected}\n"),
            };
            assert_eq!(said, expected);
        }
    }

    fn with_config() -> TempDir {
        let folder = folder();
        let config = json!({ "services": [{ "type": "ocm" }], "data_dir": "data" });
        fs::write(folder.path().join("case.json"), config.to_string()).expect("a file");
        folder
    }

    #[test]
    fn of_a_missing_ledger_asks_whether_the_gateway_has_run() {
        let folder = with_config();
        let expected = "no ledger at data/ledger.db: has the gateway run with this data_dir?";
        check_refused(folder.path(), expected);
        assert!(
            !folder.path().join("data").exists(),
            "reading makes nothing"
        );
    }

    #[test]
    fn of_a_file_that_is_no_ledger_says_so() {
        let folder = with_config();
        fs::create_dir(folder.path().join("data")).expect("a folder");
        fs::write(
            folder.path().join("data/ledger.db"),
            "my diary\n".repeat(100),
        )
        .expect("a file");
        let expected = "data/ledger.db: expected a Tollgate ledger, found another kind of file; the file was not changed";
        check_refused(folder.path(), expected);
    }

    /// A gateway that was killed while it made its ledger leaves one.
    #[test]
    fn of_an_empty_file_is_told_in_words() {
        let folder = with_config();
        fs::create_dir(folder.path().join("data")).expect("a folder");
        fs::write(folder.path().join("data/ledger.db"), "").expect("a file");
        let said = tollgate(folder.path(), &["usage", "-c", "case.json"]);
        assert!(
            !said.stderr.contains("no such table"),
            "SQL is shown: {}",
            said.stderr
        );
    }

    #[test]
    fn without_a_configuration_looks_where_run_would_write() {
        let folder = folder();
        let said = tollgate(folder.path(), &["usage"]);
        let ledger = folder.path().join(".local/share/tollgate/ledger.db");
        assert_eq!(said.code, Some(1));
        assert!(said.stderr.contains(text_of(&ledger)), "{}", said.stderr);
    }
}
