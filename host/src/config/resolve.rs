//! Resolves the configuration as it was written to one whose every field can be used, and collects
//! every problem on the way. A file for each section resolves it; `scope` holds what they share.

mod admin;
mod claimed_files;
mod default_paths;
mod field;
mod limits;
mod outbounds;
mod policies;
mod scope;
mod service;
mod trust;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use self::claimed_files::ClaimedFiles;
use self::outbounds::DeclaredOutbounds;
use self::policies::DeclaredPolicies;
use self::scope::ResolveScope;
use super::model::{Config, LogConfig, LogOutput, ServiceConfig, UpstreamRoute};
use super::path::ConfigPath;
use super::problem::ProblemReport;
use super::raw::{LogLevel, RawConfig, RawLog, RawService};
use crate::values::limits::LedgerFull;

/// Resolves `raw`, beside which sing-box has `endpoints`: their types, by their tags. Returns `None`
/// only if there is a problem.
pub(super) fn resolve(
    raw: &RawConfig,
    endpoints: &BTreeMap<String, String>,
    report: &mut ProblemReport,
) -> Option<Config> {
    let policies = DeclaredPolicies::configured(raw.policies.as_slice(), report);
    // If it is not known, that is reported below.
    let known_data_dir = field::file(raw.data_dir.as_deref())
        .or_else(|| default_paths::data_dir(&mut ProblemReport::default()));
    let outbounds = DeclaredOutbounds::configured(raw.outbounds.as_slice(), endpoints, report);
    let mut scope = ResolveScope {
        outbounds,
        default_route: UpstreamRoute::Direct,
        certificate_providers: raw.certificate_providers.as_slice(),
        data_dir: known_data_dir,
        policies,
        files: ClaimedFiles::default(),
        report,
    };
    let services = services(raw.services.as_slice(), &mut scope);
    let policies = scope.policies.into_configs();
    let admin = raw
        .admin
        .as_ref()
        .and_then(|admin| admin::admin(admin, &services, report));
    let limits = limits::limits(&raw.limits, report);
    if limits.ledger_full == LedgerFull::Serve && raw.log.disabled {
        report.warning(
            ConfigPath::root().key("limits").key("ledger_full"),
            "\"serve\" writes rows to the log while the ledger cannot be written, but the log is disabled",
        );
    }
    let data_dir = match field::non_empty(raw.data_dir.as_deref()) {
        Some(path) => Some(PathBuf::from(path)),
        None => default_paths::data_dir(report),
    };
    let trust = trust::trust(&raw.certificate, report);
    Some(Config {
        trust,
        log: log(&raw.log),
        services,
        policies,
        data_dir: data_dir?,
        admin,
        limits,
    })
}

fn services(entries: &[RawService], scope: &mut ResolveScope<'_>) -> Vec<ServiceConfig> {
    let list = ConfigPath::root().key("services");
    let is_ocm = |entry: &&RawService| matches!(entry, RawService::Ocm(_));
    let ocm_count = entries.iter().filter(is_ocm).count();
    if ocm_count == 0 {
        let message = "expected at least one service of type \"ocm\", found none";
        scope.report.problem(list.clone(), message);
    }
    let mut services: Vec<ServiceConfig> = Vec::new();
    let mut tags = HashSet::new();
    for (index, entry) in entries.iter().enumerate() {
        let path = list.index(index);
        let raw = match entry {
            RawService::Ocm(raw) => raw,
            RawService::Other(other) => {
                let kind = other.kind.as_str();
                let message = format!("ignored: services of type {kind:?} are not supported");
                scope.report.warning(path, message);
                continue;
            }
        };
        if let Some(later) = replacing_service(entries, index) {
            let message = format!("ignored: services[{later}] has the same tag and replaces it");
            scope.report.warning(path, message);
            continue;
        }
        let tag = match explicit_tag(entry) {
            Some(tag) => tag.to_owned(),
            None => default_service_tag(index, ocm_count),
        };
        if !tags.insert(tag.clone()) {
            let message = format!("duplicate tag {tag:?}");
            scope.report.problem(path.key("tag"), message);
        }
        let Some(service) = service::service(&path, tag, raw, scope) else {
            continue;
        };
        let options = Some(&service.listen.options);
        field::check_listen_address(
            &service.listen.address,
            options,
            &path,
            &services,
            scope.report,
        );
        services.push(service);
    }
    services
}

fn explicit_tag(entry: &RawService) -> Option<&str> {
    match entry {
        RawService::Ocm(raw) => field::non_empty(raw.tag.as_deref()),
        RawService::Other(_) => None,
    }
}

/// Returns the index of the last service with the tag of the one at `index`, if that is another
/// one: in sing-box, the later service replaces the earlier.
fn replacing_service(entries: &[RawService], index: usize) -> Option<usize> {
    let tag = explicit_tag(&entries[index])?;
    let last = entries
        .iter()
        .rposition(|entry| explicit_tag(entry) == Some(tag))?;
    (last != index).then_some(last)
}

fn default_service_tag(index: usize, ocm_count: usize) -> String {
    if ocm_count == 1 {
        "ocm".to_owned()
    } else {
        format!("ocm-{index}")
    }
}

fn log(raw: &RawLog) -> LogConfig {
    let output = match raw.output.as_deref() {
        None | Some("" | "stderr") => LogOutput::Stderr,
        Some("stdout") => LogOutput::Stdout,
        Some(path) => LogOutput::File(PathBuf::from(path)),
    };
    LogConfig {
        disabled: raw.disabled,
        level: raw.level.unwrap_or(LogLevel::Info),
        output,
        timestamp: raw.timestamp.unwrap_or(true),
        format: raw.format,
    }
}
