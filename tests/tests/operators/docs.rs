//! The documents, compared with the code: limits, metrics, commands, fields, columns, links and the
//! example policy.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::tempdir;
use tollgate::config::schema;
use tollgate::values::limits::{LimitDeclaration, Limits};
use tollgate_tests::{binary, tollgate};

use crate::metrics::FAMILIES;

const DOCUMENTS: [&str; 11] = [
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "deploy/README.md",
    "docs/configuration.md",
    "docs/design.md",
    "docs/limits.md",
    "docs/operators-guide.md",
    "docs/policies.md",
    "docs/style.md",
];

const README_WORDS_MAX: usize = 1500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns the part of `text` below the heading `title`, up to the next heading of the same level.
#[track_caller]
fn section<'a>(text: &'a str, title: &str) -> &'a str {
    let (_, rest) = text
        .split_once(&format!("\n## {title}\n"))
        .unwrap_or_else(|| panic!("no section {title:?}"));
    rest.split("\n## ").next().unwrap_or(rest)
}

/// Returns the rows of the tables in `text` whose first cell is code: its names, and the other
/// cells.
fn rows(text: &str) -> Vec<(Vec<&str>, Vec<&str>)> {
    text.lines()
        .filter_map(|line| {
            let row = line.strip_prefix("| `")?.strip_suffix('|')?;
            let mut cells = row.split(" | ").map(str::trim);
            let names = cells.next()?.split(", ").map(|name| name.trim_matches('`'));
            Some((names.collect(), cells.collect()))
        })
        .collect()
}

/// Returns the names in the first cells of the tables in `text`.
fn names(text: &str) -> BTreeSet<&str> {
    rows(text)
        .into_iter()
        .flat_map(|(names, _)| names)
        .collect()
}

/// Returns the lines of the code blocks in `text`.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split("```")
        .skip(1)
        .step_by(2)
        .flat_map(|block| block.lines().skip(1))
}

#[test]
fn the_limits_page_names_every_limit_with_its_default() {
    let page = document("docs/limits.md");
    let documented: Vec<&str> = page
        .split("\nTwo more limits")
        .next()
        .expect("the first table")
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    let declared: Vec<String> = Limits::declarations()
        .iter()
        .map(LimitDeclaration::table_row)
        .collect();
    assert!(
        documented == declared,
        "the table in docs/limits.md should be\n{}",
        declared.join("\n")
    );
}

#[test]
fn the_schema_names_every_limit_with_its_default() {
    let schema = schema();
    let description = |definition: &str, name: &str| {
        schema["$defs"][definition]["properties"][name]["description"].clone()
    };
    for limit in Limits::declarations() {
        let described = match limit.group_and_name() {
            (None, name) => description("RawLimits", name),
            (Some(_), name) => description("RawFailover", name),
        };
        let expected = format!("{} Default: `{}`.", limit.description, limit.default);
        assert_eq!(described, expected, "{}", limit.name);
    }
}

#[test]
fn the_configuration_page_names_every_field() {
    let page = document("docs/configuration.md");
    let schema = schema();
    let is_supported = |field: &Value| {
        let description = field["description"].as_str().unwrap_or_default();
        !description.starts_with("Not supported")
    };
    let forms = schema["$defs"].as_object().expect("the schema has forms");
    let limits = ["RawLimits", "RawFailover"];
    let forms = forms
        .iter()
        .filter(|(name, _)| !limits.contains(&name.as_str()))
        .map(|(_, form)| form)
        .chain([&schema]);
    let fields: BTreeSet<&str> = forms
        .filter_map(|form| form["properties"].as_object())
        .flatten()
        .filter(|(_, field)| is_supported(field))
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names(&page), fields);
}

#[test]
fn the_operators_guide_names_every_metric_with_its_type() {
    let guide = document("docs/operators-guide.md");
    let documented: BTreeSet<(&str, &str)> = rows(section(&guide, "Metrics"))
        .into_iter()
        .map(|(names, cells)| (names[0], cells[0]))
        .collect();
    assert_eq!(documented, BTreeSet::from(FAMILIES));
}

/// Returns the subcommands of `command` that its help lists, except `help`.
fn subcommands(command: &[&str]) -> Vec<String> {
    let help = tollgate(command.iter().chain(&["--help"])).stdout;
    let list = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    list.lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
        .map(str::to_owned)
        .collect()
}

/// Returns every command as it is typed, such as `tollgate policy list`.
fn commands() -> BTreeSet<String> {
    let mut commands = BTreeSet::new();
    for name in subcommands(&[]) {
        let nested = subcommands(&[&name]);
        if nested.is_empty() {
            commands.insert(format!("tollgate {name}"));
        }
        for nested in nested {
            commands.insert(format!("tollgate {name} {nested}"));
        }
    }
    commands
}

#[test]
fn the_operators_guide_names_every_command() {
    let guide = document("docs/operators-guide.md");
    let documented: BTreeSet<String> = names(section(&guide, "Commands"))
        .into_iter()
        .map(str::to_owned)
        .collect();
    assert_eq!(documented, commands());
}

