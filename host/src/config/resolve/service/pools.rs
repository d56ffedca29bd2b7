//! The pools of a service. Each credential is a pool with itself as the only member; the configured
//! pools follow.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::json;

use super::credentials;
use crate::config::model::{CredentialConfig, CredentialSource, PolicyId, PoolConfig};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::{PolicyKind, RawBalancer, RawCredential, RawFallback, RawOcm};
use crate::config::resolve::field;
use crate::config::resolve::scope::ResolveScope;
use crate::config::shipped::ShippedPolicy;

/// The credentials and the pools of a service.
pub(super) struct ServicePools {
    pub(super) credentials: Vec<CredentialConfig>,
    pub(super) pools: Vec<PoolConfig>,
    /// The pool of the first entry of the list, as an index.
    pub(super) default_pool: usize,
}

/// Resolves a service without a list of credentials.
pub(super) fn single(
    path: &ConfigPath,
    raw: &RawOcm,
    scope: &mut ResolveScope<'_>,
) -> ServicePools {
    let credential = credentials::single(path, raw, scope);
    let credentials: Vec<CredentialConfig> = credential.into_iter().collect();
    let pools = single_pools(&credentials, scope);
    ServicePools {
        credentials,
        pools,
        default_pool: 0,
    }
}

/// Resolves a service with a list of credentials and pools.
pub(super) fn listed(
    path: &ConfigPath,
    raw: &RawOcm,
    scope: &mut ResolveScope<'_>,
) -> ServicePools {
    check_single_fields(path, raw, scope.report);
    let list = path.key("credentials");
    let entries = raw.credentials.as_slice();
    check_tags(&list, entries, scope.report);
    let mut credentials = listed_credentials(&list, entries, scope);
    let mut pools = single_pools(&credentials, scope);
    let mut intervals = PollIntervals::default();
    for (index, entry) in entries.iter().enumerate() {
        let path = list.index(index);
        let pool = match entry {
            RawCredential::Balancer(raw) => balancer(&path, raw, scope),
            RawCredential::Fallback(raw) => fallback(&path, raw, scope),
            RawCredential::Default(_) | RawCredential::External(_) => continue,
        };
        let members_path = path.key("credentials");
        let names = pool.members;
        let members = members(&members_path, names, entries, &credentials, scope.report);
        intervals.add(&members, pool.poll_interval);
        let Some(balancer) = pool.balancer else {
            continue;
        };
        pools.push(PoolConfig {
            tag: pool.tag.to_owned(),
            members_path,
            balancer,
            single: false,
            only_external: members
                .iter()
                .all(|member| is_external(&credentials[*member])),
            members,
        });
    }
    intervals.apply(&mut credentials);
    let first_tag = entries.first().map_or("", RawCredential::tag);
    let default_pool = pools.iter().position(|pool| pool.tag == first_tag);
    ServicePools {
        credentials,
        pools,
        default_pool: default_pool.unwrap_or(0),
    }
}

/// Reports fields that belong on a credential if the service has a list of them.
fn check_single_fields(path: &ConfigPath, raw: &RawOcm, report: &mut ProblemReport) {
    for (name, set) in [
        ("credential_path", &raw.credential_path),
        ("usages_path", &raw.usages_path),
        ("detour", &raw.detour),
    ] {
        if field::non_empty(set.as_deref()).is_some() {
            let message = "not allowed together with \"credentials\": set it on one of them";
            report.problem(path.key(name), message);
        }
    }
}

fn check_tags(list: &ConfigPath, entries: &[RawCredential], report: &mut ProblemReport) {
    let mut tags = HashSet::new();
    for (index, entry) in entries.iter().enumerate() {
        let field = list.index(index).key("tag");
        let tag = entry.tag();
        if let Some(problem) = entry.required_tag().problem() {
            report.problem(field, problem);
        } else if !tags.insert(tag) {
            report.problem(field, format!("duplicate tag {tag:?}"));
        }
    }
}

fn listed_credentials(
    list: &ConfigPath,
    entries: &[RawCredential],
    scope: &mut ResolveScope<'_>,
) -> Vec<CredentialConfig> {
    let mut credentials = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let path = list.index(index);
        match entry {
            RawCredential::Default(raw) => {
                credentials.extend(credentials::default(&path, raw, scope));
            }
            RawCredential::External(raw) => {
                credentials.extend(credentials::external(&path, raw, scope));
            }
            RawCredential::Balancer(_) | RawCredential::Fallback(_) => {}
        }
    }
    credentials
}

fn is_external(credential: &CredentialConfig) -> bool {
    matches!(credential.source, CredentialSource::External { .. })
}

/// Returns each credential as a pool with itself as the only member.
fn single_pools(credentials: &[CredentialConfig], scope: &mut ResolveScope<'_>) -> Vec<PoolConfig> {
    let balancer = scope.policies.shipped(ShippedPolicy::LeastUsed, json!({}));
    let single_pool = |(index, credential): (usize, &CredentialConfig)| PoolConfig {
        tag: credential.tag.clone(),
        members: vec![index],
        members_path: ConfigPath::root(),
        balancer,
        single: true,
        only_external: is_external(credential),
    };
    credentials.iter().enumerate().map(single_pool).collect()
}

/// The interval of a pool whose members are not polled.
const NEVER: Duration = Duration::MAX;

