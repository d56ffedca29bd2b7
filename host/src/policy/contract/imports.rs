//! Checks a component's imports and exports before anything is compiled.
//!
//! Invariant: a component that passes exports the interfaces of its kind, and imports only what the
//! gateway provides.

use wasmparser::{BinaryReaderError, Encoding, Parser, Payload};

use crate::config::PolicyKind;

const CONTRACT: &str = "tollgate:policy";
const CONTRACT_VERSION: &str = "0.1";
const WASI_VERSION: &str = "0.2";

/// The interfaces that the gateway provides. Those of WASI are inert (`engine/wasi.rs`).
const PROVIDED: [&str; 20] = [
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

/// A component that the gateway cannot run as a policy of the expected kind.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InterfaceError {
    #[error("expected a WebAssembly component, found something else")]
    NotWasm,
    #[error("expected a WebAssembly component, found invalid bytes at offset {offset}")]
    Malformed { offset: usize },
    #[error("expected a component, found a core module; build it for wasm32-wasip2")]
    CoreModule,
    #[error("unsupported import {import:?}; the gateway does not provide it to policies")]
    UnsupportedImport { import: String },
    #[error(
        "expected a {kind} (an export of {CONTRACT}/{interface}@{CONTRACT_VERSION}), found {found}"
    )]
    MissingExport {
        kind: &'static str,
        interface: &'static str,
        found: String,
    },
}

impl From<BinaryReaderError> for InterfaceError {
    fn from(error: BinaryReaderError) -> Self {
        Self::Malformed {
            offset: error.offset(),
        }
    }
}

/// Checks that `component` is a policy of `kind` and imports nothing else than what the gateway
/// provides.
///
/// # Errors
/// Returns the first mismatch, by name.
pub(crate) fn check(component: &[u8], kind: PolicyKind) -> Result<(), InterfaceError> {
    let interface = ComponentInterface::parse(component)?;
    if let Some(import) = interface.imports.iter().find(|import| !is_provided(import)) {
        return Err(InterfaceError::UnsupportedImport {
            import: import.clone(),
        });
    }
    for required in ["lifecycle", interface_of(kind)] {
        if !interface.exports(required) {
            return Err(InterfaceError::MissingExport {
                kind: interface_of(kind),
                interface: required,
                found: interface.kind_found(),
            });
        }
    }
    Ok(())
}

/// Returns the kind of policy that `component` is, by its exports.
pub(crate) fn kind_of(component: &[u8]) -> Option<PolicyKind> {
    let kinds = [
        PolicyKind::Balancer,
        PolicyKind::Rewriter,
        PolicyKind::Pricer,
    ];
    kinds
        .into_iter()
        .find(|kind| check(component, *kind).is_ok())
}

fn interface_of(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::Balancer => "balancer",
        PolicyKind::Rewriter => "rewriter",
        PolicyKind::Pricer => "pricer",
    }
}

fn is_provided(import: &str) -> bool {
    let Some((interface, version)) = import.split_once('@') else {
        return false;
    };
    let provided_version = if interface.starts_with("wasi:") {
        WASI_VERSION
    } else {
        CONTRACT_VERSION
    };
    PROVIDED.contains(&interface) && is_compatible(version, provided_version)
}

/// Returns whether `version` is `minor_version` with any patch: `0.2.6` for `0.2`.
fn is_compatible(version: &str, minor_version: &str) -> bool {
    version
        .strip_prefix(minor_version)
        .is_some_and(|patch| patch.starts_with('.'))
}

/// The names that a component imports and exports.
#[derive(Default)]
struct ComponentInterface {
    imports: Vec<String>,
    exports: Vec<String>,
}

impl ComponentInterface {
    fn parse(component: &[u8]) -> Result<Self, InterfaceError> {
        if !component.starts_with(b"\0asm") {
            return Err(InterfaceError::NotWasm);
        }
        let mut interface = Self::default();
        let mut depth = 0_usize;
        for payload in Parser::new(0).parse_all(component) {
            match payload? {
                Payload::Version {
                    encoding: Encoding::Module,
                    ..
                } if depth == 0 => return Err(InterfaceError::CoreModule),
                Payload::Version { .. } => depth += 1,
                Payload::End(_) => depth -= 1,
                Payload::ComponentImportSection(section) if depth == 1 => {
                    for import in section {
                        interface.imports.push(import?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(section) if depth == 1 => {
                    for export in section {
                        interface.exports.push(export?.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(interface)
    }

    /// Returns whether the component exports the contract's interface `name`.
    fn exports(&self, name: &str) -> bool {
        self.exports.iter().any(|export| {
            let Some((interface, version)) = export.split_once('@') else {
                return false;
            };
            interface
                .strip_prefix(CONTRACT)
                .and_then(|rest| rest.strip_prefix('/'))
                == Some(name)
                && is_compatible(version, CONTRACT_VERSION)
        })
    }

    /// Returns what the component is instead of the expected kind, for a message.
    fn kind_found(&self) -> String {
        ["balancer", "rewriter", "pricer"]
            .into_iter()
            .find(|name| self.exports(name))
            .map_or("another component".to_owned(), |name| format!("a {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_policy_are_rejected_with_what_they_are() {
        #[track_caller]
        fn assert_rejected(bytes: &[u8], kind: PolicyKind, message: &str) {
            let error = check(bytes, kind).expect_err("it is no policy").to_string();
            assert!(error.contains(message), "{error}");
        }
        assert_rejected(b"", PolicyKind::Balancer, "something else");
        let module = b"\0asm\x01\0\0\0";
        assert_rejected(module, PolicyKind::Balancer, "core module");
        let component = b"\0asm\x0d\0\x01\0";
        assert_rejected(component, PolicyKind::Pricer, "expected a pricer");
        let malformed = b"\0asm\x0d\0\x01\0\xff\xff";
        assert_rejected(malformed, PolicyKind::Pricer, "invalid bytes");
    }

    #[test]
    fn only_provided_interfaces_may_be_imported() {
        assert!(is_provided("wasi:io/streams@0.2.6"));
        assert!(is_provided("tollgate:policy/host@0.1.0"));
        for refused in [
            "wasi:sockets/tcp@0.2.6",
            "wasi:io/streams@0.3.0",
            "wasi:io/streams",
            "tollgate:policy/host@0.2.0",
        ] {
            assert!(!is_provided(refused), "{refused}");
        }
    }
}
