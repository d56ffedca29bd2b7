//! What the documents say, held against what the code does.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tollgate::config::{duration, schema};
use tollgate::values::limits::Limits;

/// The defaults of the limits, by their names.
fn defaults() -> BTreeMap<String, String> {
    let shown = format!("{:#?}", Limits::default());
    let mut defaults = BTreeMap::new();
    let mut within = String::new();
    for line in shown
        .lines()
        .skip(1)
        .map(|line| line.trim().trim_end_matches(','))
    {
        match line.split_once(": ") {
            Some((name, value)) if value.ends_with('{') => within = format!("{name}."),
            Some((name, value)) => drop(defaults.insert(format!("{within}{name}"), normal(value))),
            None => within.clear(),
        }
    }
    defaults
}

/// What the schema says of the limits below `properties`, by their names.
fn documented(schema: &Value, definition: &str, within: &str) -> BTreeMap<String, String> {
    let limits = schema["$defs"][definition]["properties"]
        .as_object()
        .expect("the limits");
    let mut documented = BTreeMap::new();
    for (name, property) in limits {
        let description = property["description"]
            .as_str()
            .expect("every limit is described");
        match property["$ref"]
            .as_str()
            .and_then(|path| path.strip_prefix("#/$defs/"))
        {
            Some(inner) => documented.extend(self::documented(schema, inner, &format!("{name}."))),
            // A switch is on, as its list says.
            None if !within.is_empty() => {
                drop(documented.insert(format!("{within}{name}"), "true".to_owned()))
            }
            None => {
                let default = description
                    .split("Default: ")
                    .nth(1)
                    .expect("every limit has a default");
                documented.insert(name.clone(), normal(default));
            }
        }
    }
    documented
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
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md"))
        .expect("the README")
}

#[test]
fn the_readme_names_every_limit_with_its_default() {
    let readme = readme();
    let table = readme
        .split("## Limits")
        .nth(1)
        .and_then(|rest| rest.split("\n## ").next())
        .expect("the section");
    let documented: BTreeMap<String, String> = table
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
            Some((
                cells.next()?.trim_end_matches('`').to_owned(),
                normal(cells.next()?),
            ))
        })
        .collect();
    assert_eq!(documented, defaults());
}

#[test]
fn the_schema_names_every_limit_with_its_default() {
    assert_eq!(documented(&schema(), "RawLimits", ""), defaults());
}

#[test]
fn the_readmes_balancer_is_the_example() {
    let example = include_str!("../../../examples/policies/fewest-in-flight/src/lib.rs");
    let code: Vec<&str> = example
        .lines()
        .filter(|line| !line.starts_with("//!"))
        .collect();
    assert!(
        readme().contains(code.join("\n").trim()),
        "the README shows another balancer than the example"
    );
}
