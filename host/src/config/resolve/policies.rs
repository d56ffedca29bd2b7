//! The policies that are in use: the configured ones by their tags, and the shipped ones that
//! something needs.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::field;
use crate::config::model::{POLICY_MEMORY, POLICY_TIMEOUT, PolicyConfig, PolicyId, PolicySource};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::{PolicyKind, RawPolicy, RequiredText};
use crate::config::shipped::ShippedPolicy;

const MEMORY_MIN: u64 = 65_536;
const MEMORY_MAX: u64 = 4 * 1024 * 1024 * 1024;
const BUILTIN: &str = "builtin:";

/// The policies found so far. A [`PolicyId`] is an index into it.
pub(super) struct DeclaredPolicies {
    policies: Vec<PolicyConfig>,
    by_tag: HashMap<String, PolicyId>,
}

impl DeclaredPolicies {
    pub(super) fn configured(entries: &[RawPolicy], report: &mut ProblemReport) -> Self {
        let mut table = Self {
            policies: Vec::new(),
            by_tag: HashMap::new(),
        };
        let list = ConfigPath::root().key("policies");
        for (index, raw) in entries.iter().enumerate() {
            table.add(list.index(index), raw, report);
        }
        table
    }

    pub(super) fn into_configs(self) -> Vec<PolicyConfig> {
        self.policies
    }

    fn add(&mut self, path: ConfigPath, raw: &RawPolicy, report: &mut ProblemReport) {
        self.check_tag(&raw.tag, path.key("tag"), report);
        let source = source(raw, path.key("path"), report);
        let timeout = raw
            .timeout
            .as_ref()
            .and_then(|timeout| field::positive_duration(timeout, path.key("timeout"), report));
        let memory = match &raw.memory {
            Some(memory) => memory.bytes().unwrap_or(u64::MAX),
            None => POLICY_MEMORY as u64,
        };
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&memory) {
            let message = format!("expected {MEMORY_MIN} to {MEMORY_MAX}, found {memory}");
            report.problem(path.key("memory"), message);
        }
        if raw.on_failure.is_some() && raw.kind != PolicyKind::Rewriter {
            let message = "allowed only for a policy of kind \"rewriter\"";
            report.problem(path.key("on_failure"), message);
        }
        let record = field::file(raw.record.as_deref());
        self.check_record(record.as_ref(), path.key("record"), report);
        let Some(source) = source else { return };
        let id = self.push(PolicyConfig {
            tag: raw.tag.to_string(),
            entry_path: Some(path),
            kind: raw.kind,
            source,
            config: raw.config.clone().unwrap_or_else(|| json!({})),
            timeout: timeout.unwrap_or(POLICY_TIMEOUT),
            memory: memory as usize,
            on_failure: raw.on_failure.unwrap_or_default(),
            shadow: field::file(raw.shadow.as_deref()),
            record,
        });
        self.by_tag.insert(raw.tag.to_string(), id);
    }

    fn check_tag(&self, tag: &RequiredText, field: ConfigPath, report: &mut ProblemReport) {
        if let Some(problem) = tag.problem() {
            report.problem(field, problem);
        } else if ShippedPolicy::from_name(&tag.replace('_', "-")).is_some() {
            report.problem(
                field,
                format!("{:?} is the name of a shipped policy", &**tag),
            );
        } else if self.by_tag.contains_key(&**tag) {
            report.problem(field, format!("duplicate tag {:?}", &**tag));
        }
    }

    fn check_record(
        &self,
        record: Option<&PathBuf>,
        field: ConfigPath,
        report: &mut ProblemReport,
    ) {
        let Some(file) = record else { return };
        let mut others = self.policies.iter();
        if let Some(other) = others.find(|other| other.record.as_ref() == Some(file)) {
            report.problem(
                field,
                format!("the same file as that of policy {:?}", other.tag),
            );
        }
    }

    /// Returns the configured policy with `tag`, if it is of `kind`.
    pub(super) fn named(
        &self,
        tag: &str,
        kind: PolicyKind,
        field: &ConfigPath,
        report: &mut ProblemReport,
    ) -> Option<PolicyId> {
        let expected = kind.as_str();
        let Some(id) = self.by_tag.get(tag) else {
            let known: Vec<String> = self.tags(kind).map(|tag| format!("{tag:?}")).collect();
            let known = if known.is_empty() {
                "none is configured".to_owned()
            } else {
                known.join(", ")
            };
            let message =
                format!("expected the tag of a {expected} policy ({known}), found {tag:?}");
            report.problem(field.clone(), message);
            return None;
        };
        let found = self.policies[id.0].kind;
        if found != kind {
            let found = found.as_str();
            let message = format!("expected a {expected} policy, found {tag:?}, a {found}");
            report.problem(field.clone(), message);
            return None;
        }
        Some(*id)
    }

    pub(super) fn has_tag(&self, tag: &str) -> bool {
        self.by_tag.contains_key(tag)
    }

    /// The tags of the configured policies of `kind`.
    pub(super) fn tags(&self, kind: PolicyKind) -> impl Iterator<Item = &str> {
        self.policies
            .iter()
            .filter(move |policy| policy.kind == kind && policy.entry_path.is_some())
            .map(|policy| policy.tag.as_str())
    }

    /// Returns the policy `shipped` with `config`: the same one for the same configuration.
    pub(super) fn shipped(&mut self, shipped: ShippedPolicy, config: Value) -> PolicyId {
        let source = PolicySource::Shipped(shipped);
        let is_of_source =
            |policy: &&PolicyConfig| policy.entry_path.is_none() && policy.source == source;
        let same = self
            .policies
            .iter()
            .position(|policy| is_of_source(&policy) && policy.config == config);
        if let Some(index) = same {
            return PolicyId(index);
        }
        let name = shipped.name();
        let tag = match self.policies.iter().filter(is_of_source).count() {
            0 => name.to_owned(),
            others => format!("{name}-{}", others + 1),
        };
        self.push(PolicyConfig {
            tag,
            ..PolicyConfig::shipped(shipped, config)
        })
    }

    fn push(&mut self, policy: PolicyConfig) -> PolicyId {
        self.policies.push(policy);
        PolicyId(self.policies.len() - 1)
    }
}

fn source(raw: &RawPolicy, field: ConfigPath, report: &mut ProblemReport) -> Option<PolicySource> {
    if let Some(problem) = raw.path.problem() {
        report.problem(field, problem);
        return None;
    }
    let Some(name) = raw.path.strip_prefix(BUILTIN) else {
        return Some(PolicySource::File(PathBuf::from(&*raw.path)));
    };
    match ShippedPolicy::from_name(name) {
        Some(shipped) if shipped.kind() == raw.kind => Some(PolicySource::Shipped(shipped)),
        _ => {
            let names: Vec<String> = ShippedPolicy::of_kind(raw.kind)
                .map(|shipped| format!("\"{BUILTIN}{}\"", shipped.name()))
                .collect();
            let (names, found) = (names.join(", "), &*raw.path);
            let message = format!("expected a file or one of {names}, found {found:?}");
            report.problem(field, message);
            None
        }
    }
}
