//! The credentials of a service: files, and other gateways.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::model::{
    CredentialConfig, CredentialSource, DialHost, DialTarget, ReverseRole, UserConfig, WindowCaps,
};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::{RawCredential, RawDefault, RawDuration, RawExternal, RawOcm};
use crate::config::resolve::claimed_files::FileContent;
use crate::config::resolve::scope::ResolveScope;
use crate::config::resolve::{default_paths, field};
use crate::values::secret::SecretString;

/// The tag of the credential of a service without a list of credentials.
const SINGLE_TAG: &str = "default";

/// The reserve of a window if none is set, in percent.
const DEFAULT_RESERVE: f64 = 1.0;

const DEFAULT_POLL_INTERVAL: Duration = Duration::from_secs(60);

/// The paths of a credential in a file, as they are written on the credential or on its service.
struct RawPaths<'a> {
    credential: Option<&'a str>,
    usages: Option<&'a str>,
    detour: Option<&'a str>,
}

/// Resolves the credential of a service without a list of credentials.
pub(super) fn single(
    path: &ConfigPath,
    raw: &RawOcm,
    scope: &mut ResolveScope<'_>,
) -> Option<CredentialConfig> {
    let paths = RawPaths {
        credential: raw.credential_path.as_deref(),
        usages: raw.usages_path.as_deref(),
        detour: raw.detour.as_deref(),
    };
    let caps = WindowCaps {
        five_hour: 100.0 - DEFAULT_RESERVE,
        weekly: 100.0 - DEFAULT_RESERVE,
    };
    in_file(path, SINGLE_TAG, paths, caps, scope)
}

/// Resolves an entry of type `default`.
pub(super) fn default(
    path: &ConfigPath,
    raw: &RawDefault,
    scope: &mut ResolveScope<'_>,
) -> Option<CredentialConfig> {
    let report = &mut *scope.report;
    let five_hour = cap(path, "5h", raw.reserve_5h, raw.limit_5h, report);
    let (reserve, limit) = (raw.reserve_weekly, raw.limit_weekly);
    let weekly = cap(path, "weekly", reserve, limit, report);
    let paths = RawPaths {
        credential: raw.credential_path.as_deref(),
        usages: raw.usages_path.as_deref(),
        detour: raw.detour.as_deref(),
    };
    in_file(
        path,
        &raw.tag,
        paths,
        WindowCaps { five_hour, weekly },
        scope,
    )
}

fn in_file(
    path: &ConfigPath,
    tag: &str,
    paths: RawPaths<'_>,
    caps: WindowCaps,
    scope: &mut ResolveScope<'_>,
) -> Option<CredentialConfig> {
    let field = path.key("credential_path");
    let file = match field::file(paths.credential) {
        Some(file) => file,
        None => default_paths::credential_path(field.clone(), scope.report)?,
    };
    let file = scope
        .files
        .claim(file, FileContent::Credential, field, scope.report);
    let usages_path = usages_path(path, paths.usages, scope);
    let route = scope.route(paths.detour, path.key("detour"));
    Some(CredentialConfig {
        tag: tag.to_owned(),
        source: CredentialSource::File(file),
        route,
        usages_path,
        caps,
        poll_interval: Some(DEFAULT_POLL_INTERVAL),
    })
}

/// Resolves an entry of type `external`.
pub(super) fn external(
    path: &ConfigPath,
    raw: &RawExternal,
    scope: &mut ResolveScope<'_>,
) -> Option<CredentialConfig> {
    let usages_path = usages_path(path, raw.usages_path.as_deref(), scope);
    let route = scope.route(raw.detour.as_deref(), path.key("detour"));
    let report = &mut *scope.report;
    let poll_interval = poll_interval(raw.poll_interval.as_ref(), path, report);
    if let Some(problem) = raw.token.problem() {
        report.problem(path.key("token"), problem);
    } else {
        field::check_token(&raw.token, path.key("token"), report);
    }
    let url = match field::non_empty(raw.url.as_deref()) {
        // If it has a problem, users and pools can name the credential all the same.
        Some(url) => field::url_of_gateway(url, path.key("url"), report),
        None => {
            check_without_url(path, raw, report);
            None
        }
    };
    let server = match field::non_empty(raw.server.as_deref()) {
        Some(server) => Some(dial_host(server, path.key("server"), report)?),
        None => None,
    };
    let source = CredentialSource::External {
        url,
        target: DialTarget {
            server,
            port: raw.server_port.filter(|port| *port != 0),
        },
        token: SecretString::new(raw.token.to_string()),
        reverse: if raw.reverse {
            ReverseRole::Connector
        } else {
            ReverseRole::Receiver
        },
    };
    // The other gateway keeps to its own reserves.
    let caps = WindowCaps {
        five_hour: 100.0,
        weekly: 100.0,
    };
    Some(CredentialConfig {
        tag: raw.tag.to_string(),
        source,
        route,
        usages_path,
        caps,
        poll_interval,
    })
}

