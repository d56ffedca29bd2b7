//! What the documents say, held against what the code does.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tollgate::config::{duration, schema};
use tollgate::values::limits::Limits;

/// The defaults of the limits, by their names.
fn defaults() -> BTreeMap<String, String> {
    let shown = format!("{:#?}", Limits::default());
    let fields = shown.lines().filter_map(|line| line.trim().trim_end_matches(',').split_once(": "));
    fields.map(|(name, value)| (name.to_owned(), normal(value))).collect()
}

/// A value in one spelling, whether it was written by a person or by `Debug`.
fn normal(value: &str) -> String {
    let value = value.trim_matches(['`', '"', '.']).to_lowercase();
    let value = value.split(" (").next().unwrap_or_default();
    match duration::parse(value) {
        Some(duration) => format!("{} ms", duration.as_millis()),
        None => value.to_owned(),
    }
}

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).expect("the README")
}

#[test]
fn the_readme_names_every_limit_with_its_default() {
    let readme = readme();
    let table = readme.split("## Limits").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the section");
    let documented: BTreeMap<String, String> = table
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
            Some((cells.next()?.trim_end_matches('`').to_owned(), normal(cells.next()?)))
        })
        .collect();
    assert_eq!(documented, defaults());
}

#[test]
fn the_schema_names_every_limit_with_its_default() {
    let schema = schema();
    let limits = schema["$defs"]["RawLimits"]["properties"].as_object().expect("the limits");
    let documented: BTreeMap<String, String> = limits
        .iter()
        .map(|(name, property)| {
            let description = property["description"].as_str().expect("every limit is described");
            let default = description.split("Default: ").nth(1).expect("every limit has a default");
            (name.clone(), normal(default))
        })
        .collect();
    assert_eq!(documented, defaults());
}

#[test]
fn the_readmes_balancer_is_the_example() {
    let example = include_str!("../../examples/policies/fewest-in-flight/src/lib.rs");
    let code: Vec<&str> = example.lines().filter(|line| !line.starts_with("//!")).collect();
    assert!(readme().contains(code.join("\n").trim()), "the README shows another balancer than the example");
}
