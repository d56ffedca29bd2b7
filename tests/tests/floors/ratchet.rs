//! Numbers of faults by file that may only fall, in lists beside this file: a number and a path on
//! each line.
//!
//! `UPDATE_COUNTS=1 cargo test --test floors` writes the lists again if no sum
//! rose.

use std::collections::BTreeMap;
use std::{env, fs};

use crate::check_none;
use crate::source::repository;

/// Fails if `counts` differ from the list in file `list`: a number may neither rise nor stay
/// behind.
#[track_caller]
pub(crate) fn check_ratchet(list: &str, what: &str, counts: &BTreeMap<String, usize>) {
    let file = repository().join("tests/tests/floors").join(list);
    let allowed = parse(&fs::read_to_string(&file).expect("the list can be read"));
    if env::var_os("UPDATE_COUNTS").is_some() {
        // The sum, so that files may be moved.
        let (sum, sum_allowed): (usize, usize) = (counts.values().sum(), allowed.values().sum());
        assert!(
            sum <= sum_allowed,
            "{sum} {what}, allowed are {sum_allowed}"
        );
        let lines: String = counts
            .iter()
            .map(|(path, count)| format!("{count} {path}\n"))
            .collect();
        fs::write(file, lines).expect("the list can be written");
        return;
    }
    check_none(&differences(what, counts, &allowed));
}

fn parse(list: &str) -> BTreeMap<String, usize> {
    list.lines()
        .map(|line| {
            let (count, path) = line.split_once(' ').expect("a number and a path");
            (path.to_owned(), count.parse().expect("a number"))
        })
        .collect()
}

fn differences(
    what: &str,
    counts: &BTreeMap<String, usize>,
    allowed: &BTreeMap<String, usize>,
) -> Vec<String> {
    let mut found = Vec::new();
    for (path, count) in counts {
        let allowed = allowed.get(path).copied().unwrap_or_default();
        if *count > allowed {
            found.push(format!("{path}: {count} {what}, allowed are {allowed}"));
        }
    }
    for (path, allowed) in allowed {
        let count = counts.get(path).copied().unwrap_or_default();
        if count < *allowed {
            found.push(format!(
                "{path}: {count} {what}, lower the number from {allowed}"
            ));
        }
    }
    found
}

#[test]
fn the_ratchet_rejects_more_and_fewer() {
    let counts = parse("2 a.rs\n1 b.rs\n1 c.rs");
    let allowed = parse("1 a.rs\n3 b.rs\n1 c.rs\n1 d.rs");
    assert_eq!(
        differences("words", &counts, &allowed),
        [
            "a.rs: 2 words, allowed are 1",
            "b.rs: 1 words, lower the number from 3",
            "d.rs: 0 words, lower the number from 1",
        ]
    );
}
