//! The cases of `tests/cases/config`: what a check prints for each.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{fs, thread};

use super::{CheckOutput, check_text, is_quoted};

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
