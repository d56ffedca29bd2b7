//! Policies: the configured ones by their tags, and the shipped ones where something asks for them.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Findings, span};
use crate::config::raw::{OneOrMany, RawPolicy};
use crate::config::shape::join;
use crate::config::{
    POLICY_MEMORY, POLICY_TIMEOUT, PolicyConfig, PolicyId, PolicyKind, PolicySource,
};

/// The shipped policies and what they decide.
pub(crate) const SHIPPED: [(&str, PolicyKind); 6] = [
    ("least-used", PolicyKind::Balancer),
    ("round-robin", PolicyKind::Balancer),
    ("random", PolicyKind::Balancer),
    ("fallback", PolicyKind::Balancer),
    ("standard-headers", PolicyKind::Rewriter),
    ("openai-pricing", PolicyKind::Pricer),
];

const MEMORY_MIN: u64 = 65_536;
const MEMORY_MAX: u64 = 4 * 1024 * 1024 * 1024;
const BUILTIN: &str = "builtin:";

/// The policies found so far.
pub(super) struct Policies {
    found: Vec<PolicyConfig>,
    by_tag: HashMap<String, PolicyId>,
}

impl Policies {
    pub(super) fn configured(raw: &OneOrMany<RawPolicy>, findings: &mut Findings<'_>) -> Self {
        let mut policies = Self {
            found: Vec::new(),
            by_tag: HashMap::new(),
        };
        for (index, raw_policy) in raw.as_slice().iter().enumerate() {
            policies.configure(format!("policies[{index}]"), raw_policy, findings);
        }
        policies
    }

    pub(super) fn resolved(self) -> Vec<PolicyConfig> {
        self.found
    }

