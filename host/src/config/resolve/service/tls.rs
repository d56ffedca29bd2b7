//! TLS towards the clients of a service.

use std::path::Path;

use crate::config::model::{TlsConfig, TlsVersion};
use crate::config::path::ConfigPath;
use crate::config::problem::Findings;
use crate::config::raw::{OneOrMany, RawTls};
use crate::files::read_bounded;
use crate::values::limits::CONFIG_FILE_BYTES;
use crate::values::secret::SecretString;

const ALPN: [&str; 2] = ["h2", "http/1.1"];

/// Resolves the section at `path`. Returns `None` if TLS is not enabled or if there is a problem.
pub(super) fn tls(path: &ConfigPath, raw: &RawTls, findings: &mut Findings) -> Option<TlsConfig> {
    if !raw.enabled {
        return None;
    }
    for name in raw.unsupported_fields() {
        findings.problem(path.key(name), "not supported yet");
    }
    let file = raw.certificate_path.as_deref();
    let certificate = pem(path, "certificate", &raw.certificate, file, findings);
    let key = pem(path, "key", &raw.key, raw.key_path.as_deref(), findings);
    let min_version = min_version(
        raw.min_version.as_deref(),
        path.key("min_version"),
        findings,
    );
    let max_version = max_version(
        raw.max_version.as_deref(),
        path.key("max_version"),
        findings,
    );
    if min_version > max_version {
        let message = "expected at most max_version (1.2), found 1.3";
        findings.problem(path.key("min_version"), message);
        return None;
    }
    let (certificate_field, certificate) = certificate?;
    let (key_field, key) = key?;
    Some(TlsConfig {
        certificate,
        key: SecretString::new(String::from_utf8(key).unwrap_or_default()),
        certificate_field,
        key_field,
        alpn: alpn(&path.key("alpn"), raw.alpn.as_slice(), findings),
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
    findings: &mut Findings,
) -> Option<(ConfigPath, Vec<u8>)> {
    let file_field = path.key(&format!("{name}_path"));
    if !inline.as_slice().is_empty() {
        if file.is_some() {
            findings.problem(file_field, format!("not allowed together with {name:?}"));
        }
        let text = inline.as_slice().join("\n");
        return Some((path.key(name), text.into_bytes()));
    }
    let Some(file) = file else {
        findings.problem(file_field, "missing: required because TLS is enabled");
        return None;
    };
    match read_bounded(Path::new(file), CONFIG_FILE_BYTES) {
        Ok(bytes) => Some((file_field, bytes)),
        Err(error) => {
            findings.problem(file_field, format!("cannot read {file}: {error}"));
            None
        }
    }
}

fn min_version(text: Option<&str>, field: ConfigPath, findings: &mut Findings) -> TlsVersion {
    match text {
        // No client of this gateway needs these, and they are broken: a lower bound below ours has
        // no effect.
        Some("1.0" | "1.1") => TlsVersion::V1_2,
        text => version(text, field, TlsVersion::V1_2, findings),
    }
}

fn max_version(text: Option<&str>, field: ConfigPath, findings: &mut Findings) -> TlsVersion {
    version(text, field, TlsVersion::V1_3, findings)
}

fn version(
    text: Option<&str>,
    field: ConfigPath,
    default: TlsVersion,
    findings: &mut Findings,
) -> TlsVersion {
    match text {
        None => default,
        Some("1.2") => TlsVersion::V1_2,
        Some("1.3") => TlsVersion::V1_3,
        Some(other) => {
            let message = format!("expected \"1.2\" or \"1.3\", found {other:?}");
            findings.problem(field, message);
            default
        }
    }
}

fn alpn(list: &ConfigPath, names: &[String], findings: &mut Findings) -> Vec<Vec<u8>> {
    if names.is_empty() {
        return ALPN.map(|name| name.as_bytes().to_vec()).to_vec();
    }
    for (index, name) in names.iter().enumerate() {
        if !ALPN.contains(&name.as_str()) {
            let message = format!("expected \"h2\" or \"http/1.1\", found {name:?}");
            findings.problem(list.index(index), message);
        }
    }
    names.iter().map(|name| name.clone().into_bytes()).collect()
}
