//! Hostile guests as text: the part that all have stands in `base.wat`, and a case adds what it
//! does.

use std::path::Path;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

const BASE: &str = include_str!("base.wat");

/// A `configure` that accepts every configuration.
pub(super) const CONFIGURE: &str = r#"
  (func (export "tollgate:policy/lifecycle@0.1.0#configure") (param i32 i32) (result i32)
    (i32.store8 (i32.const 1024) (i32.const 0))
    (call $done)
    (i32.const 1024))
"#;

/// A component of that kind whose further text is `text`. Imports stand first.
pub(super) fn component(kind: &str, imports: &str, text: &str) -> Vec<u8> {
    let whole = format!("(module {imports}\n{BASE}\n{text})");
    let mut module = wat::parse_str(&whole).unwrap_or_else(|error| panic!("{error}"));
    let mut resolve = Resolve::default();
    let contract = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a workspace")
        .join("wit/policy.wit");
    let contract = std::fs::read_to_string(contract).expect("the contract is there");
    let package = resolve
        .push_source("policy.wit", &contract)
        .expect("the contract is WIT");
    let world = resolve
        .select_world(&[package], Some(&format!("{kind}-policy")))
        .expect("a world of it");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
        .expect("a module of that world");
    let encoder = ComponentEncoder::default()
        .module(&module)
        .unwrap_or_else(|error| panic!("{error:#}"));
    encoder
        .validate(true)
        .encode()
        .unwrap_or_else(|error| panic!("{error:#}"))
}

/// A pricer: `price` is the body that runs for a request. Where it ends, everything costs 3.
pub(super) fn pricer(price: &str) -> Vec<u8> {
    pricer_with("", CONFIGURE, price)
}

/// The same, with imports and another `configure`.
pub(super) fn pricer_with(imports: &str, configure: &str, price: &str) -> Vec<u8> {
    let text = format!(
        r#"{configure}
  (func (export "tollgate:policy/pricer@0.1.0#columns") (param i32 i32) (call $done))
  (func $recurse (param i32) (result i32)
    (i32.add (call $recurse (i32.add (local.get 0) (i32.const 1))) (local.get 0)))
  (func $serves
    ;; by-kind at 2048: three nano-dollars for input, nothing for the others. The quote at 1032, behind its case.
    (f64.store (i32.const 2048) (f64.const 3))
    (memory.fill (i32.const 2056) (i32.const 0) (i32.const 32))
    (i32.store8 (i32.const 1024) (i32.const 0))
    (i32.store (i32.const 1032) (i32.const 2048))
    (i32.store (i32.const 1036) (i32.const 5))
    (f64.store (i32.const 1040) (f64.const 3))
    (f64.store (i32.const 1048) (f64.const 0)))
  (func (export "tollgate:policy/pricer@0.1.0#price")
    (param $strings i32) (param i32 i32 i32 f64 f64 f64) (param i32 i32) (result i32)
    (local $count i32)
    (call $serves)
    (if (i32.eqz (call $is_trial (local.get $strings))) (then {price}))
    (call $done)
    (i32.const 1024))
"#
    );
    component("pricer", imports, &text)
}

/// A balancer: `pick` runs for a request, and may change the decision at 1028 (member, whether the
/// session moves, reason); where it does not, the first member serves. `members` may change the
/// list of weights at 1024, which are ones at 2048.
pub(super) fn balancer(members: &str, pick: &str) -> Vec<u8> {
    let text = format!(
        r#"{CONFIGURE}
  (func (export "tollgate:policy/balancer@0.1.0#members")
    (param i32 i32) (param i32) (param $count i32) (result i32)
    (local $at i32)
    (loop $more
      (f64.store offset=2048 (i32.mul (local.get $at) (i32.const 8)) (f64.const 1))
      (br_if $more (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 1))) (local.get $count))))
    (i32.store (i32.const 1024) (i32.const 2048))
    (i32.store (i32.const 1028) (local.get $count))
    {members}
    (call $done)
    (i32.const 1024))
  (func (export "tollgate:policy/balancer@0.1.0#pick")
    (param $strings i32) (param i32 i32 i32 f64 f64 f64) (param i32 i32) (param i32) (result i32)
    (memory.fill (i32.const 1024) (i32.const 0) (i32.const 32))
    (if (i32.eqz (call $is_trial (local.get $strings))) (then {pick}))
    (call $done)
    (i32.const 1024))
"#
    );
    component("balancer", "", &text)
}

/// A rewriter: `rewrite` runs for a request, and may change the list of edits at 1028, which is
/// empty.
pub(super) fn rewriter(rewrite: &str) -> Vec<u8> {
    let text = format!(
        r#"{CONFIGURE}
  (func (export "tollgate:policy/rewriter@0.1.0#rewrite-request")
    (param $strings i32) (param i32 i32 i32 f64 f64 f64) (param i32 i32) (result i32)
    (local $at i32)
    (memory.fill (i32.const 1024) (i32.const 0) (i32.const 32))
    (if (i32.eqz (call $is_trial (local.get $strings))) (then {rewrite}))
    (call $done)
    (i32.const 1024))
  (func (export "tollgate:policy/rewriter@0.1.0#rewrite-response")
    (param $strings i32) (param i32 i32 i32 f64 f64 f64) (param i32) (param i32 i32) (result i32)
    (memory.fill (i32.const 1024) (i32.const 0) (i32.const 32))
    (call $done)
    (i32.const 1024))
"#
    );
    component("rewriter", "", &text)
}
