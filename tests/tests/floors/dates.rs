//! No test depends on the date: a time in an auth.json, a configuration or a ledger is relative to
//! the clock, so that the tests pass next year too.

use std::fs;

use crate::check_none;
use crate::source::{files, repository};

/// The folders whose files are read.
const FOLDERS: [&str; 3] = ["host/src/", "tests/", "guest-sdk/"];

/// Tests of parsing and printing: their dates are compared with no clock.
const ABOUT_DATES: [&str; 3] = [
    "host/src/credentials/refresh/tests.rs",
    "host/src/usage_file/tests.rs",
    "host/src/values/clock.rs",
];

/// Returns the lines that contain an absolute time of this century, outside of comments. A date
/// alone may be a part of a model's name or a version.
fn absolute_times(text: &str) -> Vec<usize> {
    let lines = text.lines().map(str::trim).zip(1..);
    lines
        .filter(|(line, _)| !line.starts_with("//") && has_time(line))
        .map(|(_, number)| number)
        .collect()
}

/// Whether `line` contains `20YY-MM-DDT`.
fn has_time(line: &str) -> bool {
    const FORM: &[u8] = b"20dd-dd-ddT";
    let fits = |(byte, form): (&u8, &u8)| match form {
        b'd' => byte.is_ascii_digit(),
        form => byte == form,
    };
    line.as_bytes()
        .windows(FORM.len())
        .any(|window| window.iter().zip(FORM).all(fits))
}

#[test]
fn no_test_contains_an_absolute_time() {
    let root = repository();
    let mut found = Vec::new();
    for path in files(&root) {
        let is_read =
            path.ends_with(".rs") && FOLDERS.iter().any(|folder| path.starts_with(folder));
        if !is_read || ABOUT_DATES.contains(&&*path) {
            continue;
        }
        let text = fs::read_to_string(root.join(&path)).expect("a source can be read");
        for line in absolute_times(&text) {
            found.push(format!("{path}:{line}: expected a time relative to now"));
        }
    }
    check_none(&found);
}

#[test]
fn the_check_finds_times_and_no_versions() {
    let day = "2026-01-01";
    let text = format!(
        "// {day}T00:00:00Z\n\"{day}\"\n\"gpt-5.4-{day}\"\n\"{day}T00:00:00Z\"\nat: \"{day}T1\""
    );
    assert_eq!(absolute_times(&text), [4, 5]);
}
