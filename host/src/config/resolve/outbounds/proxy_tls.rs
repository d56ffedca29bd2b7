//! TLS towards a proxy. The files that it names are read here.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::config::model::{
    ClientCertificate, NameIndication, ProxyTls, ProxyVerification, TlsVersion,
};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::{OneOrMany, RawProxyTls};
use crate::config::resolve::field;
use crate::files::read_bounded;
use crate::values::limits::CONFIG_FILE_BYTES;
use crate::values::secret::SecretString;

/// Resolves the section at `path` of the proxy at `server`, if TLS is enabled. The outer `None`
/// means a problem.
pub(super) fn tls(
    path: &ConfigPath,
    raw: &RawProxyTls,
    server: &str,
    report: &mut ProblemReport,
) -> Option<Option<ProxyTls>> {
    if !raw.enabled {
        return Some(None);
    }
    let problems_before = report.problems.len();
    for name in raw.unsupported_fields() {
        let message = "not supported: remove it to speak ordinary TLS with the proxy";
        report.problem(path.key(name), message);
    }
    for name in raw.ignored_fields() {
        report.warning(path.key(name), "ignored: it has no effect here");
    }
    let server_name = field::non_empty(raw.server_name.as_deref()).unwrap_or(server);
    let min_version = version(path, "min_version", raw.min_version.as_deref(), report);
    let max_version = version(path, "max_version", raw.max_version.as_deref(), report);
    let (min_version, max_version) = (
        min_version.unwrap_or(TlsVersion::V1_2),
        max_version.unwrap_or(TlsVersion::V1_3),
    );
    if min_version > max_version {
        let message = "expected at most max_version (1.2), found 1.3";
        report.problem(path.key("min_version"), message);
    }
    let tls = ProxyTls {
        server_name: server_name.to_owned(),
        name_indication: if raw.disable_sni {
            NameIndication::Hidden
        } else {
            NameIndication::Sent
        },
        verification: verification(path, raw, report),
        client_certificate: client_certificate(path, raw, report),
        min_version,
        max_version,
    };
    (report.problems.len() == problems_before).then_some(Some(tls))
}

fn verification(
    path: &ConfigPath,
    raw: &RawProxyTls,
    report: &mut ProblemReport,
) -> ProxyVerification {
    if raw.insecure {
        let message = "the proxy's certificate is not checked: others can pose as the proxy";
        report.warning(path.key("insecure"), message);
        return ProxyVerification::Off;
    }
    let digests = raw.certificate_public_key_sha256.as_slice();
    if !digests.is_empty() {
        let list = path.key("certificate_public_key_sha256");
        return ProxyVerification::PublicKeys(digests_of(&list, digests, report));
    }
    let file = raw.certificate_path.as_deref();
    match pem(path, "certificate", &raw.certificate, file, report) {
        Some(roots) => ProxyVerification::Roots(roots),
        None => ProxyVerification::System,
    }
}

fn digests_of(list: &ConfigPath, digests: &[String], report: &mut ProblemReport) -> Vec<[u8; 32]> {
    let mut parsed = Vec::new();
    for (index, digest) in digests.iter().enumerate() {
        let bytes = BASE64_STANDARD.decode(digest).ok();
        match bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) {
            Some(bytes) => parsed.push(bytes),
            None => {
                let message = format!("expected 32 bytes in base64, found {digest:?}");
                report.problem(list.index(index), message);
            }
        }
    }
    parsed
}

fn client_certificate(
    path: &ConfigPath,
    raw: &RawProxyTls,
    report: &mut ProblemReport,
) -> Option<ClientCertificate> {
    let file = raw.client_certificate_path.as_deref();
    let chain = pem(
        path,
        "client_certificate",
        &raw.client_certificate,
        file,
        report,
    );
    let file = raw.client_key_path.as_deref();
    let key = pem(path, "client_key", &raw.client_key, file, report);
    match (chain, key) {
        (Some(chain), Some(key)) => Some(ClientCertificate {
            chain,
            key: SecretString::new(key),
        }),
        (None, None) => None,
        (Some(_), None) => {
            let message = "missing: required with \"client_certificate\"";
            report.problem(path.key("client_key"), message);
            None
        }
        (None, Some(_)) => {
            let message = "missing: required with \"client_key\"";
            report.problem(path.key("client_certificate"), message);
            None
        }
    }
}

/// Returns a PEM text: that of the field `name`, or of the file in the field `name` with `_path`.
fn pem(
    path: &ConfigPath,
    name: &str,
    inline: &OneOrMany<String>,
    file: Option<&str>,
    report: &mut ProblemReport,
) -> Option<String> {
    let file = field::non_empty(file);
    if !inline.as_slice().is_empty() {
        if file.is_some() {
            let message = format!("not allowed together with {name:?}");
            report.problem(path.key(&format!("{name}_path")), message);
        }
        return Some(inline.as_slice().join("\n"));
    }
    let file = file?;
    let read = read_bounded(Path::new(file), CONFIG_FILE_BYTES);
    let reason = match read.map(String::from_utf8) {
        Ok(Ok(text)) => return Some(text),
        Ok(Err(_)) => "expected PEM, found another encoding than UTF-8".to_owned(),
        Err(error) => error.to_string(),
    };
    let message = format!("cannot read {file}: {reason}");
    report.problem(path.key(&format!("{name}_path")), message);
    None
}

fn version(
    path: &ConfigPath,
    name: &str,
    text: Option<&str>,
    report: &mut ProblemReport,
) -> Option<TlsVersion> {
    match field::non_empty(text)? {
        "1.0" | "1.1" if name == "min_version" => {
            report.warning(path.key(name), "raised to 1.2: older versions are broken");
            None
        }
        "1.2" => Some(TlsVersion::V1_2),
        "1.3" => Some(TlsVersion::V1_3),
        other => {
            let message = format!("expected \"1.2\" or \"1.3\", found {other:?}");
            report.problem(path.key(name), message);
            None
        }
    }
}
