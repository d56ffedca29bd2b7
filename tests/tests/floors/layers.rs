//! The floors of `host/src`: a module imports only from lower ones.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use crate::check_none;
use crate::source::{Source, host_sources, repository, tokens};

/// A top-level module and its floor.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Placed {
    module: String,
    floor: u32,
}

impl fmt::Display for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (floor {})", self.module, self.floor)
    }
}

/// Returns the floors that `lib.rs` gives to its modules: a module stands on the floor of the last
/// `// Floor N` above it.
fn floors(lib: &str) -> Result<BTreeMap<String, Placed>, String> {
    let mut floors = BTreeMap::new();
    let mut floor = None;
    for line in lib.lines().map(str::trim) {
        if let Some(number) = line.strip_prefix("// Floor ") {
            floor = Some(
                number
                    .trim()
                    .parse::<u32>()
                    .map_err(|_| format!("{line:?} names no floor"))?,
            );
            continue;
        }
        let item = ["pub(crate) ", "pub "]
            .iter()
            .find_map(|visibility| line.strip_prefix(visibility))
            .unwrap_or(line);
        let Some(module) = item.strip_prefix("mod ") else {
            continue;
        };
        let module = module.trim_end_matches([';', '{', ' ']).to_owned();
        let floor = floor.ok_or_else(|| format!("module {module} stands on no floor"))?;
        floors.insert(module.clone(), Placed { module, floor });
    }
    Ok(floors)
}

/// Returns the top-level module of a file: `policy` for `policy.rs` and `policy/engine.rs`.
pub(crate) fn module_of(path: &str) -> &str {
    path.split('/')
        .next()
        .unwrap_or(path)
        .trim_end_matches(".rs")
}

/// Returns how many modules a file is below the crate: 2 for `policy/engine.rs`.
fn depth_of(path: &str) -> usize {
    path.trim_end_matches("/mod.rs").split('/').count()
}

/// Returns the imports that do not lead to a lower floor, each with both modules and floors.
fn wrong_imports(sources: &[Source]) -> Result<Vec<String>, String> {
    let lib = sources
        .iter()
        .find(|source| source.path == "lib.rs")
        .ok_or("there is no lib.rs")?;
    let floors = floors(&lib.text)?;
    let mut wrong = Vec::new();
    for Source { path, code, .. } in sources {
        if matches!(path.as_str(), "lib.rs" | "main.rs") {
            continue;
        }
        let here = floors
            .get(module_of(path))
            .ok_or_else(|| format!("{path} belongs to no module of lib.rs"))?;
        for (line, module) in imports(code, depth_of(path)) {
            let Some(there) = floors
                .get(&module)
                .filter(|there| there.module != here.module)
            else {
                continue;
            };
            if there.floor == here.floor {
                wrong.push(format!(
                    "{path}:{line}: {here} imports from its sibling {there}"
                ));
            } else if there.floor > here.floor {
                wrong.push(format!(
                    "{path}:{line}: {here} imports from {there}, which is higher"
                ));
            }
        }
    }
    Ok(wrong)
}

