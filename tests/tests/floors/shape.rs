//! The shape of files and of their documentation.

use std::collections::BTreeMap;

use crate::ratchet::check_ratchet;
use crate::source::{Source, host_sources, is_of_word, tokens, without_tests};
use crate::{check_known, check_none};

/// The most lines of a file of the host.
const LINES_MAX: usize = 700;

/// Longer files of today. This list may only shrink.
const KNOWN_LONG: &[&str] = &[];

/// The most lines of a function of the host, from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;

/// Longer functions of today. This list may only shrink.
const KNOWN_LONG_FUNCTIONS: &[&str] = &["server.rs: start_from", "tls.rs: new"];

/// The most files of a folder of the host, except that of the floors.
const FILES_MAX: usize = 10;

/// A documentation comment of so few words says nothing.
const WORDS_MAX: usize = 3;

/// Returns the lines where a documentation comment begins that has at most [`WORDS_MAX`] words in
/// all.
fn short_comments(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.text.lines().map(str::trim).collect();
    let is_comment = |line: &&str| line.starts_with("///") && !line.starts_with("////");
    let mut found = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let block: Vec<&str> = lines[at..].iter().copied().take_while(is_comment).collect();
        let words: usize = block
            .iter()
            .map(|line| line[3..].split_whitespace().count())
            .sum();
        if !block.is_empty() && words <= WORDS_MAX {
            found.push(format!("{}:{}: {}", source.path, at + 1, block.join(" ")));
        }
        at += block.len().max(1);
    }
    found
}

/// Articles and pronouns: a comment that adds only these to a name says nothing.
const FILLERS: [&str; 8] = ["a", "an", "the", "its", "of", "this", "is", "for"];

/// Returns the lines where a comment of one line repeats the name of the item below.
fn repeated_names(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.text.lines().map(str::trim).collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(comment) = line.strip_prefix("/// ") else {
            continue;
        };
        let follows_comment = at > 0 && lines[at - 1].starts_with("///");
        let item = lines[at + 1..]
            .iter()
            .find(|line| !line.starts_with("#["))
            .copied()
            .unwrap_or_default();
        if follows_comment || item.starts_with("///") {
            continue;
        }
        if repeats(comment, &item_name(item)) {
            found.push(format!("{}:{}: {line}", source.path, at + 1));
        }
    }
    found
}

/// Whether each word of `comment` is from `name` or without a meaning.
fn repeats(comment: &str, name: &str) -> bool {
    let of_name = words(name);
    words(comment)
        .iter()
        .all(|word| FILLERS.contains(&&**word) || of_name.contains(word))
}

/// Returns the name of the item, field or variant that a line declares.
fn item_name(line: &str) -> String {
    const BEFORE: [&str; 12] = [
        "pub", "crate", "super", "fn", "struct", "enum", "const", "static", "async", "type", "mod",
        "trait",
    ];
    line.split(|letter: char| !is_of_word(letter))
        .find(|word| !word.is_empty() && !BEFORE.contains(word))
        .unwrap_or_default()
        .to_owned()
}

/// Splits prose, `snake_case` and `CamelCase` into words in lower case, without the `s` of a
/// plural.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut after_lower = false;
    let mut in_word = false;
    for letter in text.chars() {
        if !letter.is_alphanumeric() {
            in_word = false;
            continue;
        }
        if !in_word || (after_lower && letter.is_uppercase()) {
            words.push(String::new());
        }
        in_word = true;
        after_lower = letter.is_lowercase();
        if let Some(word) = words.last_mut() {
            word.extend(letter.to_lowercase());
        }
    }
    // What is left of "user's".
    words.retain(|word| word != "s");
    for word in &mut words {
        if word.len() > 3 && word.ends_with('s') && !FILLERS.contains(&&**word) {
            word.pop();
        }
    }
    words
}

#[test]
fn no_file_of_the_host_is_too_long() {
    let long: Vec<String> = host_sources()
        .into_iter()
        .filter(|source| source.text.lines().count() > LINES_MAX)
        .map(|source| source.path)
        .collect();
    check_known(
        long,
        KNOWN_LONG.iter().map(|path| (*path).to_owned()).collect(),
    );
}

