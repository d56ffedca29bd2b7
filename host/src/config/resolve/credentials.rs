//! Credentials and the pools that are made of them.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::policies::Policies;
use super::service::{Context, check_detour, endpoint};
use super::{Findings, default_credential_path, span};
use crate::config::raw::{
    RawBalancer, RawCredential, RawDefault, RawDuration, RawExternal, RawOcm,
};
use crate::config::shape::join;
use crate::config::{
    CredentialConfig, CredentialSource, PolicyId, PolicyKind, PoolConfig, WindowCaps,
};
use crate::values::secret::SecretString;

/// The tag of the credential of a service that configures only one.
const SINGLE_TAG: &str = "default";

/// A reserve that is not set.
const RESERVE: f64 = 1.0;

/// How often upstream is asked for a credential's use, where no pool of it says otherwise.
const POLL_INTERVAL: Duration = Duration::from_secs(60);

/// The files that credentials use, over all services: no two uses may share one, however it is spelled.
#[derive(Default)]
pub(super) struct Files {
    used: HashMap<PathBuf, String>,
}

impl Files {
    fn claim(&mut self, file: &Path, path: String, findings: &mut Findings<'_>) {
        let file = one_spelling(file);
        if let Some(first) = self.used.get(&file) {
            findings.problem(
                path,
                format!("expected a file of its own, found the one of {first}"),
            );
        } else {
            self.used.insert(file, path);
        }
    }
}

/// The file that is there, past links; or else its absolute path without dot segments.
fn one_spelling(file: &Path) -> PathBuf {
    if let Ok(found) = file.canonicalize() {
        return found;
    }
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let mut plain = PathBuf::new();
    for component in absolute.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

/// The credentials of a service and its pools: each credential alone, then the configured ones.
pub(super) struct Resolved {
    pub(super) credentials: Vec<CredentialConfig>,
    pub(super) pools: Vec<PoolConfig>,
    /// The first entry of the list, as a pool.
    pub(super) first: usize,
}

/// The credential of a service that configures only one.
pub(super) fn single(
    context: &Context<'_>,
    raw: &RawOcm,
    policies: &mut Policies,
    files: &mut Files,
    findings: &mut Findings<'_>,
) -> Resolved {
    let found = file_credential(
        context,
        &context.path,
        SINGLE_TAG,
        Paths {
            credential: raw.credential_path.as_deref(),
            usages: raw.usages_path.as_deref(),
            detour: raw.detour.as_deref(),
        },
        WindowCaps {
            five_hour: 100.0 - RESERVE,
            weekly: 100.0 - RESERVE,
        },
        files,
        findings,
    );
    let credentials: Vec<CredentialConfig> = found.into_iter().collect();
    let pools = alone(&credentials, policies.shipped("least-used", json!({})));
    Resolved {
        credentials,
        pools,
        first: 0,
    }
}

/// The credentials and pools of a service that lists them.
pub(super) fn several(
    context: &Context<'_>,
    raw: &RawOcm,
    policies: &mut Policies,
    files: &mut Files,
    findings: &mut Findings<'_>,
) -> Resolved {
    for (name, set) in [
        ("credential_path", &raw.credential_path),
        ("usages_path", &raw.usages_path),
        ("detour", &raw.detour),
    ] {
        if set.as_deref().is_some_and(|set| !set.is_empty()) {
            findings.problem(
                join(&context.path, name),
                "not together with credentials: put it on one of those",
            );
        }
    }
    let entries = raw.credentials.as_slice();
    check_tags(context, entries, findings);
    let mut credentials = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let path = entry_path(context, index);
        match entry {
            RawCredential::Default(entry) => {
                credentials.extend(default_credential(context, &path, entry, files, findings));
            }
            RawCredential::External(entry) => {
                credentials.extend(external(context, &path, entry, files, findings));
            }
            RawCredential::Later(_) => {
                findings.problem(
                    join(&path, "type"),
                    "a credential of type \"reverse\" is not there yet",
                );
            }
            RawCredential::Balancer(_) | RawCredential::Fallback(_) => {}
        }
    }
    let mut pools = alone(&credentials, policies.shipped("least-used", json!({})));
    // A member of several pools is asked as often as the most eager of them wants.
    let mut asked_every: HashMap<usize, Duration> = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let path = entry_path(context, index);
        let pool = match entry {
            RawCredential::Balancer(entry) => balancer(&path, entry, policies, findings),
            RawCredential::Fallback(entry) => {
                let interval = interval(entry.poll_interval.as_ref(), &path, findings);
                let balancer = Some(policies.shipped("fallback", json!({})));
                Some(Pool {
                    tag: &entry.tag,
                    members: entry.credentials.as_slice(),
                    balancer,
                    interval,
                })
            }
            RawCredential::Default(_) | RawCredential::External(_) | RawCredential::Later(_) => {
                None
            }
        };
        let Some(pool) = pool else { continue };
        let members = members(&path, pool.members, entries, &credentials, findings);
        for member in &members {
            let known = asked_every.entry(*member).or_insert(pool.interval);
            *known = pool.interval.min(*known);
        }
        let Some(balancer) = pool.balancer else {
            continue;
        };
        let is_external = |member: &usize| {
            matches!(
                credentials[*member].source,
                CredentialSource::External { .. }
            )
        };
        pools.push(PoolConfig {
            tag: pool.tag.to_owned(),
            members_from: join(&path, "credentials"),
            balancer,
            single: false,
            only_external: members.iter().all(is_external),
            members,
        });
    }
    for (member, interval) in asked_every {
        if matches!(credentials[member].source, CredentialSource::File(_)) {
            credentials[member].poll_interval = interval;
        }
    }
    let first_tag = entries.first().map_or("", tag);
    let first = pools
        .iter()
        .position(|pool| pool.tag == first_tag)
        .unwrap_or(0);
    Resolved {
        credentials,
        pools,
        first,
    }
}

