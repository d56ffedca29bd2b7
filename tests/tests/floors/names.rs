//! Names of types: each is used for one type of the host.

use std::collections::BTreeMap;

use crate::check_known;
use crate::source::{Source, host_sources, is_of_word, tokens, without_tests};

/// Names that several types of the host share today. This list may only shrink.
const KNOWN: &[&str] = &[];

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
    for source in sources.iter().filter(|source| !source.is_test()) {
        for (line, name) in types(source) {
            let place = format!("{}:{line}", source.path);
            places.entry(name).or_default().push(place);
        }
    }
    places.retain(|_, places| places.len() > 1);
    places
}

#[test]
fn no_two_types_share_a_name() {
    let shared = shared_names(&host_sources());
    for (name, places) in &shared {
        println!("{name}: {}", places.join(", "));
    }
    check_known(
        shared.into_keys().collect(),
        KNOWN.iter().map(|name| (*name).to_owned()).collect(),
    );
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