/// Returns the functions that have more than `max` lines.
fn long_functions(source: &Source, max: usize) -> Vec<String> {
    let code = without_tests(&source.code);
    let tokens = tokens(&code);
    let mut found = Vec::new();
    for (at, (begin, token)) in tokens.iter().enumerate() {
        let Some((_, name)) = tokens.get(at + 1) else {
            break;
        };
        if *token != "fn" || !name.starts_with(is_of_word) {
            continue;
        }
        let mut depth = 0_usize;
        let end = tokens[at..].iter().find(|(_, token)| {
            match *token {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0 && ["}", ";"].contains(token)
        });
        if end.is_some_and(|(end, _)| end - begin + 1 > max) {
            found.push(format!("{}: {name}", source.path));
        }
    }
    found
}

#[test]
fn no_function_of_the_host_is_too_long() {
    let sources = host_sources();
    let read = sources.iter().filter(|source| !source.is_test());
    check_known(
        read.flat_map(|source| long_functions(source, FUNCTION_LINES_MAX))
            .collect(),
        KNOWN_LONG_FUNCTIONS
            .iter()
            .map(|name| (*name).to_owned())
            .collect(),
    );
}

#[test]
fn the_check_counts_the_lines_of_functions() {
    let text = "fn a(n: [u8; 1]) {\n  b(|| {\n  });\n}\ntrait T {\n  fn c(\n  );\n  fn d() {}\n}\n\
        #[cfg(test)]\nmod tests {\n  fn e() {\n\n\n  }\n}";
    let source = Source::new("a.rs", text);
    assert_eq!(long_functions(&source, 3), ["a.rs: a"]);
    assert_eq!(long_functions(&source, 4), [""; 0]);
}

#[test]
fn no_folder_of_the_host_has_too_many_files() {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for source in host_sources() {
        if let Some((folder, _)) = source.path.rsplit_once('/') {
            *counts.entry(folder.to_owned()).or_default() += 1;
        }
    }
    counts.retain(|_, count| *count > FILES_MAX);
    let full: Vec<String> = counts
        .iter()
        .map(|(folder, count)| format!("{folder}: {count} files"))
        .collect();
    check_none(&full);
}

#[test]
fn comments_that_only_repeat_a_name_become_fewer() {
    let mut counts = BTreeMap::new();
    for source in host_sources() {
        let found = repeated_names(&source);
        if !found.is_empty() {
            println!("{}", found.join("\n"));
            counts.insert(source.path, found.len());
        }
    }
    check_ratchet(
        "repeated.txt",
        "comments that repeat the name of their item",
        &counts,
    );
}

/// A public item whose name says everything can be private; a comment says what its name does not.
#[test]
fn no_comment_has_three_words_or_fewer() {
    let short: Vec<String> = host_sources().iter().flat_map(short_comments).collect();
    check_none(&short);
}

#[test]
fn each_module_opens_with_what_it_owns() {
    let silent: Vec<String> = host_sources()
        .into_iter()
        .filter(|source| !source.is_test() && !source.text.starts_with("//!"))
        .map(|source| format!("{} opens without //!", source.path))
        .collect();
    check_none(&silent);
}

#[test]
fn the_check_finds_comments_that_repeat_a_name() {
    let text = "/// The user's tags.\npub user_tag: u8,\n/// The user.\n/// Two lines.\npub user: u8,\n\
        /// In seconds.\nspan: u8,\n/// A service tier\n#[x]\npub(crate) enum ServiceTier {\n\
        /// The user that pays.\nuser\n/// The user tags of this user.\nuser_tags";
    let found = repeated_names(&Source::new("a.rs", text));
    assert_eq!(
        found,
        [
            "a.rs:1: /// The user's tags.",
            "a.rs:8: /// A service tier",
            "a.rs:13: /// The user tags of this user."
        ]
    );
}

#[test]
fn the_check_finds_comments_of_few_words() {
    let text = "/// A user's name.\nname\n  /// In\n  /// bytes.\nsize\n/// One of four words.\na\n\
        /// One\n///\n/// of two paragraphs.\nb\n//// No documentation.\nc\n/// At the end";
    let found = short_comments(&Source::new("a.rs", text));
    assert_eq!(
        found,
        [
            "a.rs:1: /// A user's name.",
            "a.rs:3: /// In /// bytes.",
            "a.rs:14: /// At the end"
        ]
    );
}
