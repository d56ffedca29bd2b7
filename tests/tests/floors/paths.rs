//! The files that comments and documents name exist.

use std::collections::BTreeSet;
use std::path::Path;

use crate::check_none;
use crate::source::{files, repository};

/// Endings of the files that are looked up.
const ENDINGS: [&str; 8] = [
    ".rs", ".md", ".wit", ".toml", ".json", ".jsonc", ".py", ".wat",
];

/// Names of files of other programs, and of files that the gateway, a build or a test writes.
const ELSEWHERE: [&str; 7] = [
    "auth.json",
    "config.json",
    "config.toml",
    "config.jsonc",
    "package.json",
    "tollgate.json",
    "usages.json",
];

/// A file that a text names, and the line.
#[derive(Debug, PartialEq, Eq)]
struct NamedFile {
    line: usize,
    path: String,
}

/// Which part of a file is prose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Prose {
    All,
    Comments,
}

impl Prose {
    /// Of Rust, only comments are read.
    fn of_file(path: &str) -> Self {
        if path.ends_with(".rs") {
            Self::Comments
        } else {
            Self::All
        }
    }
}

/// Returns the files that the prose of `text` names.
fn named_files(text: &str, read: Prose) -> Vec<NamedFile> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let prose = match (read, line.find("//")) {
            (Prose::All, _) => line,
            (Prose::Comments, Some(at)) => &line[at..],
            (Prose::Comments, None) => continue,
        };
        for word in prose.split(|letter: char| !is_of_path(letter)) {
            let word = word.trim_matches(['.', ':', '-']);
            // A path from the root of a machine is no file of the repository, and a bare name of
            // data may be any file.
            let is_data = word.contains(".json") && !word.contains('/');
            if is_file(word) && !word.starts_with('/') && !is_data {
                found.push(NamedFile {
                    line: number + 1,
                    path: word.to_owned(),
                });
            }
        }
    }
    found
}

fn is_of_path(letter: char) -> bool {
    letter.is_alphanumeric() || "/._-<>*{}$~:@#…".contains(letter)
}

/// Whether `word` is the plain name of a file: no pattern, no address, no file at the root of a
/// machine.
fn is_file(word: &str) -> bool {
    let has_stem = |ending: &str| {
        word.strip_suffix(ending).is_some_and(|stem| {
            stem.ends_with(|letter: char| letter.is_alphanumeric() || letter == '_')
        })
    };
    ENDINGS.iter().any(|ending| has_stem(ending))
        && !word.contains(['<', '>', '*', '{', '}', '$', '~', ':', '@', '#', '…'])
}

/// Whether a file of the repository is named by `name` in the file at `place`.
fn exists(paths: &BTreeSet<String>, place: &str, name: &str) -> bool {
    let folder = Path::new(place).parent().unwrap_or(Path::new(""));
    let mut around: Vec<String> = folder
        .ancestors()
        .map(|folder| folder.join(name).to_string_lossy().into_owned())
        .collect();
    around.push(format!("host/src/{name}"));
    let known = around.iter().any(|path| paths.contains(path));
    // A bare name may stand for a file anywhere.
    let anywhere =
        !name.contains('/') && paths.iter().any(|path| path.ends_with(&format!("/{name}")));
    let base = name.rsplit('/').next().unwrap_or(name);
    known || anywhere || ELSEWHERE.contains(&base)
}

#[test]
fn files_named_in_comments_and_documents_exist() {
    let root = repository();
    let paths: BTreeSet<String> = files(&root).into_iter().collect();
    let mut missing = Vec::new();
    for place in &paths {
        // The changelog may name files that were removed, and the tests in this file name files
        // that do not exist.
        let is_read = place.ends_with(".rs") || place.ends_with(".md") && place != "CHANGELOG.md";
        if !is_read || place == "tests/tests/floors/paths.rs" {
            continue;
        }
        let text = std::fs::read_to_string(root.join(place)).expect("a file can be read");
        for NamedFile { line, path } in named_files(&text, Prose::of_file(place)) {
            if !exists(&paths, place, &path) {
                missing.push(format!("{place}:{line}: there is no {path}"));
            }
        }
    }
    check_none(&missing);
}

#[test]
fn the_check_reads_plain_names_in_comments_alone() {
    let text = "let a = \"x/y.rs\"; // See `a/b.rs`, c.md. And <x>/d.rs, e/*.rs, https://f.md/g.md\n//! (h.toml)";
    let found: Vec<(usize, String)> = named_files(text, Prose::Comments)
        .into_iter()
        .map(|named| (named.line, named.path))
        .collect();
    let expected = [(1, "a/b.rs"), (1, "c.md"), (2, "h.toml")];
    assert_eq!(found, expected.map(|(line, path)| (line, path.to_owned())));
}

#[test]
fn the_check_looks_beside_the_file_and_above() {
    let paths = ["a/b/c.rs", "a/d.md", "host/src/e/f.rs"]
        .map(str::to_owned)
        .into();
    for name in ["c.rs", "b/c.rs", "a/b/c.rs", "d.md", "e/f.rs"] {
        assert!(exists(&paths, "a/b/x.rs", name), "{name}");
    }
    assert!(!exists(&paths, "a/b/x.rs", "x/c.rs"));
    assert!(!exists(&paths, "a/b/x.rs", "g.rs"));
}
