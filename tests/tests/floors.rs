//! The floors of `host/src`: a module imports only from lower ones. Beside that, who may name which crate, and who may
//! print. Read from the sources, without their comments and strings.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// A source file: its path below `src`, and its text.
type Source = (String, String);

/// A top-level module and the floor that it stands on.
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

/// The floors that `lib.rs` gives to its modules: each stands on that of the last `// Floor N` before it.
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
        let Some(module) = line.trim_start_matches("pub ").strip_prefix("mod ") else {
            continue;
        };
        let module = module.trim_end_matches([';', '{', ' ']).to_owned();
        let floor = floor.ok_or_else(|| format!("module {module} stands on no floor"))?;
        floors.insert(module.clone(), Placed { module, floor });
    }
    Ok(floors)
}

/// The top-level module that a file belongs to: `policy` for `policy.rs` and `policy/engine.rs`.
fn module_of(path: &str) -> &str {
    path.split('/')
        .next()
        .unwrap_or(path)
        .trim_end_matches(".rs")
}

/// How many modules a file is below the crate: `policy/engine.rs` is 2.
fn depth_of(path: &str) -> usize {
    path.trim_end_matches("/mod.rs").split('/').count()
}

/// What is wrong with the floors of these sources, each with both modules and floors.
fn wrong_imports(sources: &[Source]) -> Result<Vec<String>, String> {
    let lib = sources
        .iter()
        .find(|(path, _)| path == "lib.rs")
        .ok_or("there is no lib.rs")?;
    let floors = floors(&lib.1)?;
    let mut wrong = Vec::new();
    for (path, text) in sources
        .iter()
        .filter(|(path, _)| !matches!(path.as_str(), "lib.rs" | "main.rs"))
    {
        let here = floors
            .get(module_of(path))
            .ok_or_else(|| format!("{path} belongs to no module of lib.rs"))?;
        for (line, module) in imports(&code(text), depth_of(path)) {
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

/// `text` with blanks in place of comments and of what stands in strings and characters. Lines stay lines.
fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let taken = blank(rest);
        let kept = if taken == 0 { letter.len_utf8() } else { 0 };
        code.push_str(&rest[..kept]);
        let blanks = rest[kept..kept.max(taken)].chars();
        code.extend(blanks.map(|letter| if letter == '\n' { '\n' } else { ' ' }));
        rest = &rest[kept.max(taken)..];
    }
    code
}

/// How many bytes of a comment, a string or a character `rest` begins with.
fn blank(rest: &str) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    if let Some(hashes) = raw_string(rest) {
        let end = format!("\"{}", "#".repeat(hashes));
        let start = hashes + 2;
        return rest[start..]
            .find(&end)
            .map_or(rest.len(), |at| start + at + end.len());
    }
    match rest.as_bytes() {
        [b'"', ..] => quoted(rest, '"'),
        // A character, not a lifetime: it ends with a quotation mark.
        [b'\'', b'\\', ..] => quoted(rest, '\''),
        [b'\'', ..] if rest.chars().nth(2) == Some('\'') => {
            rest.char_indices().nth(3).map_or(rest.len(), |(at, _)| at)
        }
        _ => 0,
    }
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// The number of `#` of a raw string that `rest` begins with.
fn raw_string(rest: &str) -> Option<usize> {
    let rest = rest.strip_prefix('r')?;
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    rest[hashes..].starts_with('"').then_some(hashes)
}

fn quoted(rest: &str, end: char) -> usize {
    let mut escaped = false;
    for (at, letter) in rest.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if letter == end => return at + letter.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

/// The top-level modules that `code` names, with their lines: after `crate::`, in the braces of a `crate::{…}`, and
/// after as many `super::` as lead to the crate from `depth` modules below it.
fn imports(code: &str, depth: usize) -> Vec<(usize, String)> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    // Braces that are open, each by whether it is that of a module within the file.
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

/// The first segments of the paths at `at`: one name, or those in braces.
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

/// Words, `::` and single other letters, with their lines.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut tokens = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(letter) = rest.chars().next() {
            let length = if is_of_word(letter) {
                rest.find(|letter| !is_of_word(letter))
                    .unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                letter.len_utf8()
            };
            tokens.push((number + 1, &rest[..length]));
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

fn is_of_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Where `word` stands in code of modules other than `allowed`.
fn strays(sources: &[Source], word: &str, allowed: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources
        .iter()
        .filter(|(path, _)| !allowed.contains(&module_of(path)))
    {
        let code = code(text);
        let lines = tokens(&code)
            .into_iter()
            .filter(|(_, token)| *token == word)
            .map(|(line, _)| line);
        found.extend(lines.map(|line| format!("{path}:{line}: {word}")));
    }
    found
}

fn host() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../host")
}

fn sources() -> Vec<Source> {
    let root = host().join("src");
    let mut sources = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the sources are there") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path
                    .strip_prefix(&root)
                    .expect("below it")
                    .to_str()
                    .expect("plain names")
                    .to_owned();
                sources.push((
                    name,
                    fs::read_to_string(&path).expect("a source can be read"),
                ));
            }
        }
    }
    sources.sort();
    sources
}

