//! Files that cannot be read, pipes, and files that are too large.

use std::ffi::CStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use super::{CheckOutput, check, check_text, command, folder, run};

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
fn what_the_gateway_could_not_write_is_a_warning() {
    let folder = folder();
    let locked = folder.path().join("locked");
    fs::create_dir(&locked).expect("a folder can be made");
    for name in ["a.json", "key-auth.json"] {
        fs::rename(folder.path().join(name), locked.join(name)).expect("a file can be moved");
    }
    let config = json!({
        "services": [{
            "type": "ocm",
            "credentials": [
                { "tag": "a", "credential_path": "locked/a.json", "usages_path": "locked/u.json" },
                { "tag": "key", "credential_path": "locked/key-auth.json" },
                { "tag": "b", "credential_path": "b.json", "usages_path": "nowhere/u.json" },
            ],
        }],
        "data_dir": "locked/new/data",
    });
    fs::write(folder.path().join("case.json"), config.to_string())
        .expect("the case can be written");
    let mode = |mode| fs::set_permissions(&locked, fs::Permissions::from_mode(mode));
    mode(0o555).expect("it is ours");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let mut command = command(folder.path(), "case.json");
    without_root_override(&mut command);
    let output = run(command, folder.path());
    mode(0o755).expect("it is ours");
    let expected = [
        "service \"ocm\", credential \"a\": its tokens cannot be refreshed: the folder $FOLDER/locked is not writable",
        "service \"ocm\", credential \"a\": locked/u.json cannot be written: the folder locked is not writable",
        "service \"ocm\", credential \"b\": nowhere/u.json cannot be written: there is no folder nowhere",
        "data_dir: the gateway cannot start: the folder locked is not writable",
    ];
    let lines: Vec<&str> = output
        .stderr
        .lines()
        .filter_map(|line| line.strip_prefix("tollgate: case.json: warning: "))
        .collect();
    assert_eq!((output.code, lines.as_slice()), (Some(0), &expected[..]));
}

#[test]
fn a_data_dir_that_is_a_file_is_a_warning() {
    let folder = folder();
    let config = json!({
        "services": [{ "type": "ocm", "credential_path": "a.json" }],
        "data_dir": "text.txt",
    });
    fs::write(folder.path().join("case.json"), config.to_string())
        .expect("the case can be written");
    let output = check(folder.path(), "case.json");
    let expected = "tollgate: case.json: warning: data_dir: the gateway cannot start: text.txt is not a folder\n";
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), expected));
}

/// Returns the home folder of this user in the user database.
fn home_in_the_user_database() -> Option<String> {
    // SAFETY: the entry is copied at once, and no other test reads the database.
    unsafe {
        let entry = libc::getpwuid(libc::geteuid());
        if entry.is_null() {
            return None;
        }
        let home = CStr::from_ptr((*entry).pw_dir).to_str();
        Some(home.expect("home folders have plain names").to_owned())
    }
}

#[test]
fn without_home_the_home_folder_is_that_of_the_user_database() {
    let folder = folder();
    fs::write(
        folder.path().join("case.json"),
        r#"{ "services": [{ "type": "ocm" }], "data_dir": "data" }"#,
    )
    .expect("the case can be written");
    let mut command = command(folder.path(), "case.json");
    command.env_remove("HOME");
    let output = run(command, folder.path());
    let Some(home) = home_in_the_user_database() else {
        assert!(
            output.stderr.contains("missing: there is no default"),
            "{output:?}"
        );
        return;
    };
    let path = Path::new(&home).join(".codex/auth.json");
    // The warning is there unless this user has such a file.
    let expected = format!("cannot read {}: ", path.display());
    assert!(
        path.exists() || output.stderr.contains(&expected),
        "{expected}: {output:?}"
    );
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