#[test]
fn every_command_in_the_documents_exists() {
    let commands = commands();
    for name in DOCUMENTS {
        for line in code_lines(&document(name)) {
            let typed = line.split('#').next().unwrap_or_default().trim();
            if !typed.starts_with("tollgate ") {
                continue;
            }
            let Some(command) = commands.iter().find(|command| {
                typed == command.as_str() || typed.starts_with(&format!("{command} "))
            }) else {
                panic!("{name}: {typed}: there is no such command");
            };
            let help = tollgate(command.split(' ').skip(1).chain(["--help"])).stdout;
            for option in typed.split(' ').filter(|word| word.starts_with('-')) {
                assert!(
                    help.contains(option),
                    "{name}: {typed}: {option} is unknown"
                );
            }
        }
    }
}

#[test]
fn every_make_target_in_the_documents_exists() {
    let makefile = document("Makefile");
    for name in DOCUMENTS {
        for line in code_lines(&document(name)) {
            let Some(rest) = line.strip_prefix("make ") else {
                continue;
            };
            let target = rest.split(' ').next().unwrap_or_default();
            let is_target = |line: &str| line.starts_with(&format!("{target}:"));
            let is_known = target == "help" || makefile.lines().any(is_target);
            assert!(is_known, "{name}: {line}: there is no such target");
        }
    }
}

#[test]
fn the_authors_guide_names_every_column_of_a_balancer() {
    let contract = document("wit/policy.wit");
    let (_, columns) = contract
        .split_once("one row per member:")
        .expect("the contract lists the columns");
    let (columns, _) = columns.split_once("members: func").expect("the list ends");
    let columns: BTreeSet<&str> = columns
        .lines()
        .filter_map(|line| line.trim().strip_prefix("/// - "))
        .filter_map(|line| line.split_once(": "))
        .flat_map(|(names, _)| names.split(", "))
        .map(|name| name.trim_matches('`'))
        .collect();
    let guide = document("docs/policies.md");
    assert_eq!(names(section(&guide, "A balancer")), columns);
}

/// Returns the texts between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn is_module(path: &Path) -> bool {
    path.is_dir() || path.with_extension("rs").is_file()
}

#[test]
fn the_architecture_names_modules_and_tests_that_exist() {
    let text = document("ARCHITECTURE.md");
    let (layout, invariants) = (section(&text, "Layout"), section(&text, "Invariants"));
    let sources = root().join("host/src");
    let is_floor = |line: &&str| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit();
    for module in layout.lines().filter(is_floor).flat_map(quoted) {
        assert!(is_module(&sources.join(module)), "{module}: no such module");
    }
    let (_, rooms) = layout.split_once("| parts |").expect("the table of parts");
    for (names, cells) in rows(rooms) {
        for room in quoted(cells[0]) {
            let path = sources.join(names[0]).join(room);
            assert!(is_module(&path), "{}/{room}: no such module", names[0]);
        }
    }
    for row in invariants.lines().filter(is_floor) {
        let tests = row.split(" | ").last().unwrap_or_default();
        for test in quoted(tests).filter(|test| test.contains('/')) {
            let path = root().join("tests/tests").join(test);
            assert!(is_module(&path), "{test}: no such tests");
        }
    }
}

#[test]
fn every_link_in_the_documents_leads_to_a_file() {
    for name in DOCUMENTS {
        let text = document(name);
        let folder = root().join(name);
        let folder = folder.parent().expect("a document is in a folder");
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://")) {
            let file = link.split('#').next().unwrap_or_default();
            assert!(folder.join(file).exists(), "{name}: {link}: no such file");
        }
    }
}

#[test]
fn the_readme_is_short() {
    let words = document("README.md").split_whitespace().count();
    assert!(words <= README_WORDS_MAX, "{words} words");
}

#[test]
fn the_readmes_balancer_is_the_example() {
    let example = document("examples/policies/fewest-in-flight/src/lib.rs");
    let code: Vec<&str> = example
        .lines()
        .filter(|line| !line.starts_with("//!"))
        .collect();
    assert!(
        document("README.md").contains(code.join("\n").trim()),
        "the README shows another balancer than the example"
    );
}

#[test]
fn the_readmes_team_passes_the_check_with_the_readmes_certificate() {
    let readme = document("README.md");
    let team = section(&readme, "Five minutes for a team");
    let block = |begin: &str| {
        let (_, rest) = team.split_once(begin).expect(begin);
        rest.split("```").next().unwrap_or(rest)
    };
    let folder = tempdir().expect("a folder");
    fs::write(folder.path().join("team.json"), block("```jsonc\n")).expect("a configuration");
    let commands = format!("openssl req {}", block("```\nopenssl req "));
    let created = Command::new("sh")
        .args(["-ec", commands.as_str()])
        .current_dir(&folder)
        .output();
    let created = created.expect("a shell runs");
    if created.status.code() == Some(127) {
        eprintln!("openssl is not installed: no certificate to check");
        return;
    }
    let token = String::from_utf8_lossy(&created.stdout);
    assert_eq!(token.trim().len(), 48, "{created:?}");
    let checked = Command::new(binary())
        .args(["check", "-c", "team.json"])
        .current_dir(&folder)
        .output();
    let checked = checked.expect("the binary runs");
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(
        said.contains("ok: 1 service, 2 credentials, 2 users"),
        "{checked:?}"
    );
}

#[test]
fn signals_of_the_documents_reach_one_process() {
    for name in DOCUMENTS {
        for line in code_lines(&document(name)) {
            let is_to_all = line.contains("pidof") || line.contains("killall");
            assert!(!is_to_all, "{name}: {line}");
            if line.contains("systemctl kill") {
                assert!(line.contains("--kill-whom=main"), "{name}: {line}");
            }
        }
    }
}
