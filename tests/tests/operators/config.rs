//! The output of `tollgate check`. A case is a folder of `tests/cases/config` with `case.json`,
//! what the command writes to standard error (`case.stderr`) and, if it accepts the configuration,
//! what it writes to standard output (`case.stdout`). The command runs in a folder with the case
//! and the files of [`write_fixtures`].
//!
//! `UPDATE_CASES=1` rewrites the expected files; review every change. `CASE=NAME` runs the cases
//! whose name contains `NAME`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, Mutex};
use std::thread;

use rcgen::CertifiedKey;
use serde_json::{Value, json};
use tempfile::TempDir;
use tollgate_tests::binary;

/// A part of every secret in every case, as a text and as a number. No output may contain either.
const CANARIES: [&str; 2] = ["canary", "8675309"];

/// What a command printed, and its exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CheckOutput {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// A self-signed certificate, its key, and the key of another certificate.
static CERTIFICATE: LazyLock<[String; 3]> = LazyLock::new(|| {
    let made = |name: &str| {
        rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate can be made")
    };
    let CertifiedKey { cert, signing_key } = made("localhost");
    [
        cert.pem(),
        signing_key.serialize_pem(),
        made("other").signing_key.serialize_pem(),
    ]
});

/// Writes the files that every case can name.
fn write_fixtures(folder: &Path) {
    let write = |name: &str, content: &[u8]| {
        fs::write(folder.join(name), content).expect("a fixture can be written")
    };
    let [certificate, key, other_key] = &*CERTIFICATE;
    write("cert.pem", certificate.as_bytes());
    write("key.pem", key.as_bytes());
    write("other-key.pem", other_key.as_bytes());
    write(
        "text.txt",
        b"canary-text: neither JSON nor PEM nor WebAssembly\n",
    );
    write("empty", b"");
    write("key-auth.json", br#"{ "OPENAI_API_KEY": "sk-canary" }"#);
    for tag in ["a", "b"] {
        let auth = tollgate_tests::oauth_file(
            &format!("canary-access-{tag}"),
            &format!("canary-account-{tag}"),
        );
        write(&format!("{tag}.json"), auth.to_string().as_bytes());
    }
    write("module.wasm", b"\0asm\x01\0\0\0");
    write("nothing.wasm", COMPONENT);
    write("broken.wasm", b"\0asm\x0d\0\x01\0\xff\xff");
    let pricer = exports(&[
        "tollgate:policy/lifecycle@0.1.0",
        "tollgate:policy/pricer@0.1.0",
    ]);
    write("pricer.wasm", &[COMPONENT, &pricer].concat());
    write(
        "sockets.wasm",
        &[COMPONENT, &imports(&["wasi:sockets/tcp@0.2.6"]), &pricer].concat(),
    );
    fs::create_dir(folder.join("folder")).expect("a folder can be made");
}

/// The header of a WebAssembly component, which is also an empty component.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// Returns a component's section that imports instances with these names.
fn imports(names: &[&str]) -> Vec<u8> {
    section(10, names, &[0x05, 0x00])
}

/// Returns a component's section that exports instances with these names.
fn exports(names: &[&str]) -> Vec<u8> {
    section(11, names, &[0x05, 0x00, 0x00])
}

fn section(id: u8, names: &[&str], what: &[u8]) -> Vec<u8> {
    let small = |length: usize| {
        u8::try_from(length)
            .ok()
            .filter(|length| *length < 0x80)
            .expect("one byte of LEB128")
    };
    let mut content = vec![small(names.len())];
    for name in names {
        content.extend([0x00, small(name.len())]);
        content.extend(name.as_bytes());
        content.extend(what);
    }
    [&[id, small(content.len())], content.as_slice()].concat()
}

/// Runs `tollgate check -c FILE` in `folder`, with an empty environment except for `HOME`.
fn check(folder: &Path, file: &str) -> CheckOutput {
    run(command(folder, file), folder)
}

fn command(folder: &Path, file: &str) -> Command {
    let mut command = Command::new(binary());
    command
        .args(["check", "-c", file])
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder);
    command
}