/// Reads the host in `field`, which URIs can name.
fn dial_host(text: &str, field: ConfigPath, report: &mut ProblemReport) -> Option<DialHost> {
    let host = DialHost::new(&field::host(text, field.clone(), report)?);
    if host.is_none() {
        report.problem(field, "expected an IPv6 address without a zone");
    }
    host
}

/// Reports fields that need a `url`.
fn check_without_url(path: &ConfigPath, raw: &RawExternal, report: &mut ProblemReport) {
    if raw.reverse {
        let message = "missing: with \"reverse\", this gateway connects to it";
        report.problem(path.key("url"), message);
    }
    let has_server = field::non_empty(raw.server.as_deref()).is_some();
    for (name, is_set) in [
        ("server", has_server),
        ("server_port", raw.server_port.is_some_and(|port| port != 0)),
    ] {
        if is_set {
            let message = "ignored: it has an effect only with \"url\"";
            report.warning(path.key(name), message);
        }
    }
}

/// Reports users that are other gateways which this one uses, too, if each would count the other's
/// capacity as its own.
pub(super) fn check_mutual_use(path: &ConfigPath, raw: &RawOcm, report: &mut ProblemReport) {
    let list = path.key("users");
    for (index, user) in raw.users.as_slice().iter().enumerate() {
        let is_left_out = field::non_empty(user.external_credential.as_deref()).is_some();
        if !user.allow_external_usage || is_left_out {
            continue;
        }
        let own = raw
            .credentials
            .as_slice()
            .iter()
            .find_map(|entry| match entry {
                RawCredential::External(external) if *external.token == *user.token => {
                    Some(&*external.tag)
                }
                _ => None,
            });
        if let Some(tag) = own.filter(|_| !user.token.is_empty()) {
            let message = format!(
                "missing: with the token of {tag:?}, both gateways count each other's capacity as their own; expected {tag:?}"
            );
            let field = list.index(index).key("external_credential");
            report.warning(field, message);
        }
    }
}

/// Reports tokens of reverse connections that will not work as the operator may expect.
pub(super) fn check_reverse_tokens(
    path: &ConfigPath,
    raw: &RawOcm,
    users: &[UserConfig],
    report: &mut ProblemReport,
) {
    let list = path.key("credentials");
    let mut received = HashSet::new();
    for (index, entry) in raw.credentials.as_slice().iter().enumerate() {
        let RawCredential::External(external) = entry else {
            continue;
        };
        let is_users = users
            .iter()
            .any(|user| user.token.expose() == &*external.token);
        let message = if external.reverse && !users.is_empty() && !is_users {
            "no user has this token: requests over the reverse connection will be rejected"
        } else if !external.reverse && !received.insert(&*external.token) {
            "an external credential before it has the same token: reverse connections belong to that"
        } else {
            continue;
        };
        report.warning(list.index(index).key("token"), message);
    }
}

fn usages_path(
    path: &ConfigPath,
    raw: Option<&str>,
    scope: &mut ResolveScope<'_>,
) -> Option<PathBuf> {
    let file = field::file(raw)?;
    let field = path.key("usages_path");
    Some(
        scope
            .files
            .claim(file, FileContent::Usages, field, scope.report),
    )
}

/// Returns how far a window may be used, in percent. A 0 counts as not set.
fn cap(
    path: &ConfigPath,
    window: &str,
    reserve: Option<u8>,
    limit: Option<u8>,
    report: &mut ProblemReport,
) -> f64 {
    let reserve = reserve.filter(|reserve| *reserve > 0);
    let limit = limit.filter(|limit| *limit > 0);
    if reserve.is_some() && limit.is_some() {
        let message = format!("not allowed together with reserve_{window}");
        report.problem(path.key(&format!("limit_{window}")), message);
    }
    match (limit, reserve) {
        (Some(limit), _) => f64::from(limit),
        (None, Some(reserve)) => 100.0 - f64::from(reserve),
        (None, None) => 100.0 - DEFAULT_RESERVE,
    }
}

/// Reads the field `poll_interval` of the entry at `path`. Returns `None` if it disables polls.
pub(super) fn poll_interval(
    raw: Option<&RawDuration>,
    path: &ConfigPath,
    report: &mut ProblemReport,
) -> Option<Duration> {
    let field = path.key("poll_interval");
    let interval = raw
        .filter(|raw| !field::is_below_zero(raw, &field, report))
        .and_then(|raw| field::duration(raw, field.clone(), report))
        .unwrap_or(DEFAULT_POLL_INTERVAL);
    (!interval.is_zero()).then_some(interval)
}
