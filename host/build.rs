//! Builds the shipped policies for wasm32-wasip2, so that the crate can embed them. They are built
//! by the cargo that builds this crate, in a separate target folder that all profiles share.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const TARGET: &str = "wasm32-wasip2";
const PROFILE: &str = "policy";

macro_rules! shipped_policies {
    ($($variant:ident $name:literal $kind:ident,)*) => {
        /// The crates of the shipped policies.
        const POLICIES: &[&str] = &[$($name),*];
    };
}

include!("shipped_policies.rs");

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let host =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let root = host.parent().expect("the crate lies in the workspace");
    for watched in [
        "policies",
        "guest-sdk",
        "wit",
        "host/shipped_policies.rs",
        "Cargo.lock",
        "Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    let target_folder = target_folder(&out).join("policies");
    build(root, &target_folder);
    for policy in POLICIES {
        let file = format!("{}.wasm", policy.replace('-', "_"));
        let built = target_folder.join(TARGET).join(PROFILE).join(&file);
        if let Err(error) = fs::copy(&built, out.join(format!("{policy}.wasm"))) {
            fail(&format!("cannot copy {}: {error}", built.display()));
        }
    }
}

/// The target folder that `out` lies in: cargo marks it.
fn target_folder(out: &Path) -> &Path {
    out.ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .unwrap_or(out)
}

fn build(root: &Path, target_folder: &Path) {
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo
        .current_dir(root)
        .args([
            "build",
            "--locked",
            "--quiet",
            "--target",
            TARGET,
            "--profile",
            PROFILE,
            "--target-dir",
        ])
        .arg(target_folder)
        // The flags of the outer build are for another machine.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    for policy in POLICIES {
        cargo.args(["--package", policy]);
    }
    let output = cargo
        .output()
        .unwrap_or_else(|error| fail(&format!("cannot run cargo: {error}")));
    if output.status.success() {
        return;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    eprintln!("{said}");
    if said.contains("can't find crate for `core`") || said.contains("can't find crate for `std`") {
        fail(&format!(
            "the target {TARGET} is not installed; install it by: rustup target add {TARGET}"
        ));
    }
    fail("the shipped policies cannot be built; the errors are above");
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
