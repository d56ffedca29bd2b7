//! TLS towards the clients of a service. Certificates and keys are read by `tls`, because they are
//! read again when their files change.

mod acme;
mod algorithms;
mod clients;
mod pem;

use crate::config::model::{AcmeConfig, PemContent, PemSource, TlsConfig, TlsVersion};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::{OneOrMany, RawCertificateProvider, RawTls};
use crate::config::resolve::field;
use crate::values::secret::SecretString;

pub(super) use self::acme::AcmeScope;

use self::acme::acme;
use self::algorithms::{key_exchanges, tls12_suites};
use self::clients::client_authentication;
use self::pem::pem;

const ALPN: [&str; 2] = ["h2", "http/1.1"];

/// Resolves the section at `path`. Returns `None` if TLS is not enabled or if there is a problem.
pub(super) fn tls(
    path: &ConfigPath,
    raw: &RawTls,
    scope: AcmeScope<'_>,
    report: &mut ProblemReport,
) -> Option<TlsConfig> {
    if !raw.enabled {
        return None;
    }
    for name in raw.unsupported_fields() {
        report.problem(
            path.key(name),
            "not supported: remove it, or let a proxy in front do this",
        );
    }
    warn_of_effectless(path, raw, report);
    let acme = acme(path, raw, scope, report);
    let sources = match &acme {
        Some(acme) => Some(issued_pem(path, raw, acme, report)),
        None if is_issued(raw) => None,
        None => configured_pem(path, raw, report),
    };
    let (min_version, max_version) = versions(path, raw, report);
    let handshake_timeout = raw.handshake_timeout.as_ref().and_then(|timeout| {
        field::duration_or_default(timeout, path.key("handshake_timeout"), report)
    });
    let Some((certificate, key)) = sources else {
        // Each way here has reported a problem. Without one, the service would be served in clear
        // text.
        if report.problems.is_empty() {
            report.problem(path.clone(), "expected a certificate: TLS is enabled");
        }
        return None;
    };
    Some(TlsConfig {
        tls12_suites: tls12_suites(path, raw, (min_version, max_version), report),
        key_exchanges: key_exchanges(path, raw, max_version, report),
        client_authentication: client_authentication(path, raw, report),
        certificate,
        key,
        acme,
        server_name: field::non_empty(raw.server_name.as_deref())
            .map(|name| (path.key("server_name"), name.to_owned())),
        alpn: alpn(&path.key("alpn"), raw.alpn.as_slice(), report),
        min_version,
        max_version,
        handshake_timeout,
    })
}

fn warn_of_effectless(path: &ConfigPath, raw: &RawTls, report: &mut ProblemReport) {
    let fields = [
        ("kernel_tx", raw.kernel_tx, "kernel TLS is not used"),
        ("kernel_rx", raw.kernel_rx, "kernel TLS is not used"),
    ];
    for (name, is_set, reason) in fields {
        if is_set {
            report.warning(path.key(name), format!("without effect: {reason}"));
        }
    }
}

/// Whether the certificate comes from a provider. If that has a problem, no other is expected.
fn is_issued(raw: &RawTls) -> bool {
    let is_named = |provider: &RawCertificateProvider| !provider.is_empty();
    raw.certificate_provider.as_ref().is_some_and(is_named)
        || raw
            .acme
            .as_ref()
            .is_some_and(|acme| !acme.domain.as_slice().is_empty())
}

/// Returns the source of the certificate and that of the key, which are one file.
fn issued_pem(
    path: &ConfigPath,
    raw: &RawTls,
    acme: &AcmeConfig,
    report: &mut ProblemReport,
) -> (PemSource, PemSource) {
    let file = |path: &Option<String>| field::non_empty(path.as_deref()).is_some();
    let text = |lines: &OneOrMany<String>| !lines.as_slice().is_empty();
    let fields = [
        ("certificate", text(&raw.certificate)),
        ("certificate_path", file(&raw.certificate_path)),
        ("key", text(&raw.key)),
        ("key_path", file(&raw.key_path)),
    ];
    for (name, is_set) in fields {
        if is_set {
            let message = "without effect: the certificate is obtained by ACME";
            report.warning(path.key(name), message);
        }
    }
    let source = PemSource {
        field: acme.field.clone(),
        content: PemContent::File(acme.certificate_path.clone()),
    };
    (source.clone(), source)
}

