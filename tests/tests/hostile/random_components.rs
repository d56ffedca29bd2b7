//! Random components and modules: each is rejected with a reason, or loads, and none ends or blocks
//! the process.

use std::fs;
use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use serde_json::json;
use tollgate::config::{PolicyConfig, PolicyKind, PolicySource};
use tollgate::policy::{PolicyEngine, load_standalone};
use tollgate_tests::{Chance, Conduct, marked_pricer};
use wasm_smith::{Component, Config, Module};

/// The longest time for the whole test.
const SPAN: Duration = Duration::from_secs(8);
const CASES: usize = 4000;
const INPUT_BYTES: usize = 4096;
const MEMORY: usize = 16 * 1024 * 1024;
/// The longest time for one load, even on a busy machine: each call of a load has two seconds.
const LOAD_MAX: Duration = Duration::from_secs(15);

/// Loads what `make` creates from random bytes, as each kind of policy. Returns how many were
/// loaded and how many rejected.
fn load_all(seed: u64, make: impl Fn(&mut Chance) -> Option<Vec<u8>>) -> (usize, usize) {
    let engine = PolicyEngine::of_the_process(MEMORY).expect("an engine");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("random.wasm");
    let mut chance = Chance::new(seed);
    let (mut loaded, mut refused) = (0, 0);
    let begun = Instant::now();
    for case in 0..CASES {
        if begun.elapsed() > SPAN {
            break;
        }
        let Some(bytes) = make(&mut chance) else {
            continue;
        };
        fs::write(&path, &bytes).expect("the folder can be written");
        let kind = [
            PolicyKind::Balancer,
            PolicyKind::Rewriter,
            PolicyKind::Pricer,
        ][case % 3];
        let source = PolicySource::File(path.clone());
        let policy = PolicyConfig::standalone("random", kind, source, json!({}));
        let loading = Instant::now();
        match load_standalone(&engine, &policy) {
            Ok(_) => loaded += 1,
            Err(error) => {
                assert!(
                    !error.to_string().is_empty(),
                    "case {case}: refused without a word"
                );
                refused += 1;
            }
        }
        assert!(
            loading.elapsed() < LOAD_MAX,
            "case {case}: {:?} to load",
            loading.elapsed()
        );
    }
    println!(
        "seed {seed}: {loaded} loaded, {refused} refused in {:?}",
        begun.elapsed()
    );
    (loaded, refused)
}

fn input(chance: &mut Chance) -> Vec<u8> {
    (0..INPUT_BYTES).map(|_| chance.below(256) as u8).collect()
}

#[test]
fn random_components_are_refused_and_nothing_else() {
    let (loaded, refused) = load_all(5, |chance| {
        let component =
            Component::new(Config::default(), &mut Unstructured::new(&input(chance))).ok()?;
        Some(component.to_bytes())
    });
    assert_eq!(loaded, 0, "none of them is a policy");
    assert!(refused > 100, "only {refused} were tried");
}

#[test]
fn random_modules_are_refused_and_nothing_else() {
    let (loaded, refused) = load_all(6, |chance| {
        let module = Module::new(Config::default(), &mut Unstructured::new(&input(chance))).ok()?;
        Some(module.to_bytes())
    });
    assert_eq!(loaded, 0, "none of them is a policy");
    assert!(refused > 100, "only {refused} were tried");
}

#[test]
fn a_policy_with_random_bytes_in_it_is_refused_or_loads() {
    let whole = marked_pricer(1, Conduct::Fine);
    let (loaded, refused) = load_all(7, |chance| {
        let mut bytes = whole.clone();
        for _ in 0..1 + chance.below(4) {
            let place = chance.below(bytes.len() as u64) as usize;
            bytes[place] = chance.below(256) as u8;
        }
        if chance.below(4) == 0 {
            bytes.truncate(chance.below(bytes.len() as u64) as usize);
        }
        Some(bytes)
    });
    assert!(loaded + refused > 5, "only {} were tried", loaded + refused);
}
