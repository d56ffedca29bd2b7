//! `tollgate status`: what it reports about a running gateway, and the admin socket that it uses.

mod no_gateway;
mod socket;
mod states;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tollgate_tests::{Rig, binary};

/// The output of a command and its exit code.
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn status(config: &Path, more: &[&str]) -> Said {
    let output = Command::new(binary())
        .arg("status")
        .arg("-c")
        .arg(config)
        .args(more)
        .output();
    let output = output.expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints UTF-8");
    Said {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Returns the table of the gateway that runs with `config.json`.
fn table(rig: &Rig) -> String {
    let said = status(&rig.path("config.json"), &[]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    said.stdout
}

fn json_of(rig: &Rig) -> (String, Value) {
    let said = status(&rig.path("config.json"), &["--json"]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    let value = serde_json::from_str(&said.stdout).expect("it prints JSON");
    (said.stdout, value)
}

fn of<'a>(status: &'a Value, tag: &str) -> &'a Value {
    let credentials = status["services"][0]["credentials"]
        .as_array()
        .expect("a list");
    let found = credentials
        .iter()
        .find(|credential| credential["credential"] == tag);
    found.unwrap_or_else(|| panic!("{tag} is not in {status:#}"))
}