/// Returns the source of the certificate and that of the key.
fn configured_pem(
    path: &ConfigPath,
    raw: &RawTls,
    report: &mut ProblemReport,
) -> Option<(PemSource, PemSource)> {
    if raw.insecure {
        let message = if has_no_certificate(raw) {
            "a self-signed certificate is made at each start: clients cannot verify it"
        } else {
            "without effect: there is a certificate"
        };
        report.warning(path.key("insecure"), message);
    }
    if raw.insecure && has_no_certificate(raw) {
        return self_signed(path, raw, report);
    }
    let file = raw.certificate_path.as_deref();
    let certificate = pem(path, "certificate", &raw.certificate, file, report);
    let key = pem(path, "key", &raw.key, raw.key_path.as_deref(), report);
    Some((certificate?, key?))
}

/// Whether there is neither a certificate nor a key.
fn has_no_certificate(raw: &RawTls) -> bool {
    let is_unset = |path: &Option<String>| field::non_empty(path.as_deref()).is_none();
    raw.certificate.as_slice().is_empty()
        && raw.key.as_slice().is_empty()
        && is_unset(&raw.certificate_path)
        && is_unset(&raw.key_path)
}

/// Makes a certificate for `server_name`, and its key.
fn self_signed(
    path: &ConfigPath,
    raw: &RawTls,
    report: &mut ProblemReport,
) -> Option<(PemSource, PemSource)> {
    let name = field::non_empty(raw.server_name.as_deref()).unwrap_or("localhost");
    let field = path.key("insecure");
    match rcgen::generate_simple_self_signed([name.to_owned()]) {
        Ok(made) => {
            let source = |text: String| PemSource {
                field: field.clone(),
                content: PemContent::Inline(SecretString::new(text)),
            };
            Some((
                source(made.cert.pem()),
                source(made.signing_key.serialize_pem()),
            ))
        }
        Err(error) => {
            let message = format!("no certificate for {name:?} can be made: {error}");
            report.problem(field, message);
            None
        }
    }
}

/// Returns the lowest and the highest version. Those that the TLS library lacks are raised: no
/// client of this gateway needs them, and they are broken.
fn versions(
    path: &ConfigPath,
    raw: &RawTls,
    report: &mut ProblemReport,
) -> (TlsVersion, TlsVersion) {
    let min_field = path.key("min_version");
    let max_field = path.key("max_version");
    let min = version(raw.min_version.as_deref(), min_field, report).unwrap_or(TlsVersion::V1_2);
    let max =
        version(raw.max_version.as_deref(), max_field.clone(), report).unwrap_or(TlsVersion::V1_3);
    if min > max {
        let message = "raised from 1.2 to 1.3: it is below min_version";
        report.warning(max_field, message);
        return (min, min);
    }
    (min, max)
}

fn version(
    text: Option<&str>,
    field: ConfigPath,
    report: &mut ProblemReport,
) -> Option<TlsVersion> {
    match field::non_empty(text)? {
        "1.2" => Some(TlsVersion::V1_2),
        "1.3" => Some(TlsVersion::V1_3),
        old @ ("1.0" | "1.1") => {
            let message = format!("raised from {old} to 1.2: older versions are not supported");
            report.warning(field, message);
            Some(TlsVersion::V1_2)
        }
        other => {
            let message = format!("expected \"1.2\" or \"1.3\", found {other:?}");
            report.problem(field, message);
            None
        }
    }
}

/// Returns the protocols to offer. Those that the gateway does not speak are left out.
fn alpn(list: &ConfigPath, names: &[String], report: &mut ProblemReport) -> Vec<Vec<u8>> {
    let mut offered: Vec<Vec<u8>> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        if ALPN.contains(&name.as_str()) {
            offered.push(name.clone().into_bytes());
        } else {
            let message = format!(
                "without effect: {name:?} is not spoken here, only \"h2\" and \"http/1.1\" are"
            );
            report.warning(list.index(index), message);
        }
    }
    if offered.is_empty() {
        return ALPN.map(|name| name.as_bytes().to_vec()).to_vec();
    }
    offered
}
