//! The words that the style avoids, counted in every file against a list of what is allowed. The
//! numbers may only fall.
//!
//! See `ratchet.rs` for how the list is written again.

use std::collections::BTreeMap;
use std::fs;

use crate::ratchet::check_ratchet;
use crate::source::{files, is_of_word, repository};

/// Words and phrases to avoid, in lower case. They also count in names, with `_` between the words.
const AVOIDED: [&str; 17] = [
    "whoever",
    "nobody",
    "somebody",
    "anew",
    "taken up",
    "is told",
    "one that",
    "of its own",
    "of their own",
    "what serves",
    "for so long",
    "dear",
    "dearer",
    "goes on",
    "newcomer",
    "not there yet",
    "under way",
];

/// A sentence of a comment that begins with this word should begin with "Returns".
const ANSWERS: &str = "Answers";

/// Files that list the words to avoid.
const LISTS: [&str; 2] = ["tests/tests/floors/words.rs", "docs/style.md"];

const ENDINGS: [&str; 13] = [
    ".json", ".jsonc", ".md", ".mjs", ".py", ".rs", ".service", ".toml", ".txt", ".wat", ".wit",
    ".yaml", ".yml",
];

/// Whether the file at `path` is text that a person reads: by its ending, or as a script, which has
/// none.
fn is_text(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    !name.contains('.') || ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// Counts the avoided words of a text. A phrase may go over lines of one comment.
fn count(text: &str) -> usize {
    let prose = unwrapped(text);
    let lower = prose.to_lowercase().replace('_', " ");
    let phrases: usize = AVOIDED
        .iter()
        .map(|phrase| occurrences(&lower, phrase))
        .sum();
    let sentences = prose.matches("/// Answers ").count()
        + prose.matches("//! Answers ").count()
        + prose.matches(&format!(". {ANSWERS} ")).count();
    phrases + sentences
}

/// Joins the lines of each comment and paragraph. The first line of a comment keeps its marks.
fn unwrapped(text: &str) -> String {
    let mut prose = String::with_capacity(text.len());
    let mut last_mark = "";
    for line in text.lines().map(str::trim) {
        let mark = ["///", "//!", "//", ";;", "#", ">"]
            .into_iter()
            .find(|mark| line.starts_with(mark))
            .unwrap_or_default();
        let joined = mark == last_mark && !line.is_empty();
        prose.push(if joined { ' ' } else { '\n' });
        prose.push_str(if joined {
            line[mark.len()..].trim_start()
        } else {
            line
        });
        last_mark = mark;
    }
    prose
}

/// How often `phrase` is in `text`, not as a part of longer words.
fn occurrences(text: &str, phrase: &str) -> usize {
    text.match_indices(phrase)
        .filter(|(at, _)| {
            let before = text[..*at].chars().next_back();
            let after = text[at + phrase.len()..].chars().next();
            !before.is_some_and(is_of_word) && !after.is_some_and(is_of_word)
        })
        .count()
}

/// The number of avoided words in each file that has some.
fn counts() -> BTreeMap<String, usize> {
    let root = repository();
    let mut counts = BTreeMap::new();
    for path in files(&root) {
        if LISTS.contains(&&*path) {
            continue;
        }
        // The names of folders and files are read of all.
        let mut count = count(&path.replace('-', " "));
        if is_text(&path) {
            let bytes = fs::read(root.join(&path)).expect("a file can be read");
            count += self::count(&String::from_utf8_lossy(&bytes));
        }
        if count > 0 {
            counts.insert(path, count);
        }
    }
    counts
}

#[test]
fn the_words_that_the_style_avoids_become_fewer() {
    check_ratchet("words.txt", "avoided words", &counts());
}

#[test]
fn the_check_counts_phrases_over_lines_and_words_alone() {
    assert_eq!(
        count("/// Whoever asks\n/// one\n/// that ends; \"nobody\" or_nobody"),
        4
    );
    assert_eq!(
        count("/// Answers it. Answers more.\nfn answers() {}\n//! The Answers"),
        2
    );
    assert_eq!(count("one\n// that, dearth, anewer, nobodys"), 0);
    assert_eq!(count("fn it_is_told(what_serves: u8) { own_of_its }"), 2);
    assert_eq!(count("# A thing of its\n# own\n\nand one\nthat"), 2);
}

#[test]
fn the_check_reads_texts_and_scripts() {
    for path in ["a/b.rs", "a.jsonc", "b.wat", "Makefile", "a/run", "ci.yml"] {
        assert!(is_text(path), "{path}");
    }
    for path in ["a.wasm", "a.b/c.lock", ".gitignore"] {
        assert!(!is_text(path), "{path}");
    }
    assert_eq!(count(";; Whether nobody\n;; is of their\n;; own"), 2);
}