#[track_caller]
fn check_none(found: Vec<String>) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn modules_import_only_from_lower_floors() {
    let sources = sources();
    assert!(
        sources.len() > 30,
        "only {} sources were found",
        sources.len()
    );
    check_none(wrong_imports(&sources).expect("every module stands on a floor"));
}

#[test]
fn every_module_of_the_design_stands_on_its_floor() {
    let lib = fs::read_to_string(host().join("src/lib.rs")).expect("lib.rs can be read");
    let floors = floors(&lib).expect("every module stands on a floor");
    let design = [
        (0, "values"),
        (1, "config"),
        (
            2,
            "listener tls authenticate credentials sessions upstream meter ledger usage_file policy",
        ),
        (3, "pipeline"),
        (4, "server"),
        (5, "cli"),
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

#[test]
fn only_policy_names_wasmtime() {
    check_none(strays(&sources(), "wasmtime", &["policy"]));
}

#[test]
fn only_tls_and_upstream_name_rustls() {
    for crate_name in [
        "rustls",
        "tokio_rustls",
        "hyper_rustls",
        "rustls_native_certs",
    ] {
        check_none(strays(&sources(), crate_name, &["tls", "upstream"]));
    }
}

#[test]
fn only_cli_prints() {
    for print in ["println", "eprintln", "print", "eprint", "dbg"] {
        let sources: Vec<Source> = sources();
        let calls = |(path, text): &Source| {
            let code = code(text);
            let tokens = tokens(&code);
            let called = tokens
                .windows(2)
                .any(|pair| pair[0].1 == print && pair[1].1 == "!");
            (module_of(path) != "cli" && called).then(|| format!("{path}: {print}!"))
        };
        check_none(sources.iter().filter_map(calls).collect());
    }
}

/// The crates that host's manifest names, in any of its tables.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut dependencies = Vec::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(table) = line.strip_prefix('[') {
            let table = table.trim_matches(['[', ']']);
            inside = table.ends_with("dependencies");
            if let Some((_, name)) = table.split_once("dependencies.") {
                dependencies.push(name.to_owned());
            }
        } else if inside && let Some((name, _)) = line.split_once(['.', '=', ' ']) {
            dependencies.push(name.trim().to_owned());
        }
    }
    dependencies
}

#[test]
fn the_binary_is_built_without_the_guest_sdk_and_the_scripted_upstream() {
    let manifest = fs::read_to_string(host().join("Cargo.toml")).expect("the manifest can be read");
    let named = dependencies(&manifest);
    assert!(named.contains(&"wasmtime".to_owned()), "{named:?}");
    for unwanted in [
        "tollgate-policy",
        "scripted-upstream",
        "tollgate-tests",
        "least-used",
        "openai-pricing",
    ] {
        assert!(
            !named.contains(&unwanted.to_owned()),
            "host depends on {unwanted}"
        );
    }
    assert!(
        !manifest.contains("path = \".."),
        "host depends on a crate of this workspace"
    );
    check_none(strays(&sources(), "tollgate_policy", &[]));
    check_none(strays(&sources(), "scripted_upstream", &[]));
}

#[test]
fn each_module_opens_with_what_it_owns() {
    let silent = sources()
        .into_iter()
        .filter(|(path, text)| !path.ends_with("/tests.rs") && !text.starts_with("//!"));
    check_none(
        silent
            .map(|(path, _)| format!("{path} opens without //!"))
            .collect(),
    );
}

mod the_checker {
    use super::*;

    const LIB: &str = "\
        // Floor 0\npub mod values;\n// Floor 1\npub mod config;\n// Floor 2\npub mod ledger;\npub mod policy;\n\
        // Floor 3\npub mod pipeline;\n";

    fn tree(path: &str, text: &str) -> Vec<Source> {
        vec![
            ("lib.rs".to_owned(), LIB.to_owned()),
            (path.to_owned(), text.to_owned()),
        ]
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

    #[test]
    fn finds_a_stray_name_in_code_and_not_in_text() {
        let sources = tree(
            "ledger.rs",
            "//! No wasmtime here.\nuse wasmtime::Store;\nconst A: &str = \"wasmtime\";",
        );
        assert_eq!(
            strays(&sources, "wasmtime", &["policy"]),
            ["ledger.rs:2: wasmtime"]
        );
        assert!(strays(&sources, "wasmtime", &["ledger"]).is_empty());
        assert!(strays(&tree("tls.rs", "use wasmtime_wasi::X;"), "wasmtime", &[]).is_empty());
    }

    #[test]
    fn reads_dependencies_in_every_form() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\na.workspace = true\nb = { path = \"../b\" }\n\
            [dev-dependencies]\nc = \"1\"\n[target.'cfg(unix)'.dependencies.d]\nversion = \"1\"\n";
        assert_eq!(dependencies(manifest), ["a", "b", "c", "d"]);
    }
}
