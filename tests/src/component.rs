//! Components in files: the shipped policies and the guests of the tests, as policy authors build
//! them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What is built.
const CRATES: [&str; 10] = [
    "faulty-balancer",
    "faulty-pricer",
    "faulty-rewriter",
    "marked-pricer",
    "fallback",
    "least-used",
    "openai-pricing",
    "random",
    "round-robin",
    "standard-headers",
];

/// Returns the component of the crate `name`, a shipped policy or one of `tests/guests`. Builds it
/// at its first use.
///
/// # Panics
/// Panics if it cannot be built.
pub fn component(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    assert!(CRATES.contains(&name), "{name} is not built");
    let folder = BUILT.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("the crate lies in the workspace");
        let target = root.join("target/policies");
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .current_dir(root)
            .args(["build", "--locked", "--quiet", "--target", "wasm32-wasip2"]);
        cargo
            .args(["--profile", "policy", "--target-dir"])
            .arg(&target);
        cargo.args(CRATES.iter().flat_map(|name| ["-p", name]));
        assert!(
            cargo.status().is_ok_and(|status| status.success()),
            "the components cannot be built"
        );
        target.join("wasm32-wasip2/policy")
    });
    folder.join(format!("{}.wasm", name.replace('-', "_")))
}
