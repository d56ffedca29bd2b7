//! Looks at a component's outside before anything is compiled: is it one, of the right world, and does it ask only
//! for what is given.

use wasmparser::{Encoding, Parser, Payload};

use crate::config::PolicyKind;

const CONTRACT: &str = "tollgate:policy";
const CONTRACT_VERSION: &str = "0.1";

/// Interfaces of WASI 0.2 that are given in an inert form: `inert_wasi` has them.
const INERT: [&str; 20] = [
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "tollgate:policy/host",
    "tollgate:policy/types",
];

/// # Errors
/// What the component is or asks for, by name.
pub(super) fn check(bytes: &[u8], kind: PolicyKind) -> Result<(), String> {
    let outside = outside(bytes)?;
    for import in &outside.imports {
        if !is_given(import) {
            return Err(format!(
                "it imports {import:?}, which policies are not given"
            ));
        }
    }
    let wanted = interface(kind);
    for interface in ["lifecycle", wanted] {
        if !outside.exports_interface(interface) {
            let found = ["balancer", "rewriter", "pricer"]
                .into_iter()
                .find(|name| outside.exports_interface(name));
            let found = found.map_or("another component".to_owned(), |name| format!("a {name}"));
            return Err(format!(
                "expected a {wanted} (an export of {CONTRACT}/{interface}@{CONTRACT_VERSION}), found {found}"
            ));
        }
    }
    Ok(())
}

fn interface(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::Balancer => "balancer",
        PolicyKind::Rewriter => "rewriter",
        PolicyKind::Pricer => "pricer",
    }
}

fn is_given(import: &str) -> bool {
    let Some((interface, version)) = import.split_once('@') else {
        return false;
    };
    let track = if interface.starts_with("wasi:") {
        "0.2"
    } else {
        CONTRACT_VERSION
    };
    INERT.contains(&interface) && is_on_track(version, track)
}

fn is_on_track(version: &str, track: &str) -> bool {
    version
        .strip_prefix(track)
        .is_some_and(|rest| rest.starts_with('.'))
}

#[derive(Default)]
struct Outside {
    imports: Vec<String>,
    exports: Vec<String>,
}

impl Outside {
    fn exports_interface(&self, name: &str) -> bool {
        self.exports.iter().any(|export| {
            let Some((interface, version)) = export.split_once('@') else {
                return false;
            };
            interface
                .strip_prefix(CONTRACT)
                .and_then(|rest| rest.strip_prefix('/'))
                == Some(name)
                && is_on_track(version, CONTRACT_VERSION)
        })
    }
}

fn outside(bytes: &[u8]) -> Result<Outside, String> {
    if !bytes.starts_with(b"\0asm") {
        return Err("expected a WebAssembly component, found something else".to_owned());
    }
    let broken = |error: wasmparser::BinaryReaderError| {
        format!(
            "expected a WebAssembly component, found a broken one at byte {}",
            error.offset()
        )
    };
    let mut outside = Outside::default();
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(broken)? {
            Payload::Version {
                encoding: Encoding::Module,
                ..
            } if depth == 0 => {
                return Err(
                    "expected a component, found a core module: build it for wasm32-wasip2"
                        .to_owned(),
                );
            }
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    outside
                        .imports
                        .push(import.map_err(broken)?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    outside
                        .exports
                        .push(export.map_err(broken)?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(outside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_component_is_told_apart() {
        assert!(
            check(b"", PolicyKind::Balancer).is_err_and(|error| error.contains("something else"))
        );
        let module = b"\0asm\x01\0\0\0";
        assert!(
            check(module, PolicyKind::Balancer).is_err_and(|error| error.contains("core module"))
        );
        let component = b"\0asm\x0d\0\x01\0";
        assert!(
            check(component, PolicyKind::Pricer)
                .is_err_and(|error| error.contains("expected a pricer"))
        );
        assert!(check(b"\0asm\x0d\0\x01\0\xff\xff", PolicyKind::Pricer).is_err());
    }

    #[test]
    fn only_what_is_given_may_be_imported() {
        assert!(is_given("wasi:io/streams@0.2.6"));
        assert!(is_given("tollgate:policy/host@0.1.0"));
        for refused in [
            "wasi:sockets/tcp@0.2.6",
            "wasi:io/streams@0.3.0",
            "wasi:io/streams",
            "tollgate:policy/host@0.2.0",
        ] {
            assert!(!is_given(refused), "{refused}");
        }
    }
}
