//! The commands as a shell sees them: what they print and where, their exit codes, and what `run`
//! does with ports, folders, its ready file and signals.
//!
//! `UPDATE_CASES=1` writes the expected help texts (`tests/cases/help`) again. Read each before you
//! commit it.

mod config_schema;
mod help;
mod refresh_credential;
mod run;
mod usage;

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
        let shows_usage =
            said.stderr.contains("Usage: tollgate") || said.stderr.contains("try '--help'");
        assert!(shows_usage, "{args:?}: {}", said.stderr);
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
