//! Import cycles between the files of a folder, read from the paths that the code names.
//!
//! A folder's nodes are its files, each with the folder of its name. A path that leads through a
//! re-export, in the folder's own file or elsewhere, counts as an import from the file that has the
//! item. Unit tests may import anything.

use std::collections::{BTreeMap, BTreeSet};

use crate::check_none;
use crate::source::{HOST, Source, folders_of_other_crates, sources, tokens, without_tests};

/// A path that code names: `super::engine::Engine`, with its line and the number of modules of the
/// file around it.
struct NamedPath {
    line: usize,
    inline_depth: usize,
    segments: Vec<String>,
    /// The name that it is imported under, if it is part of a `use`.
    alias: Option<String>,
}

/// The file modules of the crate and what they import.
struct ModuleTree {
    /// Each file's path by its module's: `policy/engine.rs` by `["policy", "engine"]`.
    files: BTreeMap<Vec<String>, String>,
    paths: BTreeMap<Vec<String>, Vec<NamedPath>>,
}

/// An import from one file to another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Import {
    from: Vec<String>,
    to: Vec<String>,
    line: usize,
}

impl ModuleTree {
    /// Reads a library, or a program that has none.
    fn new(sources: &[Source]) -> Self {
        let mut tree = Self {
            files: BTreeMap::new(),
            paths: BTreeMap::new(),
        };
        let is_library = sources.iter().any(|source| source.path == "lib.rs");
        for source in sources {
            let is_program = source.path == "main.rs" || source.path.starts_with("bin/");
            if source.is_test() || is_library && is_program {
                continue;
            }
            let module = module_path(&source.path);
            tree.files.insert(module.clone(), source.path.clone());
            let paths = named_paths(&tokens(&without_tests(&source.code)));
            tree.paths.insert(module, paths);
        }
        tree
    }

    fn imports(&self) -> BTreeSet<Import> {
        let mut imports = BTreeSet::new();
        for (from, paths) in &self.paths {
            for path in paths {
                let Some(to) = self.target(from, path, 0) else {
                    continue;
                };
                if to != *from {
                    imports.insert(Import {
                        from: from.clone(),
                        to,
                        line: path.line,
                    });
                }
            }
        }
        imports
    }

    /// Returns the file module that has what `path`, named in module `from`, leads to.
    fn target(&self, from: &[String], path: &NamedPath, hops: usize) -> Option<Vec<String>> {
        let mut module = from.to_vec();
        let mut inline = path.inline_depth;
        let mut rest = path.segments.as_slice();
        match rest.first()?.as_str() {
            "crate" => {
                module.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|segment| segment == "super") {
                    match inline.checked_sub(1) {
                        Some(less) => inline = less,
                        None => drop(module.pop()),
                    }
                    rest = &rest[1..];
                }
            }
            name if self.is_child(&module, name) => {}
            _ => return None,
        }
        while let Some(name) = rest.first().filter(|name| self.is_child(&module, name)) {
            module.push(name.clone());
            rest = &rest[1..];
        }
        // A name that the module itself imports is an import from where that leads.
        if let Some(name) = rest.first()
            && hops < 8
            && let Some(forwarded) = self.paths.get(&module).and_then(|paths| {
                paths
                    .iter()
                    .find(|path| path.alias.as_deref() == Some(name))
            })
        {
            return self.target(&module, forwarded, hops + 1);
        }
        Some(module)
    }

    fn is_child(&self, module: &[String], name: &str) -> bool {
        let mut child = module.to_vec();
        child.push(name.to_owned());
        self.files.contains_key(&child)
    }

    /// Returns the folders with cycles between their nodes, each with the imports that are part of
    /// one.
    fn cycles(&self) -> BTreeMap<String, Vec<Import>> {
        let imports = self.imports();
        let folders: BTreeSet<Vec<String>> = self
            .files
            .keys()
            .filter_map(|module| Some(module.split_last()?.1.to_vec()))
            .collect();
        let mut cycles: BTreeMap<String, Vec<Import>> = BTreeMap::new();
        for folder in folders {
            let node = |module: &[String]| module.strip_prefix(&*folder)?.first().cloned();
            let edges: Vec<(String, String, &Import)> = imports
                .iter()
                .filter_map(|import| Some((node(&import.from)?, node(&import.to)?, import)))
                .filter(|(from, to, _)| from != to)
                .collect();
            for (from, to, import) in &edges {
                if leads(&edges, to, from) {
                    let found = cycles.entry(folder.join("/")).or_default();
                    found.push((*import).clone());
                }
            }
        }
        cycles
    }

    /// Returns the imports from a file above, of those files that it imports from itself.
    fn upward_imports(&self) -> Vec<Import> {
        let imports = self.imports();
        let is_upward = |import: &&Import| {
            let node = import.from.get(..=import.to.len());
            import.from.starts_with(&import.to)
                && node.is_some_and(|node| {
                    imports
                        .iter()
                        .any(|other| other.from == import.to && other.to.starts_with(node))
                })
        };
        imports.iter().filter(is_upward).cloned().collect()
    }

    /// Describes an import of a cycle, with both files.
    fn describe(&self, import: &Import) -> String {
        let (from, to) = (&self.files[&import.from], &self.files[&import.to]);
        format!(
            "{from}:{}: imports from {to}, which leads back",
            import.line
        )
    }
}