/// Returns the top-level modules that `code` names, with their lines: after `crate::`, in the
/// braces of `crate::{…}`, and after as many `super::` as lead to the crate from `depth` modules
/// below it.
fn imports(code: &str, depth: usize) -> Vec<(usize, String)> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    // The open braces: `true` for that of a module within the file.
    let mut braces: Vec<bool> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].1 {
            "{" => braces.push(at >= 2 && tokens[at - 2].1 == "mod"),
            "}" => drop(braces.pop()),
            "crate" if tokens.get(at + 1).is_some_and(|(_, next)| *next == "::") => {
                heads(&tokens, at + 2, &mut found);
            }
            "super" if at == 0 || tokens[at - 1].1 != "::" => {
                let below = depth + braces.iter().filter(|is_module| **is_module).count();
                let supers = tokens[at..]
                    .chunks(2)
                    .take_while(|pair| matches!(pair, [(_, "super"), (_, "::")]));
                let supers = supers.count();
                if supers == below {
                    heads(&tokens, at + 2 * supers, &mut found);
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Adds the first segments of the paths at `at`: one name, or the names in braces.
fn heads(tokens: &[(usize, &str)], at: usize, found: &mut Vec<(usize, String)>) {
    let Some((line, first)) = tokens.get(at) else {
        return;
    };
    if *first != "{" {
        found.push((*line, (*first).to_owned()));
        return;
    }
    let mut depth = 0_usize;
    for (place, (line, token)) in tokens.iter().enumerate().skip(at) {
        match *token {
            "{" => depth += 1,
            "}" => depth -= 1,
            name if depth == 1 && matches!(tokens[place - 1].1, "{" | ",") => {
                found.push((*line, name.to_owned()))
            }
            _ => {}
        }
        if depth == 0 {
            return;
        }
    }
}

#[test]
fn modules_import_only_from_lower_floors() {
    check_none(&wrong_imports(&host_sources()).expect("every module stands on a floor"));
}

#[test]
fn every_module_of_the_design_stands_on_its_floor() {
    let lib = fs::read_to_string(repository().join("host/src/lib.rs")).expect("lib.rs can be read");
    let floors = floors(&lib).expect("every module stands on a floor");
    let design = [
        (0, "values"),
        (2, "config"),
        (
            3,
            "listener tls authenticate credentials sessions upstream meter ledger usage_file policy",
        ),
        (4, "pipeline"),
        (5, "server"),
        (6, "cli"),
    ];
    for (floor, modules) in design {
        for module in modules.split(' ') {
            assert_eq!(
                floors.get(module).map(|placed| placed.floor),
                Some(floor),
                "{module}"
            );
        }
    }
}

mod the_checker {
    use super::*;

    const LIB: &str = "\
        // Floor 0\npub mod values;\n// Floor 1\npub(crate) mod config;\n// Floor 2\npub mod ledger;\npub mod policy;\n\
        // Floor 3\npub mod pipeline;\n";

    fn tree(path: &str, text: &str) -> Vec<Source> {
        vec![Source::new("lib.rs", LIB), Source::new(path, text)]
    }

    #[track_caller]
    fn check(path: &str, text: &str, expected: &[&str]) {
        assert_eq!(
            wrong_imports(&tree(path, text)).expect("a good lib.rs"),
            expected
        );
    }

    #[test]
    fn lets_lower_floors_and_the_module_itself_pass() {
        check(
            "pipeline.rs",
            "use crate::ledger::Row;\nuse crate::values::money;",
            &[],
        );
        check(
            "ledger/file.rs",
            "use crate::ledger::Row;\nuse super::query;\nuse super::super::config::plain;",
            &[],
        );
        check("ledger.rs", "use crate::unknown_macro;", &[]);
    }

    #[test]
    fn names_both_modules_and_floors_of_a_sibling() {
        let expected = "ledger.rs:2: ledger (floor 2) imports from its sibling policy (floor 2)";
        check(
            "ledger.rs",
            "use std::fmt;\nuse crate::policy::Engine;",
            &[expected],
        );
    }

    #[test]
    fn names_both_modules_and_floors_of_a_higher_one() {
        let expected =
            "config/raw.rs:1: config (floor 1) imports from pipeline (floor 3), which is higher";
        check(
            "config/raw.rs",
            "pub(crate) use crate::pipeline;",
            &[expected],
        );
    }

    #[test]
    fn reads_braces_and_paths_inside_of_functions() {
        let grouped = "use crate::{\n    values::{money, config},\n    policy::{Engine, ledger},\n    pipeline,\n};";
        let sibling = "ledger.rs:3: ledger (floor 2) imports from its sibling policy (floor 2)";
        let higher =
            "ledger.rs:4: ledger (floor 2) imports from pipeline (floor 3), which is higher";
        check("ledger.rs", grouped, &[sibling, higher]);
        let inside = "fn f() {\n    let x = crate :: policy::load();\n}";
        check(
            "ledger.rs",
            inside,
            &["ledger.rs:2: ledger (floor 2) imports from its sibling policy (floor 2)"],
        );
    }

    #[test]
    fn reads_modules_within_a_file_and_what_is_for_tests() {
        let text =
            "#[cfg(test)]\nmod tests {\n    use super::*;\n    use crate::pipeline::handle;\n}";
        let expected =
            "ledger.rs:4: ledger (floor 2) imports from pipeline (floor 3), which is higher";
        check("ledger.rs", text, &[expected]);
    }

    #[test]
    fn follows_super_as_far_as_the_crate() {
        let expected =
            "ledger/file.rs:1: ledger (floor 2) imports from its sibling policy (floor 2)";
        check(
            "ledger/file.rs",
            "use super::super::policy::Engine;",
            &[expected],
        );
        check("ledger/file.rs", "use super::policy::Engine;", &[]);
        let expected = "ledger.rs:1: ledger (floor 2) imports from its sibling policy (floor 2)";
        check("ledger.rs", "use super::policy;", &[expected]);
        check("ledger.rs", "mod inner { use super::policy; }", &[]);
        let expected = "ledger.rs:1: ledger (floor 2) imports from its sibling policy (floor 2)";
        check(
            "ledger.rs",
            "fn f() {} mod inner { use super::super::{policy}; }",
            &[expected],
        );
    }

    #[test]
    fn reads_no_comments_and_strings() {
        let text = "// use crate::policy;\n/* crate::policy /* and */ crate::pipeline */\nconst A: &str = \
            \"\\\"crate::policy\"; const B: &str = r#\"\"crate::policy\"#; const C: char = '\"';\nfn f<'a>(x: &'a str) {}";
        check("ledger.rs", text, &[]);
        let after = "const C: char = '\\''; const D: &str = \"é\"; use crate::policy::Engine;";
        check(
            "ledger.rs",
            after,
            &["ledger.rs:1: ledger (floor 2) imports from its sibling policy (floor 2)"],
        );
    }

    #[test]
    fn refuses_a_module_without_a_floor() {
        assert_eq!(
            floors("pub mod values;"),
            Err("module values stands on no floor".to_owned())
        );
        assert!(floors("// Floor zero\npub mod values;").is_err());
        let stray = wrong_imports(&tree("stray.rs", ""));
        assert_eq!(
            stray,
            Err("stray.rs belongs to no module of lib.rs".to_owned())
        );
    }
}
