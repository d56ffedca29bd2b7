//! Names of types: each is used for one type of a crate.

use std::collections::BTreeMap;

use crate::check_none;
use crate::source::{
    HOST, Source, folders_of_other_crates, is_of_word, sources, tokens, without_tests,
};

/// The types that a file declares, with their lines: those of the module level, as others are
/// local.
fn types(source: &Source) -> Vec<(usize, String)> {
    let code = without_tests(&source.code);
    let tokens = tokens(&code);
    let mut found = Vec::new();
    // The open braces: `true` for that of a module within the file.
    let mut braces: Vec<bool> = Vec::new();
    for (at, (line, token)) in tokens.iter().enumerate() {
        match *token {
            "{" => braces.push(at >= 2 && tokens[at - 2].1 == "mod"),
            "}" => drop(braces.pop()),
            "struct" | "enum" | "union" | "trait" | "type"
                if braces.iter().all(|inside| *inside) =>
            {
                let name = tokens.get(at + 1).map_or("", |(_, name)| *name);
                // Not `r#type` and not a field or a macro's argument of that name.
                if name.starts_with(|letter: char| letter.is_uppercase())
                    && name.chars().all(is_of_word)
                {
                    found.push((*line, name.to_owned()));
                }
            }
            _ => {}
        }
    }
    found
}

/// Returns the names that several types share, each with the places of its types.
fn shared_names(sources: &[Source]) -> BTreeMap<String, Vec<String>> {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // What is for one operating system stands for the same as what is for another.
    let is_alternative = |source: &&Source| source.path.contains("/windows/");
    let read = sources.iter().filter(|source| !source.is_test());
    for source in read.filter(|source| !is_alternative(source)) {
        for (line, name) in types(source) {
            let place = format!("{}:{line}", source.path);
            places.entry(name).or_default().push(place);
        }
    }
    places.retain(|_, places| places.len() > 1);
    places
}

#[test]
fn no_two_types_of_a_crate_share_a_name() {
    let mut folders = folders_of_other_crates();
    folders.push(HOST.to_owned());
    let mut found = Vec::new();
    for folder in folders {
        for (name, places) in shared_names(&sources(&folder)) {
            found.push(format!("{folder}: {name}: {}", places.join(", ")));
        }
    }
    check_none(&found);
}

#[test]
fn the_check_finds_types_of_every_kind_and_nothing_else() {
    let text = "pub struct A; pub(super) enum B {} trait C { type D; } type E = F; mod g { struct H; }\n\
        impl C for A { type D = u8; } fn f() { struct I; } #[cfg(test)] mod tests { struct J; }";
    let found: Vec<String> = types(&Source::new("a.rs", text))
        .into_iter()
        .map(|(_, name)| name)
        .collect();
    assert_eq!(found, ["A", "B", "C", "E", "H"]);
    let shared = shared_names(&[
        Source::new("a.rs", "struct A;"),
        Source::new("b.rs", "\nenum A {}"),
    ]);
    assert_eq!(shared["A"], ["a.rs:1", "b.rs:2"]);
}
