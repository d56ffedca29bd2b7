//! The output of `tollgate check`. A case is a folder of `tests/cases/config` with `case.json`,
//! what the command writes to standard error (`case.stderr`) and, if it accepts the configuration,
//! what it writes to standard output (`case.stdout`). The command runs in a folder with the case
//! and the files of [`write_fixtures`].
//!
//! `UPDATE_CASES=1` rewrites the expected files; review every change. `CASE=NAME` runs the cases
//! whose name contains `NAME`.

mod cases;
mod files;
mod meaning;
mod secrets;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use rcgen::{CertificateParams, CertifiedKey, KeyPair};
use tempfile::TempDir;
use tollgate_tests::{Authority, binary};

/// A part of every secret in every case, as a text and as a number. No output may contain either.
const CANARIES: [&str; 2] = ["canary", "8675309"];

/// What a command printed, and its exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckOutput {
    pub(crate) code: Option<i32>,
    stdout: String,
    pub(crate) stderr: String,
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
    for (name, content) in chains(key) {
        write(name, content.as_bytes());
    }
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

/// Returns further certificates: of the key in `key.pem`, outside their validity and beside another,
/// and a chain whose key is `chain-key.pem`.
fn chains(key: &str) -> [(&'static str, String); 6] {
    let key = KeyPair::from_pem(key).expect("the key of the fixtures");
    let of_years = |from, until| {
        let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        params.self_signed(&key).expect("it can be signed").pem()
    };
    let authority = Authority::new();
    let leaf = authority.sign(&["localhost"]);
    [
        ("expired.pem", of_years(2001, 2002)),
        ("future.pem", of_years(3000, 3001)),
        ("cert-and-other.pem", of_years(2001, 4000) + &authority.pem),
        ("chain.pem", format!("{}{}", leaf.pem, authority.pem)),
        (
            "chain-out-of-order.pem",
            format!("{}{}", authority.pem, leaf.pem),
        ),
        ("chain-key.pem", leaf.key),
    ]
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
pub(crate) fn check_text(content: impl AsRef<[u8]>) -> CheckOutput {
    let folder = folder();
    fs::write(folder.path().join("case.json"), content).expect("the case can be written");
    check(folder.path(), "case.json")
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_fixtures(folder.path());
    folder
}

pub(crate) fn is_quoted(text: &str) -> bool {
    CANARIES.iter().any(|canary| text.contains(canary))
}
