//! Who may name which crate, and who may print.

use std::fs;

use crate::check_none;
use crate::layers::module_of;
use crate::source::{Source, host_sources, repository, tokens};

/// Returns the places where `word` stands in code of modules other than `allowed`.
fn strays(sources: &[Source], word: &str, allowed: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        if allowed.contains(&module_of(&source.path)) {
            continue;
        }
        for (line, token) in tokens(&source.code) {
            if token == word {
                found.push(format!("{}:{line}: {word}", source.path));
            }
        }
    }
    found
}

/// Whether the macro `name` is called in `source`.
fn calls_macro(source: &Source, name: &str) -> bool {
    tokens(&source.code)
        .windows(2)
        .any(|pair| pair[0].1 == name && pair[1].1 == "!")
}

#[test]
fn only_policy_names_wasmtime() {
    check_none(&strays(&host_sources(), "wasmtime", &["policy"]));
}

#[test]
fn only_tls_and_upstream_name_rustls() {
    let sources = host_sources();
    for crate_name in [
        "rustls",
        "tokio_rustls",
        "hyper_rustls",
        "rustls_native_certs",
    ] {
        check_none(&strays(&sources, crate_name, &["tls", "upstream"]));
    }
}

#[test]
fn only_cli_prints() {
    let sources = host_sources();
    for name in ["println", "eprintln", "print", "eprint", "dbg"] {
        let found: Vec<String> = sources
            .iter()
            .filter(|source| module_of(&source.path) != "cli" && calls_macro(source, name))
            .map(|source| format!("{}: {name}!", source.path))
            .collect();
        check_none(&found);
    }
}

/// Returns the crates that a manifest names, in any of its tables of dependencies.
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
    let manifest =
        fs::read_to_string(repository().join("host/Cargo.toml")).expect("the manifest can be read");
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
    let sources = host_sources();
    check_none(&strays(&sources, "tollgate_policy", &[]));
    check_none(&strays(&sources, "scripted_upstream", &[]));
}

#[test]
fn finds_a_stray_name_in_code_and_not_in_text() {
    let text = "//! No wasmtime here.\nuse wasmtime::Store;\nconst A: &str = \"wasmtime\";";
    let sources = [
        Source::new("ledger.rs", text),
        Source::new("tls.rs", "use wasmtime_wasi::X;"),
    ];
    assert_eq!(
        strays(&sources, "wasmtime", &["policy"]),
        ["ledger.rs:2: wasmtime"]
    );
    assert!(strays(&sources, "wasmtime", &["ledger"]).is_empty());
}

#[test]
fn reads_dependencies_in_every_form() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\na.workspace = true\nb = { path = \"../b\" }\n\
        [dev-dependencies]\nc = \"1\"\n[target.'cfg(unix)'.dependencies.d]\nversion = \"1\"\n";
    assert_eq!(dependencies(manifest), ["a", "b", "c", "d"]);
}