/// Runs `command` and replaces `folder` in its output.
fn run(mut command: Command, folder: &Path) -> CheckOutput {
    let output = command
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    let folder = folder.to_str().expect("temporary folders have plain names");
    let text = |bytes: Vec<u8>| {
        String::from_utf8(bytes)
            .expect("messages are UTF-8")
            .replace(folder, "$FOLDER")
    };
    CheckOutput {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Runs `tollgate check` of `content`.
fn check_text(content: impl AsRef<[u8]>) -> CheckOutput {
    let folder = folder();
    fs::write(folder.path().join("case.json"), content).expect("the case can be written");
    check(folder.path(), "case.json")
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_fixtures(folder.path());
    folder
}

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/config")
}

fn names() -> Vec<String> {
    let entries = fs::read_dir(cases()).expect("the cases are there");
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("cases have plain names")
        })
        .filter(|name| std::env::var("CASE").map_or(true, |wanted| name.contains(&wanted)))
        .collect();
    names.sort();
    names
}

/// Returns how the output of the case differs from its files, if it does.
fn failure(name: &str) -> Option<String> {
    let place = cases().join(name);
    let output = check_text(fs::read(place.join("case.json")).expect("a case has a case.json"));
    if std::env::var_os("UPDATE_CASES").is_some() {
        fs::write(place.join("case.stderr"), &output.stderr).expect("the case can be written");
        match output.code {
            Some(0) => fs::write(place.join("case.stdout"), &output.stdout)
                .expect("the case can be written"),
            _ => drop(fs::remove_file(place.join("case.stdout"))),
        }
    }
    let accepted = fs::read_to_string(place.join("case.stdout")).ok();
    let expected = CheckOutput {
        code: Some(i32::from(accepted.is_none())),
        stdout: accepted.unwrap_or_default(),
        stderr: fs::read_to_string(place.join("case.stderr")).expect("a case has a case.stderr"),
    };
    let leaks = [&output.stdout, &output.stderr]
        .into_iter()
        .any(|text| is_quoted(text));
    if leaks {
        return Some(format!("{name}: a secret is quoted\n{}", shown(&output)));
    }
    (output != expected).then(|| {
        format!(
            "{name}: expected\n{}found\n{}",
            shown(&expected),
            shown(&output)
        )
    })
}

fn is_quoted(text: &str) -> bool {
    CANARIES.iter().any(|canary| text.contains(canary))
}

fn shown(output: &CheckOutput) -> String {
    let indented = |text: &str| {
        text.lines()
            .map(|line| format!("    {line}\n"))
            .collect::<String>()
    };
    format!(
        "  exit {:?}\n{}{}",
        output.code,
        indented(&output.stdout),
        indented(&output.stderr)
    )
}

#[test]
fn every_case_prints_what_its_files_contain() {
    let names = names();
    assert!(!names.is_empty(), "no case has that name");
    let left = Mutex::new(names.iter());
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(name) = left.lock().expect("no test panics here").next() else {
                        return;
                    };
                    let failure = failure(name);
                    failures
                        .lock()
                        .expect("no test panics here")
                        .extend(failure);
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect("no test panics here");
    failures.sort();
    assert!(
        failures.is_empty(),
        "{} of {} cases\n\n{}",
        failures.len(),
        names.len(),
        failures.join("\n")
    );
}

/// A script can read the output: each problem is one line that begins with the file's name.
#[test]
fn every_line_of_a_rejection_names_the_file() {
    for name in names() {
        let text = fs::read_to_string(cases().join(&name).join("case.stderr"))
            .expect("a case has a case.stderr");
        assert!(
            text.lines()
                .all(|line| line.starts_with("tollgate: case.json: ")),
            "{name}: {text}"
        );
    }
}

#[track_caller]
fn check_rejected(output: &CheckOutput, expected: &str) {
    assert_eq!(
        (output.code, output.stdout.as_str()),
        (Some(1), ""),
        "{output:?}"
    );
    assert_eq!(output.stderr, expected);
}

#[test]
fn a_missing_file_is_reported() {
    let output = check(folder().path(), "nowhere.json");
    check_rejected(
        &output,
        "tollgate: nowhere.json: cannot read it: no such file or directory\n",
    );
}

#[test]
fn a_folder_is_reported() {
    let output = check(folder().path(), "folder");
    check_rejected(
        &output,
        "tollgate: folder: cannot read it: expected a file, found a folder\n",
    );
}

