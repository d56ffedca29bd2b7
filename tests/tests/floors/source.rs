//! The files of the repository and their tokens, without a parser: comments and strings become
//! blanks.

use std::fs;
use std::path::{Path, PathBuf};

/// A source file of a crate.
pub(crate) struct Source {
    /// Its path below the folder of the crate's sources.
    pub(crate) path: String,
    pub(crate) text: String,
    /// The text with blanks in place of comments, strings and characters.
    pub(crate) code: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            code: code(text),
        }
    }

    /// Whether the file holds nothing but unit tests.
    pub(crate) fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }
}

/// The folder of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The sources below `host/src`, in the order of their paths.
pub(crate) fn host_sources() -> Vec<Source> {
    let sources = sources(HOST);
    assert!(sources.len() > 30, "only {} sources", sources.len());
    sources
}

/// The folder of the host's sources.
pub(crate) const HOST: &str = "host/src";

/// The folders of the sources of the crates around the host: what guests, the rig, the peers of a
/// test and each test binary are made of.
pub(crate) fn folders_of_other_crates() -> Vec<String> {
    const BINARIES: &str = "tests/tests";
    let mut folders = [
        "guest-sdk/src",
        "tests/src",
        "tests/upstream/src",
        "tests/bench/src",
        "tests/demo/src",
    ]
    .map(str::to_owned)
    .to_vec();
    let binaries = fs::read_dir(repository().join(BINARIES)).expect("a folder can be read");
    for entry in binaries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            folders.push(format!("{BINARIES}/{name}"));
        }
    }
    folders.sort();
    folders
}

/// The sources below a folder of the repository, in the order of their paths.
pub(crate) fn sources(folder: &str) -> Vec<Source> {
    let root = repository().join(folder);
    let sources: Vec<Source> = files(&root)
        .into_iter()
        .filter(|path| path.ends_with(".rs"))
        .map(|path| {
            let text = fs::read_to_string(root.join(&path)).expect("a source can be read");
            Source::new(&path, &text)
        })
        .collect();
    assert!(!sources.is_empty(), "{folder} has no sources");
    sources
}

/// The paths of the files below `root` in their order, without hidden and generated ones.
pub(crate) fn files(root: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder can be read") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') || ["target", "node_modules", "corpus"].contains(&&*name) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                let path = path.strip_prefix(root).expect("a path below the root");
                paths.push(path.to_str().expect("a path in UTF-8").to_owned());
            }
        }
    }
    paths.sort();
    paths
}

/// Returns `code` without the modules and imports that are compiled for tests alone. Lines stay
/// lines.
pub(crate) fn without_tests(code: &str) -> String {
    const ATTRIBUTE: &str = "#[cfg(test)]";
    let mut kept = code.to_owned();
    let mut from = 0;
    while let Some(found) = kept[from..].find(ATTRIBUTE) {
        let begin = from + found;
        let mut depth = 0_usize;
        let length = kept[begin + ATTRIBUTE.len()..].find(|letter| {
            match letter {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0 && matches!(letter, ';' | '}')
        });
        let end = length.map_or(kept.len(), |length| begin + ATTRIBUTE.len() + length + 1);
        let blanks: String = kept[begin..end]
            .chars()
            .map(|letter| if letter == '\n' { '\n' } else { ' ' })
            .collect();
        kept.replace_range(begin..end, &blanks);
        from = begin + blanks.len();
    }
    kept
}

/// Returns `text` with blanks in place of comments and of what strings and characters contain.
/// Lines stay lines.
pub(crate) fn code(text: &str) -> String {
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

/// Returns the length of the comment, string or character at the start of `rest`, or 0.
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

/// Returns the number of `#` of the raw string at the start of `rest`.
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

/// Splits `code` into words, `::` and other single characters, each with its line.
pub(crate) fn tokens(code: &str) -> Vec<(usize, &str)> {
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

pub(crate) fn is_of_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

#[test]
fn blanks_stand_in_place_of_comments_and_strings() {
    let text = "a // b\n/* c /* d */ e */ f \"g\\\"h\" i r#\"j\"k\"# l 'm' '\\'' <'n> o";
    let words: Vec<String> = tokens(&code(text))
        .into_iter()
        .map(|(line, token)| format!("{line}{token}"))
        .collect();
    assert_eq!(words.join(" "), "1a 2f 2i 2l 2< 2' 2n 2> 2o");
}

#[test]
fn code_for_tests_is_left_out() {
    let code = "a\n#[cfg(test)]\nuse b;\nc #[cfg(test)] mod tests {\n { d; }\n} e";
    let kept = without_tests(code);
    let words: Vec<&str> = kept.split_whitespace().collect();
    assert_eq!(words, ["a", "c", "e"]);
    assert_eq!(kept.lines().count(), code.lines().count());
}
