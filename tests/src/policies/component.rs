//! Components in files: the shipped policies and the guests of the tests, as policy authors build
//! them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tollgate::config::ShippedPolicy;

/// The crates of `tests/guests` that are components.
const GUESTS: [&str; 4] = [
    "faulty-balancer",
    "faulty-pricer",
    "faulty-rewriter",
    "marked-pricer",
];

fn crates() -> impl Iterator<Item = &'static str> {
    let shipped = ShippedPolicy::ALL.iter().map(|shipped| shipped.name());
    GUESTS.into_iter().chain(shipped)
}

/// Returns the component of the crate `name`, a shipped policy or one of `tests/guests`. Builds it
/// at its first use.
///
/// # Panics
/// Panics if it cannot be built.
pub fn component(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    assert!(crates().any(|known| known == name), "{name} is not built");
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
        cargo.args(crates().flat_map(|name| ["-p", name]));
        assert!(
            cargo.status().is_ok_and(|status| status.success()),
            "the components cannot be built"
        );
        target.join("wasm32-wasip2/policy")
    });
    folder.join(format!("{}.wasm", name.replace('-', "_")))
}