/// Makes `command` run without the capabilities by which root reads files regardless of their mode.
/// It stays the same user, so that it can still be started from a private folder.
fn without_root_override(command: &mut Command) {
    const DAC_OVERRIDE: libc::c_ulong = 1;
    const DAC_READ_SEARCH: libc::c_ulong = 2;
    // SAFETY: getuid and prctl are async-signal-safe and touch no memory of this process.
    unsafe {
        if libc::getuid() != 0 {
            return;
        }
        command.pre_exec(|| {
            for capability in [DAC_OVERRIDE, DAC_READ_SEARCH] {
                if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

#[test]
fn a_file_without_read_permission_is_reported() {
    let folder = folder();
    let file = folder.path().join("case.json");
    fs::write(&file, "{}").expect("the case can be written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).expect("it is ours");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let mut command = command(folder.path(), "case.json");
    without_root_override(&mut command);
    check_rejected(
        &run(command, folder.path()),
        "tollgate: case.json: cannot read it: permission denied\n",
    );
}

#[test]
fn a_file_that_fails_while_it_is_read_is_reported() {
    // A process's memory at address 0: a file that can be opened and not read.
    let output = check(folder().path(), "/proc/self/mem");
    check_rejected(
        &output,
        "tollgate: /proc/self/mem: cannot read it: input/output error\n",
    );
}

/// Runs `tollgate check -c /dev/stdin` with `content` in a pipe.
fn check_piped(content: &[u8]) -> CheckOutput {
    let folder = folder();
    let mut command = command(folder.path(), "/dev/stdin");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    // The command may close the pipe before it has read everything.
    let _ = child.stdin.take().expect("it is piped").write_all(content);
    let output = child.wait_with_output().expect("the binary ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("messages are UTF-8");
    CheckOutput {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

#[test]
fn a_configuration_can_be_read_from_a_pipe() {
    let output =
        check_piped(br#"{ "services": [{ "type": "ocm", "credential_path": "a.json" }] }"#);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_pipe_is_limited_like_a_file() {
    let output = check_piped(&vec![b' '; 17 * 1024 * 1024]);
    assert!(
        output.code == Some(1) && output.stderr.contains("expected at most 16777216 bytes"),
        "{output:?}"
    );
}

#[test]
fn a_file_of_17_mebibytes_is_rejected_without_reading_it() {
    let folder = folder();
    let file = fs::File::create(folder.path().join("case.json")).expect("the case can be written");
    file.set_len(17 * 1024 * 1024)
        .expect("the case can be written");
    let output = check(folder.path(), "case.json");
    let expected =
        "tollgate: case.json: cannot read it: expected at most 16777216 bytes, found more\n";
    check_rejected(&output, expected);
}

#[test]
fn a_hundred_thousand_nested_lists_are_rejected_in_one_line() {
    let output = check_text("[".repeat(100_000));
    check_rejected(
        &output,
        "tollgate: case.json: line 1 column 129: expected at most 128 levels of nesting, found more\n",
    );
}

#[test]
fn a_large_file_that_is_not_json_is_rejected_in_one_line() {
    let output = check_text(vec![b'['; 8 * 1024 * 1024]);
    assert_eq!(
        (output.code, output.stderr.lines().count()),
        (Some(1), 1),
        "{:.2000}",
        output.stderr
    );
}

/// A configuration with a value of nearly every kind. [`SECRET_PLACES`] lists where its secrets
/// are.
fn whole() -> Value {
    json!({
        "log": { "level": "info", "output": "stderr", "format": "json", "timestamp": true },
        "services": [{
            "type": "ocm", "tag": "x", "listen": "127.0.0.1", "listen_port": 1,
            "credentials": [{ "tag": "a", "credential_path": "a.json", "reserve_5h": 20, "detour": "out" },
                { "tag": "pool", "type": "balancer", "strategy": "random", "credentials": ["a"],
                  "poll_interval": "60s", "rebalance_threshold": 0 },
                { "tag": "x", "type": "external", "url": "http://127.0.0.1", "token": "t", "poll_interval": "60s" }],
            "users": [{ "name": "alice", "token": "t", "credential": "a", "allow_external_usage": true }],
            "headers": { "x-a": "b", "x-b": ["c"] },
            "endpoints": { "chatgpt": "http://127.0.0.1", "api": "http://127.0.0.1", "token": "http://127.0.0.1" },
            "tls": { "enabled": false, "key": "k", "alpn": ["h2"], "min_version": "1.2" },
            "pricer": "p", "rewriters": [],
        }],
        "outbounds": [{ "type": "direct", "tag": "out" }],
        "policies": [{ "tag": "p", "kind": "pricer", "path": "builtin:openai-pricing", "timeout": "5ms",
            "memory": 16777216, "config": { "shipped_prices": true } }],
        "data_dir": "data",
        "limits": { "drain_timeout": "30s", "ledger_full": "refuse", "sessions": 1,
            "failover": { "unauthorized": true } },
    })
}

const SECRET_PLACES: [&str; 6] = [
    "/services/0/users/0/token",
    "/services/0/credentials/2/token",
    // A URL may contain a user and a password.
    "/services/0/credentials/2/url",
    "/services/0/headers/x-a",
    "/services/0/headers/x-b/0",
    "/services/0/tls/key",
];

/// Returns what is reported for [`whole`] with `wrong` at `place`. It runs in this process, because
/// there are hundreds of calls.
fn report_with(place: &str, wrong: &Value) -> String {
    let mut case = whole();
    *case.pointer_mut(place).expect("the place exists") = wrong.clone();
    match tollgate::config::parse(&case.to_string()) {
        Ok(loaded) => format!("{:?}", loaded.warnings),
        Err(error) => format!("{error}\n{error:?}"),
    }
}

#[test]
fn a_secret_in_a_value_of_the_wrong_type_is_never_quoted() {
    assert!(
        tollgate::config::parse(&whole().to_string()).is_ok(),
        "the case is valid until a value is replaced"
    );
    let mut quoted = Vec::new();
    for place in places(&whole(), "") {
        for wrong in [
            json!(["canary"]),
            json!([["canary"]]),
            json!([{ "x": "canary" }]),
            json!({ "x": ["canary"] }),
        ] {
            let output = report_with(&place, &wrong);
            // An unknown name in a list of names is quoted.
            let is_name = place.ends_with("/credentials") || place.ends_with("/rewriters");
            if is_quoted(&output) && !is_name {
                quoted.push(format!("{place} = {wrong}: {output}"));
            }
        }
    }
    assert!(
        quoted.is_empty(),
        "{} places\n{}",
        quoted.len(),
        quoted.join("\n")
    );
}

#[test]
fn a_secret_at_its_own_place_is_never_quoted() {
    let secrets = [
        json!("canary with blanks"),
        json!("canary\n"),
        json!("canary\u{e9}"),
        json!(8_675_309),
        json!({
            "type": "canary", "value": 8_675_309,
        }),
    ];
    let mut quoted = Vec::new();
    for place in SECRET_PLACES {
        for secret in &secrets {
            let output = report_with(place, secret);
            if is_quoted(&output) {
                quoted.push(format!("{place} = {secret}: {output}"));
            }
        }
    }
    assert!(
        quoted.is_empty(),
        "{} places\n{}",
        quoted.len(),
        quoted.join("\n")
    );
}

/// Returns the JSON pointers of everything in `value`.
fn places(value: &Value, here: &str) -> Vec<String> {
    let mut found = Vec::new();
    let below: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), value))
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(place, item)| (place.to_string(), item))
            .collect(),
        _ => Vec::new(),
    };
    for (name, value) in below {
        let path = format!("{here}/{}", name.replace('~', "~0").replace('/', "~1"));
        found.push(path.clone());
        found.extend(places(value, &path));
    }
    found
}

#[test]
fn problems_of_form_meaning_and_files_are_reported_in_one_run() {
    let case = json!({
        "services": [{
            "type": "ocm",
            "listen_port": "80",
            "listen": "localhost",
            "users": [{ "name": "alice", "token": "canary-1" }, { "name": "alice", "token": "canary-2" }],
        }],
        "policies": [{ "tag": "p", "kind": "pricer", "path": "nowhere.wasm" }],
    });
    let output = check_text(case.to_string());
    assert_eq!(output.code, Some(1));
    for place in [
        "services[0].listen_port: ",
        "services[0].listen: ",
        "services[0].users[1].name: ",
        "policies[0]",
    ] {
        assert!(
            output.stderr.contains(place),
            "{place} is not in\n{}",
            output.stderr
        );
    }
}

#[test]
fn a_check_leaves_no_files_behind() {
    let folder = folder();
    let config =
        json!({ "services": [{ "type": "ocm", "usages_path": "u.json" }], "data_dir": "data" });
    fs::write(folder.path().join("case.json"), config.to_string())
        .expect("the case can be written");
    let listed = || {
        let entries = fs::read_dir(folder.path()).expect("the folder can be read");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        names
    };
    let before = listed();
    assert_eq!(check(folder.path(), "case.json").code, Some(0));
    assert_eq!(listed(), before);
}

#[test]
fn a_configuration_can_be_in_a_folder_with_an_odd_name() {
    let folder = folder();
    let odd = folder.path().join("two words, \"quoted\"");
    fs::create_dir(&odd).expect("a folder can be made");
    let mut file = fs::File::create(odd.join("case.json")).expect("the case can be written");
    file.write_all(b"[]").expect("the case can be written");
    let output = check(folder.path(), "two words, \"quoted\"/case.json");
    check_rejected(
        &output,
        "tollgate: two words, \"quoted\"/case.json: expected an object, found an array\n",
    );
}