    fn configure(&mut self, path: String, raw: &RawPolicy, findings: &mut Findings<'_>) {
        let tag_path = join(&path, "tag");
        if raw.tag.is_empty() {
            findings.problem(tag_path, "missing");
        } else if shipped(&raw.tag.replace('_', "-")).is_some() {
            findings.problem(
                tag_path,
                format!(
                    "expected a name that no shipped policy has, found {:?}",
                    raw.tag
                ),
            );
        } else if self.by_tag.contains_key(&raw.tag) {
            findings.problem(
                tag_path,
                format!("expected a name of its own, found {:?} again", raw.tag),
            );
        }
        let source = source(raw, &join(&path, "path"), findings);
        let timeout = raw
            .timeout
            .as_ref()
            .and_then(|timeout| span(timeout, join(&path, "timeout"), findings));
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            findings.problem(join(&path, "timeout"), "expected more than 0, found 0");
        }
        let memory = raw.memory.unwrap_or(POLICY_MEMORY as u64);
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&memory) {
            let message = format!("expected {MEMORY_MIN} to {MEMORY_MAX}, found {memory}");
            findings.problem(join(&path, "memory"), message);
        }
        if raw.on_failure.is_some() && raw.kind != PolicyKind::Rewriter {
            findings.problem(
                join(&path, "on_failure"),
                "only for a policy of kind \"rewriter\"",
            );
        }
        let record = raw
            .record
            .as_deref()
            .filter(|path| !path.is_empty())
            .map(PathBuf::from);
        if let Some(file) = &record
            && let Some(other) = self
                .found
                .iter()
                .find(|other| other.record.as_ref() == Some(file))
        {
            let message = format!("expected a file of its own, found that of {:?}", other.tag);
            findings.problem(join(&path, "record"), message);
        }
        let Some(source) = source else { return };
        let id = self.push(PolicyConfig {
            tag: raw.tag.clone(),
            path_in_config: path,
            kind: raw.kind,
            source,
            config: raw.config.clone().unwrap_or_else(|| json!({})),
            timeout: timeout.unwrap_or(POLICY_TIMEOUT),
            memory: memory as usize,
            on_failure: raw.on_failure.unwrap_or_default(),
            shadow: raw
                .shadow
                .as_deref()
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            record,
        });
        self.by_tag.insert(raw.tag.clone(), id);
    }

    /// The policy of that tag, where it is of `kind`.
    pub(super) fn named(
        &self,
        tag: &str,
        kind: PolicyKind,
        path: &str,
        findings: &mut Findings<'_>,
    ) -> Option<PolicyId> {
        let Some(id) = self.by_tag.get(tag) else {
            let known: Vec<String> = self.tags(kind).map(|tag| format!("{tag:?}")).collect();
            let known = if known.is_empty() {
                "none is configured".to_owned()
            } else {
                known.join(", ")
            };
            let kind = kind_name(kind);
            findings.problem(
                path,
                format!("expected the tag of a {kind} policy ({known}), found {tag:?}"),
            );
            return None;
        };
        let found = self.found[id.0].kind;
        if found != kind {
            let message = format!(
                "expected a {} policy, found {tag:?}, a {}",
                kind_name(kind),
                kind_name(found)
            );
            findings.problem(path, message);
            return None;
        }
        Some(*id)
    }

    pub(super) fn has_tag(&self, tag: &str) -> bool {
        self.by_tag.contains_key(tag)
    }

    pub(super) fn tags(&self, kind: PolicyKind) -> impl Iterator<Item = &str> {
        self.found
            .iter()
            .filter(move |policy| policy.kind == kind && !policy.path_in_config.is_empty())
            .map(|policy| policy.tag.as_str())
    }

    /// The shipped policy `name` with `config`: one for all that ask for the same.
    pub(super) fn shipped(&mut self, name: &'static str, config: Value) -> PolicyId {
        let source = PolicySource::Shipped(name);
        let same = self.found.iter().position(|policy| {
            policy.path_in_config.is_empty() && policy.source == source && policy.config == config
        });
        if let Some(index) = same {
            return PolicyId(index);
        }
        let kind = shipped(name).map_or(PolicyKind::Balancer, |(_, kind)| *kind);
        let others = self
            .found
            .iter()
            .filter(|policy| policy.path_in_config.is_empty() && policy.source == source)
            .count();
        let tag = if others == 0 {
            name.to_owned()
        } else {
            format!("{name}-{}", others + 1)
        };
        self.push(PolicyConfig {
            tag,
            ..PolicyConfig::shipped(name, kind, config)
        })
    }

    fn push(&mut self, policy: PolicyConfig) -> PolicyId {
        self.found.push(policy);
        PolicyId(self.found.len() - 1)
    }
}

/// The shipped policy of that name, and what it decides.
pub fn shipped_policy(name: &str) -> Option<(&'static str, PolicyKind)> {
    shipped(name).copied()
}

fn shipped(name: &str) -> Option<&'static (&'static str, PolicyKind)> {
    SHIPPED.iter().find(|(shipped, _)| *shipped == name)
}

fn source(raw: &RawPolicy, path: &str, findings: &mut Findings<'_>) -> Option<PolicySource> {
    if raw.path.is_empty() {
        findings.problem(path, "missing");
        return None;
    }
    let Some(name) = raw.path.strip_prefix(BUILTIN) else {
        return Some(PolicySource::File(PathBuf::from(&raw.path)));
    };
    match shipped(name) {
        Some((name, kind)) if *kind == raw.kind => Some(PolicySource::Shipped(name)),
        _ => {
            let of_kind = SHIPPED.iter().filter(|(_, kind)| *kind == raw.kind);
            let names: Vec<String> = of_kind
                .map(|(name, _)| format!("\"{BUILTIN}{name}\""))
                .collect();
            findings.problem(
                path,
                format!(
                    "expected a file or one of {}, found {:?}",
                    names.join(", "),
                    raw.path
                ),
            );
            None
        }
    }
}

pub(crate) fn kind_name(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::Balancer => "balancer",
        PolicyKind::Rewriter => "rewriter",
        PolicyKind::Pricer => "pricer",
    }
}
