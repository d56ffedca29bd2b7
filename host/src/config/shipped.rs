//! The policies that ship with the gateway: their names and kinds.

use super::raw::PolicyKind;

/// The shipped policies and what they decide.
const SHIPPED_POLICIES: [(&str, PolicyKind); 6] = [
    ("least-used", PolicyKind::Balancer),
    ("round-robin", PolicyKind::Balancer),
    ("random", PolicyKind::Balancer),
    ("fallback", PolicyKind::Balancer),
    ("standard-headers", PolicyKind::Rewriter),
    ("openai-pricing", PolicyKind::Pricer),
];

/// Returns the shipped policy `name` and what it decides.
pub fn shipped_policy(name: &str) -> Option<(&'static str, PolicyKind)> {
    SHIPPED_POLICIES
        .into_iter()
        .find(|(shipped, _)| *shipped == name)
}

/// Returns the names of the shipped policies of `kind`.
pub(super) fn shipped_of_kind(kind: PolicyKind) -> impl Iterator<Item = &'static str> {
    SHIPPED_POLICIES
        .into_iter()
        .filter(move |(_, shipped)| *shipped == kind)
        .map(|(name, _)| name)
}
