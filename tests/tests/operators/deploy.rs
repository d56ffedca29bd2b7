//! What it takes to run the gateway as a service: the files in `deploy/`, health checks, completions
//! and manual pages.

mod chart;
mod containers;
mod systemd;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tempfile::tempdir;
use tollgate::values::limits::Limits;
use tollgate_tests::upstream::{Gate, Reply};
use tollgate_tests::{Rig, tollgate, turn};

/// Returns the text of a file of this repository.
#[track_caller]
fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[track_caller]
fn deploy(name: &str) -> String {
    file(&format!("deploy/{name}"))
}

/// Checks that a gateway that is stopped has more time than its requests in flight.
#[track_caller]
fn check_grace_period(seconds: &str) {
    let seconds = seconds.parse().expect("a number of seconds");
    assert!(Duration::from_secs(seconds) > Limits::default().drain_timeout);
}

/// Returns the arguments of every `tollgate` that the file starts, whether it writes them as words
/// or as a list.
fn started(text: &str) -> Vec<Vec<String>> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| {
            let (_, rest) = line
                .split_once("/bin/tollgate ")
                .or_else(|| line.split_once("[/tollgate, "))
                .or_else(|| line.split_once("[\"/tollgate\", "))
                .or_else(|| line.split_once("CMD [\"run\"").map(|_| ("", &line[5..])))?;
            let rest = rest.split(']').next().unwrap_or(rest);
            let words = rest.split([' ', ',']).map(|word| word.trim_matches('"'));
            Some(
                words
                    .filter(|word| !word.is_empty())
                    .map(str::to_owned)
                    .collect(),
            )
        })
        .collect()
}

#[test]
fn the_files_start_commands_and_options_that_exist() {
    for (name, count) in [
        ("tollgate.service", 2),
        ("Dockerfile", 2),
        ("helm/tollgate/templates/deployment.yaml", 3),
    ] {
        let started = started(&deploy(name));
        assert_eq!(started.len(), count, "{name}: {started:?}");
        for words in started {
            let help = tollgate([words[0].as_str(), "--help"]);
            assert_eq!(help.code, Some(0), "{name}: {words:?}: {}", help.stderr);
            for option in words.iter().filter(|word| word.starts_with("--")) {
                assert!(help.stdout.contains(option.as_str()), "{name}: {words:?}");
            }
        }
    }
}

#[test]
fn every_shell_has_completions_that_name_the_commands() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let printed = tollgate(["completions", shell]);
        assert_eq!(printed.code, Some(0), "{shell}: {}", printed.stderr);
        for word in ["explain", "ready-file", "health"] {
            assert!(printed.stdout.contains(word), "{shell}: no {word}");
        }
        assert!(!printed.stdout.contains("refresh-credential"), "{shell}");
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = tempdir().expect("a folder");
    let pages = folder.path().join("share/man1");
    let written = tollgate(["man".as_ref(), pages.as_os_str()]);
    assert_eq!(written.code, Some(0), "{}", written.stderr);
    for name in ["tollgate", "tollgate-run", "tollgate-policy-list"] {
        let page = fs::read_to_string(pages.join(format!("{name}.1"))).expect(name);
        assert!(
            page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"),
            "{name}"
        );
        let title = format!(
            ".TH {name} 1 \" \" \"tollgate {}\"",
            env!("CARGO_PKG_VERSION")
        );
        assert!(page.lines().any(|line| line.trim_end() == title), "{page}");
        assert!(!page.contains("see a summary"), "{page}");
    }
    assert!(!pages.join("tollgate-refresh-credential.1").exists());
    assert!(!pages.join("tollgate-help.1").exists());
    let nested = fs::read_to_string(pages.join("tollgate-policy-list.1")).expect("a page");
    let (_, see_also) = nested.split_once(".SH \"SEE ALSO\"\n").expect("a section");
    assert_eq!(see_also, "tollgate(1), tollgate\\-policy(1)\n");
    let file: PathBuf = pages.join("tollgate.1");
    let refused = tollgate(["man".as_ref(), file.as_os_str()]);
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains("cannot write to"),
        "{}",
        refused.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_the_gateway_from_before_its_start_to_its_end() {
    let rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    let file = rig.write("config.json", config.to_string());
    let health = |more: &[&str]| {
        let said = tollgate(["health", "-c", &file].iter().chain(more));
        (said.code, said.stdout + &said.stderr)
    };
    let (code, said) = health(&[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("is the gateway running"), "{said}");
    let program = rig.spawn(&config).await;
    assert_eq!(health(&[]), (Some(0), String::new()));
    let gate = Gate::new();
    rig.account("a").then(Reply::ok().hold_after(2, &gate));
    let stream = program.client().start_turn(&turn("held")).await;
    gate.wait_until_reached().await;
    program.signal(libc::SIGTERM);
    let draining = loop {
        let (code, said) = health(&[]);
        if code != Some(0) {
            break said;
        }
    };
    assert_eq!(draining, "tollgate: the gateway is shutting down\n");
    assert_eq!(health(&["--live"]), (Some(0), String::new()));
    gate.open();
    assert!(stream.finish().await.whole);
}