/// Whether `edges` lead from node `from` to node `to`.
fn leads(edges: &[(String, String, &Import)], from: &str, to: &str) -> bool {
    let mut reached = BTreeSet::from([from]);
    let mut waiting = vec![from];
    while let Some(node) = waiting.pop() {
        if node == to {
            return true;
        }
        for (begin, end, _) in edges {
            if begin == node && reached.insert(end) {
                waiting.push(end);
            }
        }
    }
    false
}

/// Returns the module of a file: `["policy", "engine"]` for `policy/engine.rs`, none for the root
/// of the crate.
fn module_path(path: &str) -> Vec<String> {
    if ["lib.rs", "main.rs"].contains(&path) {
        return Vec::new();
    }
    path.trim_end_matches(".rs")
        .trim_end_matches("/mod")
        .split('/')
        .map(str::to_owned)
        .collect()
}

/// Returns the paths of two segments and more, those of a `use` one by one.
fn named_paths(tokens: &[(usize, &str)]) -> Vec<NamedPath> {
    let mut found = Vec::new();
    // The open braces: `true` for that of a module within the file.
    let mut braces: Vec<bool> = Vec::new();
    let mut at = 0;
    while let Some((line, token)) = tokens.get(at) {
        let inline_depth = braces.iter().filter(|is_module| **is_module).count();
        match *token {
            "{" => braces.push(at >= 2 && tokens[at - 2].1 == "mod"),
            "}" => drop(braces.pop()),
            // The path of a visibility, as in `pub(in crate::config)`, is no import.
            "in" if at >= 2 && tokens[at - 2].1 == "pub" => {
                while at < tokens.len() && tokens[at].1 != ")" {
                    at += 1;
                }
            }
            "use" => {
                let mut reader = UseReader {
                    tokens,
                    at: at + 1,
                    inline_depth,
                    found: &mut found,
                };
                reader.tree(&[]);
                at = reader.at;
                continue;
            }
            name if is_name(name) && is_token(tokens, at + 1, "::") => {
                let mut segments = vec![name.to_owned()];
                while is_token(tokens, at + 1, "::")
                    && let Some((_, next)) = tokens.get(at + 2).filter(|(_, next)| is_name(next))
                {
                    segments.push((*next).to_owned());
                    at += 2;
                }
                found.push(NamedPath {
                    line: *line,
                    inline_depth,
                    segments,
                    alias: None,
                });
            }
            _ => {}
        }
        at += 1;
    }
    found
}

fn is_name(token: &str) -> bool {
    token.starts_with(|letter: char| letter.is_alphabetic() || letter == '_')
}

fn is_token(tokens: &[(usize, &str)], at: usize, expected: &str) -> bool {
    tokens.get(at).is_some_and(|(_, token)| *token == expected)
}

/// Reads the tree of a `use`.
struct UseReader<'a> {
    tokens: &'a [(usize, &'a str)],
    at: usize,
    inline_depth: usize,
    found: &'a mut Vec<NamedPath>,
}