fn entry_path(context: &Context<'_>, index: usize) -> String {
    format!("{}.credentials[{index}]", context.path)
}

fn tag(entry: &RawCredential) -> &str {
    match entry {
        RawCredential::Default(entry) => &entry.tag,
        RawCredential::Balancer(entry) => &entry.tag,
        RawCredential::Fallback(entry) => &entry.tag,
        RawCredential::External(entry) => &entry.tag,
        RawCredential::Later(entry) => &entry.tag,
    }
}

fn check_tags(context: &Context<'_>, entries: &[RawCredential], findings: &mut Findings<'_>) {
    let mut tags = HashSet::new();
    for (index, entry) in entries.iter().enumerate() {
        let path = join(&entry_path(context, index), "tag");
        let tag = tag(entry);
        if tag.is_empty() {
            findings.problem(path, "missing");
        } else if !tags.insert(tag) {
            findings.problem(
                path,
                format!("expected a name of its own, found {tag:?} again"),
            );
        }
    }
}

/// Each credential as a pool of its own.
fn alone(credentials: &[CredentialConfig], balancer: PolicyId) -> Vec<PoolConfig> {
    credentials
        .iter()
        .enumerate()
        .map(|(index, credential)| PoolConfig {
            tag: credential.tag.clone(),
            members: vec![index],
            members_from: String::new(),
            balancer,
            single: true,
            only_external: matches!(credential.source, CredentialSource::External { .. }),
        })
        .collect()
}

struct Paths<'a> {
    credential: Option<&'a str>,
    usages: Option<&'a str>,
    detour: Option<&'a str>,
}

fn default_credential(
    context: &Context<'_>,
    path: &str,
    raw: &RawDefault,
    files: &mut Files,
    findings: &mut Findings<'_>,
) -> Option<CredentialConfig> {
    let five_hour = cap(path, "5h", raw.reserve_5h, raw.limit_5h, findings);
    let weekly = cap(
        path,
        "weekly",
        raw.reserve_weekly,
        raw.limit_weekly,
        findings,
    );
    let paths = Paths {
        credential: raw.credential_path.as_deref(),
        usages: raw.usages_path.as_deref(),
        detour: raw.detour.as_deref(),
    };
    file_credential(
        context,
        path,
        &raw.tag,
        paths,
        WindowCaps { five_hour, weekly },
        files,
        findings,
    )
}

fn file_credential(
    context: &Context<'_>,
    path: &str,
    tag: &str,
    paths: Paths<'_>,
    caps: WindowCaps,
    files: &mut Files,
    findings: &mut Findings<'_>,
) -> Option<CredentialConfig> {
    let credential_path = join(path, "credential_path");
    let file = match paths.credential.filter(|file| !file.is_empty()) {
        Some(file) => PathBuf::from(file),
        None => default_credential_path(&credential_path, findings)?,
    };
    files.claim(&file, credential_path, findings);
    let usages_path = paths
        .usages
        .filter(|file| !file.is_empty())
        .map(PathBuf::from);
    if let Some(file) = &usages_path {
        files.claim(file, join(path, "usages_path"), findings);
    }
    check_detour(context, paths.detour, &join(path, "detour"), findings);
    let source = CredentialSource::File(file);
    Some(CredentialConfig {
        tag: tag.to_owned(),
        source,
        usages_path,
        caps,
        poll_interval: POLL_INTERVAL,
    })
}

fn external(
    context: &Context<'_>,
    path: &str,
    raw: &RawExternal,
    files: &mut Files,
    findings: &mut Findings<'_>,
) -> Option<CredentialConfig> {
    let usages_path = raw
        .usages_path
        .as_deref()
        .filter(|file| !file.is_empty())
        .map(PathBuf::from);
    if let Some(file) = &usages_path {
        files.claim(file, join(path, "usages_path"), findings);
    }
    check_detour(
        context,
        raw.detour.as_deref(),
        &join(path, "detour"),
        findings,
    );
    let poll_interval = interval(raw.poll_interval.as_ref(), path, findings);
    let token_path = join(path, "token");
    if raw.token.is_empty() {
        findings.problem(token_path, "missing");
    } else if !raw.token.bytes().all(|byte| byte.is_ascii_graphic()) {
        findings.problem(
            token_path,
            "expected visible ASCII characters without spaces, found others",
        );
    }
    let url_path = join(path, "url");
    if raw.url.is_empty() {
        findings.problem(url_path, "missing");
        return None;
    }
    let url = endpoint(&url_path, &raw.url, findings)?;
    let source = CredentialSource::External {
        url,
        token: SecretString::new(raw.token.clone()),
    };
    // Its own gateway keeps what its owner reserved.
    let caps = WindowCaps {
        five_hour: 100.0,
        weekly: 100.0,
    };
    Some(CredentialConfig {
        tag: raw.tag.clone(),
        source,
        usages_path,
        caps,
        poll_interval,
    })
}

