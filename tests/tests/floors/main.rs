//! The layout and the style of the repository, read from its files: floors, import cycles, names,
//! words, sizes, paths, dates.
//!
//! What does not follow the style yet is listed as data beside each check. Those lists may only
//! shrink.

mod crates;
mod cycles;
mod dates;
mod layers;
mod names;
mod paths;
mod platform;
mod ratchet;
mod shape;
mod source;
mod words;

/// Fails with all of `found`, one a line.
#[track_caller]
fn check_none(found: &[String]) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// Fails if `found` differs from the exceptions in `known`: by new ones, or by fewer.
#[track_caller]
fn check_known<T: Ord + std::fmt::Debug>(found: Vec<T>, known: Vec<T>) {
    let new = found
        .iter()
        .filter(|entry| !known.contains(entry))
        .map(|entry| format!("new: {entry:?}"));
    let gone = known
        .iter()
        .filter(|entry| !found.contains(entry))
        .map(|entry| format!("no longer the case, remove it from the list: {entry:?}"));
    check_none(&new.chain(gone).collect::<Vec<_>>());
}