impl UseReader<'_> {
    fn tree(&mut self, before: &[String]) {
        let mut segments = before.to_vec();
        while let Some((line, token)) = self.tokens.get(self.at).copied() {
            self.at += 1;
            match token {
                "::" => continue,
                "{" => {
                    while !is_token(self.tokens, self.at, "}") && self.at < self.tokens.len() {
                        self.tree(&segments);
                        if is_token(self.tokens, self.at, ",") {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    return;
                }
                // The module itself, in braces.
                "self" if !segments.is_empty() => {}
                name if is_name(name) || name == "*" => segments.push(name.to_owned()),
                _ => {
                    self.at -= 1;
                    return;
                }
            }
            if is_token(self.tokens, self.at, "::") {
                continue;
            }
            let mut alias = segments.last().cloned().filter(|name| name != "*");
            if is_token(self.tokens, self.at, "as") {
                alias = self
                    .tokens
                    .get(self.at + 1)
                    .map(|(_, name)| (*name).to_owned());
                self.at += 2;
            }
            self.found.push(NamedPath {
                line,
                inline_depth: self.inline_depth,
                segments,
                alias,
            });
            return;
        }
    }
}

/// The modules of every crate, each with the folder of its sources.
fn trees() -> Vec<(String, ModuleTree)> {
    let mut folders = folders_of_other_crates();
    folders.push(HOST.to_owned());
    folders
        .into_iter()
        .map(|folder| {
            let tree = ModuleTree::new(&sources(&folder));
            (folder, tree)
        })
        .collect()
}

#[test]
fn files_of_a_folder_do_not_import_in_cycles() {
    let mut wrong = Vec::new();
    for (root, tree) in trees() {
        let cycles = tree.cycles();
        let imports = cycles.values().flatten();
        wrong.extend(imports.map(|import| format!("{root}/{}", tree.describe(import))));
    }
    check_none(&wrong);
}

#[test]
fn files_do_not_import_from_the_file_above_that_imports_them() {
    let mut wrong = Vec::new();
    for (root, tree) in trees() {
        let upward = tree.upward_imports();
        let described = upward.iter().map(|import| tree.describe(import));
        wrong.extend(described.map(|import| format!("{root}/{import}")));
    }
    check_none(&wrong);
}

mod the_checker {
    use super::*;

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: &[(&str, &str)]) {
        let sources: Vec<Source> = files
            .iter()
            .map(|(path, text)| Source::new(path, text))
            .collect();
        let tree = ModuleTree::new(&sources);
        let mut found: Vec<(String, String)> = tree
            .cycles()
            .values()
            .flatten()
            .map(|import| {
                (
                    tree.files[&import.from].clone(),
                    tree.files[&import.to].clone(),
                )
            })
            .collect();
        found.sort();
        let found: Vec<(&str, &str)> = found.iter().map(|(a, b)| (&**a, &**b)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn names_both_files_of_a_cycle() {
        let files = [
            ("a.rs", "mod b; mod c; mod d;"),
            ("a/b.rs", "use super::c::C; use super::d::D;"),
            ("a/c.rs", "fn f() { crate::a::b::g() }"),
            ("a/d.rs", "use std::fmt;"),
        ];
        check(&files, &[("a/b.rs", "a/c.rs"), ("a/c.rs", "a/b.rs")]);
    }

    #[test]
    fn follows_re_exports_of_the_parent_and_aliases() {
        let files = [
            ("a.rs", "mod b; mod c; pub use b::{B as Renamed, self};"),
            ("a/b.rs", "use super::c::{C, d};"),
            ("a/c.rs", "use super::Renamed;"),
        ];
        check(&files, &[("a/b.rs", "a/c.rs"), ("a/c.rs", "a/b.rs")]);
    }

    #[test]
    fn folders_are_nodes_and_are_read_themselves() {
        let files = [
            ("a.rs", ""),
            ("a/b.rs", ""),
            ("a/b/x.rs", "use crate::a::c::C; use super::y::Y;"),
            ("a/b/y.rs", "use super::x::X;"),
            ("a/c.rs", "use super::b::y::Y;"),
        ];
        let expected = [
            ("a/b/x.rs", "a/b/y.rs"),
            ("a/b/x.rs", "a/c.rs"),
            ("a/b/y.rs", "a/b/x.rs"),
            ("a/c.rs", "a/b/y.rs"),
        ];
        check(&files, &expected);
    }

    #[test]
    fn lets_arrows_in_one_direction_and_tests_pass() {
        let files = [
            ("a.rs", "mod b; mod c; struct A;"),
            (
                "a/b.rs",
                "use super::c::C; use super::A; mod inner { use super::super::c; }",
            ),
            (
                "a/c.rs",
                "use super::A;\n#[cfg(test)]\nmod tests { use super::super::b::B; }",
            ),
            ("a/c/tests.rs", "use crate::a::b::B;"),
        ];
        check(&files, &[]);
    }

    #[test]
    fn finds_upward_imports_alone() {
        let files = [
            ("a.rs", "mod b; mod c; pub use b::B; pub struct A;"),
            ("a/b.rs", "use super::A;"),
            ("a/c.rs", "use super::B; pub(in crate::a) struct C;"),
        ];
        let sources = files.map(|(path, text)| Source::new(path, text));
        let tree = ModuleTree::new(&sources);
        let found: Vec<String> = tree
            .upward_imports()
            .iter()
            .map(|import| tree.describe(import))
            .collect();
        assert_eq!(found, ["a/b.rs:1: imports from a.rs, which leads back"]);
    }
}