/// The poll intervals that pools ask for. A member of several pools is polled at the shortest one.
#[derive(Default)]
struct PollIntervals(HashMap<usize, Duration>);

impl PollIntervals {
    fn add(&mut self, members: &[usize], interval: Option<Duration>) {
        let interval = interval.unwrap_or(NEVER);
        for member in members {
            let shortest = self.0.entry(*member).or_insert(interval);
            *shortest = interval.min(*shortest);
        }
    }

    /// Sets the intervals of credentials in files. An external credential has a field
    /// `poll_interval`.
    fn apply(self, credentials: &mut [CredentialConfig]) {
        for (member, interval) in self.0 {
            if !is_external(&credentials[member]) {
                credentials[member].poll_interval = (interval != NEVER).then_some(interval);
            }
        }
    }
}

/// A configured pool before its members are resolved.
struct NamedPool<'a> {
    tag: &'a str,
    members: &'a [String],
    balancer: Option<PolicyId>,
    poll_interval: Option<Duration>,
}

fn fallback<'a>(
    path: &ConfigPath,
    raw: &'a RawFallback,
    scope: &mut ResolveScope<'_>,
) -> NamedPool<'a> {
    let raw_interval = raw.poll_interval.as_ref();
    NamedPool {
        tag: &raw.tag,
        members: raw.credentials.as_slice(),
        balancer: Some(scope.policies.shipped(ShippedPolicy::Fallback, json!({}))),
        poll_interval: credentials::poll_interval(raw_interval, path, scope.report),
    }
}

fn balancer<'a>(
    path: &ConfigPath,
    raw: &'a RawBalancer,
    scope: &mut ResolveScope<'_>,
) -> NamedPool<'a> {
    let raw_interval = raw.poll_interval.as_ref();
    NamedPool {
        tag: &raw.tag,
        members: raw.credentials.as_slice(),
        poll_interval: credentials::poll_interval(raw_interval, path, scope.report),
        balancer: strategy(path, raw, scope),
    }
}

/// The policy of a balancer without a strategy.
const DEFAULT_BALANCER: ShippedPolicy = ShippedPolicy::LeastUsed;

/// Returns the policy of a balancer's strategy: a shipped one, or a configured one by its tag.
fn strategy(
    path: &ConfigPath,
    raw: &RawBalancer,
    scope: &mut ResolveScope<'_>,
) -> Option<PolicyId> {
    let default = DEFAULT_BALANCER.strategy();
    let strategy = field::non_empty(raw.strategy.as_deref()).unwrap_or(&default);
    let threshold = raw.rebalance_threshold.unwrap_or(0.0);
    // The tag of a configured policy is never the name of a shipped one.
    let shipped = ShippedPolicy::from_strategy(strategy);
    if threshold > 0.0 && shipped != Some(ShippedPolicy::LeastUsed) {
        let needed = ShippedPolicy::LeastUsed.strategy();
        let message = format!("ignored: it has an effect only with {needed}, found {strategy:?}");
        scope
            .report
            .warning(path.key("rebalance_threshold"), message);
    }
    let config = if shipped == Some(ShippedPolicy::LeastUsed) {
        json!({ "rebalance_threshold": threshold })
    } else {
        json!({})
    };
    match shipped {
        Some(shipped) => Some(scope.policies.shipped(shipped, config)),
        None => configured_strategy(strategy, &path.key("strategy"), scope),
    }
}

fn configured_strategy(
    strategy: &str,
    field: &ConfigPath,
    scope: &mut ResolveScope<'_>,
) -> Option<PolicyId> {
    if scope.policies.has_tag(strategy) {
        return scope.policy(strategy, PolicyKind::Balancer, field);
    }
    let shipped = ShippedPolicy::of_kind(PolicyKind::Balancer).map(ShippedPolicy::strategy);
    let configured = scope.policies.tags(PolicyKind::Balancer).map(str::to_owned);
    let names: Vec<String> = shipped.chain(configured).collect();
    let message = format!("expected one of {}, found {strategy:?}", names.join(", "));
    scope.report.problem(field.clone(), message);
    None
}

/// Resolves the tags of a pool's members to indices into `credentials`.
fn members(
    list: &ConfigPath,
    tags: &[String],
    entries: &[RawCredential],
    credentials: &[CredentialConfig],
    report: &mut ProblemReport,
) -> Vec<usize> {
    if tags.is_empty() {
        let message = "expected at least one credential, found none";
        report.problem(list.clone(), message);
    }
    let mut members = Vec::new();
    for (index, tag) in tags.iter().enumerate() {
        let message = match entries.iter().find(|entry| entry.tag() == tag) {
            None => format!("expected the tag of a credential, found {tag:?}"),
            Some(RawCredential::Balancer(_) | RawCredential::Fallback(_)) => {
                format!("expected a credential, found {tag:?}, a pool")
            }
            Some(RawCredential::Default(_) | RawCredential::External(_)) => match credentials
                .iter()
                .position(|credential| credential.tag == *tag)
            {
                Some(member) if members.contains(&member) => {
                    let message = format!("ignored: duplicate member {tag:?}");
                    report.warning(list.index(index), message);
                    continue;
                }
                Some(member) => {
                    members.push(member);
                    continue;
                }
                // The credential could not be resolved, and that was reported.
                None => continue,
            },
        };
        report.problem(list.index(index), message);
    }
    members
}
