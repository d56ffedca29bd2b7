//! Only `platform` calls what some operating systems lack.

use crate::check_none;
use crate::source::{Source, host_sources, without_tests};

/// What not every system has.
const SPECIFIC: [&str; 7] = [
    "std::os::",
    "rustix::",
    "libc::",
    "sd_notify::",
    "signal::unix",
    "net::Unix",
    "process_group(",
];

/// Where the options of TCP sockets are set: each call stands in a function for one system.
const OPTIONS: [&str; 3] = [
    "listener/socket.rs",
    "listener/stream.rs",
    "upstream/dial/sockets.rs",
];

fn calls(source: &Source) -> Vec<String> {
    let code = without_tests(&source.code);
    let lines = code.lines().zip(1..);
    lines
        .flat_map(|(line, number)| {
            let found = SPECIFIC.iter().filter(move |text| line.contains(*text));
            found.map(move |text| format!("{}:{number}: {text}", source.path))
        })
        .collect()
}

#[test]
fn only_the_platform_calls_what_some_systems_lack() {
    let found: Vec<String> = host_sources()
        .iter()
        .filter(|source| !source.is_test() && !source.path.starts_with("platform"))
        .filter(|source| !OPTIONS.contains(&&*source.path))
        .flat_map(calls)
        .collect();
    check_none(&found);
}

#[test]
fn the_check_names_the_line() {
    let source = Source::new("a.rs", "fn f() {\n    rustix::process::getppid();\n}");
    assert_eq!(calls(&source), ["a.rs:2: rustix::"]);
}
