//! TLS towards the clients of a service.

use std::path::Path;

use crate::config::model::{TlsConfig, TlsVersion};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::{OneOrMany, RawTls};
use crate::files::read_bounded;
use crate::values::limits::CONFIG_FILE_BYTES;
use crate::values::secret::SecretString;

const ALPN: [&str; 2] = ["h2", "http/1.1"];

/// Resolves the section at `path`. Returns `None` if TLS is not enabled or if there is a problem.
pub(super) fn tls(
    path: &ConfigPath,
    raw: &RawTls,
    report: &mut ProblemReport,
) -> Option<TlsConfig> {
    if !raw.enabled {
        return None;
    }
    for name in raw.unsupported_fields() {
        report.problem(path.key(name), "not supported yet");
    }
    let file = raw.certificate_path.as_deref();
    let certificate = pem(path, "certificate", &raw.certificate, file, report);
    let key = pem(path, "key", &raw.key, raw.key_path.as_deref(), report);
    let min_version = min_version(raw.min_version.as_deref(), path.key("min_version"), report);
    let max_version = max_version(raw.max_version.as_deref(), path.key("max_version"), report);
    if min_version > max_version {
        let message = "expected at most max_version (1.2), found 1.3";
        report.problem(path.key("min_version"), message);
        return None;
    }
    let (certificate_field, certificate) = certificate?;
    let (key_field, key) = key?;
    Some(TlsConfig {
        certificate,
        key: SecretString::new(String::from_utf8(key).unwrap_or_default()),
        certificate_field,
        key_field,
        alpn: alpn(&path.key("alpn"), raw.alpn.as_slice(), report),
        min_version,
        max_version,
    })
}

/// Returns a PEM text and the field that it came from: `name` itself, or `name` with `_path` for a
/// file.
fn pem(
    path: &ConfigPath,
    name: &str,
    inline: &OneOrMany<String>,
    file: Option<&str>,
    report: &mut ProblemReport,
) -> Option<(ConfigPath, Vec<u8>)> {
    let file_field = path.key(&format!("{name}_path"));
    if !inline.as_slice().is_empty() {
        if file.is_some() {
            report.problem(file_field, format!("not allowed together with {name:?}"));
        }
        let text = inline.as_slice().join("\n");
        return Some((path.key(name), text.into_bytes()));
    }
    let Some(file) = file else {
        report.problem(file_field, "missing: required because TLS is enabled");
        return None;
    };
    match read_bounded(Path::new(file), CONFIG_FILE_BYTES) {
        Ok(bytes) => Some((file_field, bytes)),
        Err(error) => {
            report.problem(file_field, format!("cannot read {file}: {error}"));
            None
        }
    }
}

fn min_version(text: Option<&str>, field: ConfigPath, report: &mut ProblemReport) -> TlsVersion {
    match text {
        // No client of this gateway needs these, and they are broken: a lower bound below ours has
        // no effect.
        Some("1.0" | "1.1") => TlsVersion::V1_2,
        text => version(text, field, TlsVersion::V1_2, report),
    }
}

fn max_version(text: Option<&str>, field: ConfigPath, report: &mut ProblemReport) -> TlsVersion {
    version(text, field, TlsVersion::V1_3, report)
}

fn version(
    text: Option<&str>,
    field: ConfigPath,
    default: TlsVersion,
    report: &mut ProblemReport,
) -> TlsVersion {
    match text {
        None => default,
        Some("1.2") => TlsVersion::V1_2,
        Some("1.3") => TlsVersion::V1_3,
        Some(other) => {
            let message = format!("expected \"1.2\" or \"1.3\", found {other:?}");
            report.problem(field, message);
            default
        }
    }
}

fn alpn(list: &ConfigPath, names: &[String], report: &mut ProblemReport) -> Vec<Vec<u8>> {
    if names.is_empty() {
        return ALPN.map(|name| name.as_bytes().to_vec()).to_vec();
    }
    for (index, name) in names.iter().enumerate() {
        if !ALPN.contains(&name.as_str()) {
            let message = format!("expected \"h2\" or \"http/1.1\", found {name:?}");
            report.problem(list.index(index), message);
        }
    }
    names.iter().map(|name| name.clone().into_bytes()).collect()
}