fn cap(
    path: &str,
    window: &str,
    reserve: Option<u8>,
    limit: Option<u8>,
    findings: &mut Findings<'_>,
) -> f64 {
    if reserve.is_some() && limit.is_some() {
        let place = join(path, &format!("limit_{window}"));
        findings.problem(
            place,
            format!("not together with reserve_{window}: both say where the window ends"),
        );
    }
    match (limit, reserve) {
        (Some(limit), _) => f64::from(limit),
        (None, Some(reserve)) => 100.0 - f64::from(reserve),
        (None, None) => 100.0 - RESERVE,
    }
}

struct Pool<'a> {
    tag: &'a str,
    members: &'a [String],
    balancer: Option<PolicyId>,
    interval: Duration,
}

fn balancer<'a>(
    path: &str,
    raw: &'a RawBalancer,
    policies: &mut Policies,
    findings: &mut Findings<'_>,
) -> Option<Pool<'a>> {
    let interval = interval(raw.poll_interval.as_ref(), path, findings);
    let strategy_path = join(path, "strategy");
    let strategy = raw
        .strategy
        .as_deref()
        .filter(|name| !name.is_empty())
        .unwrap_or("least_used");
    let threshold = raw.rebalance_threshold.unwrap_or(0.0);
    let shipped = match strategy.replace('-', "_").as_str() {
        // A tag of one's own goes before a shipped name only where that is spelled otherwise: tags cannot be those.
        "least_used" => {
            Some(policies.shipped("least-used", json!({ "rebalance_threshold": threshold })))
        }
        "round_robin" => Some(policies.shipped("round-robin", json!({}))),
        "random" => Some(policies.shipped("random", json!({}))),
        "fallback" => Some(policies.shipped("fallback", json!({}))),
        _ => None,
    };
    if threshold > 0.0 && strategy.replace('-', "_") != "least_used" {
        let message = format!("only for the strategy least_used, found {strategy:?}");
        findings.problem(join(path, "rebalance_threshold"), message);
    }
    let balancer = match shipped {
        Some(id) => Some(id),
        None if policies.has_tag(strategy) => {
            policies.named(strategy, PolicyKind::Balancer, &strategy_path, findings)
        }
        None => {
            let own: Vec<String> = policies
                .tags(PolicyKind::Balancer)
                .map(|tag| format!(", {tag}"))
                .collect();
            let names = format!("least_used, round_robin, random, fallback{}", own.concat());
            findings.problem(
                strategy_path,
                format!("expected one of {names}, found {strategy:?}"),
            );
            None
        }
    };
    Some(Pool {
        tag: &raw.tag,
        members: raw.credentials.as_slice(),
        balancer,
        interval,
    })
}

fn interval(raw: Option<&RawDuration>, path: &str, findings: &mut Findings<'_>) -> Duration {
    let path = join(path, "poll_interval");
    let interval = raw.and_then(|raw| span(raw, path.clone(), findings));
    if interval.is_some_and(|interval| interval.is_zero()) {
        findings.problem(path, "expected more than 0, found 0");
    }
    interval.unwrap_or(POLL_INTERVAL)
}

fn members(
    path: &str,
    tags: &[String],
    entries: &[RawCredential],
    credentials: &[CredentialConfig],
    findings: &mut Findings<'_>,
) -> Vec<usize> {
    let list = join(path, "credentials");
    if tags.is_empty() {
        findings.problem(list, "expected at least one credential, found none");
        return Vec::new();
    }
    let mut members = Vec::new();
    for (place, member) in tags.iter().enumerate() {
        let path = format!("{list}[{place}]");
        let entry = entries.iter().find(|entry| tag(entry) == member);
        match (
            entry,
            credentials
                .iter()
                .position(|credential| credential.tag == *member),
        ) {
            (Some(RawCredential::Default(_) | RawCredential::External(_)), Some(index))
                if members.contains(&index) =>
            {
                findings.problem(
                    path,
                    format!("expected each credential once, found {member:?} again"),
                );
            }
            (Some(RawCredential::Default(_) | RawCredential::External(_)), Some(index)) => {
                members.push(index)
            }
            (Some(RawCredential::Balancer(_) | RawCredential::Fallback(_)), _) => {
                findings.problem(
                    path,
                    format!("expected a credential, found {member:?}, a pool"),
                );
            }
            // A credential with a problem of its own: that was told.
            (Some(_), _) => {}
            (None, _) => findings.problem(
                path,
                format!("expected the tag of a credential, found {member:?}"),
            ),
        }
    }
    members
}
