//! The certificate of a service from an ACME server.

use std::net::IpAddr;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use sha2::{Digest, Sha256};

use crate::config::model::{AcmeChallenge, AcmeConfig, CertificateKeyType, ExternalAccount};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::{RawAcme, RawCertificateProvider, RawExternalAccount, RawTls};
use crate::config::resolve::field;
use crate::values::hex::hex;
use crate::values::secret::SecretString;

const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
const ZERO_SSL: &str = "https://acme.zerossl.com/v2/DV90";

/// The port that a certificate authority connects to for HTTP-01.
const HTTP_PORT: u16 = 80;

/// The folder of accounts and certificates in `data_dir`.
const FOLDER: &str = "acme";

/// What a section that uses ACME needs to know of the rest of the configuration.
#[derive(Clone, Copy)]
pub(in crate::config::resolve::service) struct AcmeScope<'a> {
    pub(in crate::config::resolve::service) providers: &'a [RawCertificateProvider],
    pub(in crate::config::resolve::service) data_dir: Option<&'a Path>,
}

/// Returns the certificate that `tls` at `path` obtains by ACME, if it does.
pub(super) fn acme(
    path: &ConfigPath,
    tls: &RawTls,
    scope: AcmeScope<'_>,
    report: &mut ProblemReport,
) -> Option<AcmeConfig> {
    let inline = tls.acme.as_ref().map(|raw| (path.key("acme"), raw));
    let is_named = |provider: &&RawCertificateProvider| !provider.is_empty();
    let Some(provider) = tls.certificate_provider.as_ref().filter(is_named) else {
        let (field, raw) = inline?;
        return resolve(&field, raw, scope, report);
    };
    if inline.is_some_and(|(_, raw)| !raw.domain.as_slice().is_empty()) {
        let message = "without effect: \"certificate_provider\" is set";
        report.warning(path.key("acme"), message);
    }
    let field = path.key("certificate_provider");
    let (field, raw) = provided(field, provider, scope, report)?;
    if raw.domain.as_slice().is_empty() {
        let message = "missing: required because TLS is enabled";
        report.problem(field.key("domain"), message);
    }
    resolve(&field, raw, scope, report)
}

/// Returns the provider that `field` names or contains, with its place.
fn provided<'a>(
    field: ConfigPath,
    provider: &'a RawCertificateProvider,
    scope: AcmeScope<'a>,
    report: &mut ProblemReport,
) -> Option<(ConfigPath, &'a RawAcme)> {
    let (place, provider) = match provider {
        RawCertificateProvider::Tag(tag) => {
            let mut known = scope.providers.iter().enumerate();
            let Some((index, entry)) = known.find(|(_, entry)| self::tag(entry) == Some(tag))
            else {
                let message = format!("expected the tag of a certificate provider, found {tag:?}");
                report.problem(field, message);
                return None;
            };
            let list = ConfigPath::root().key("certificate_providers");
            (list.index(index), entry)
        }
        inline => (field, inline),
    };
    let kind = match provider {
        RawCertificateProvider::Acme(raw) => match raw.kind.as_deref() {
            None | Some("" | "acme") => return Some((place, raw)),
            Some(kind) => kind,
        },
        RawCertificateProvider::Other(other) if other.kind == "acme" => {
            let message = "expected a provider of type \"acme\", found one with an unknown field or a value of another type";
            report.problem(place, message);
            return None;
        }
        RawCertificateProvider::Other(other) => &other.kind,
        RawCertificateProvider::Tag(_) => "",
    };
    let message = format!("certificate providers of type {kind:?} are not supported: use \"acme\"");
    report.problem(place, message);
    None
}

fn tag(provider: &RawCertificateProvider) -> Option<&String> {
    match provider {
        RawCertificateProvider::Tag(_) => None,
        RawCertificateProvider::Acme(raw) => raw.tag.as_ref(),
        RawCertificateProvider::Other(other) => other.tag.as_ref(),
    }
}

fn resolve(
    field: &ConfigPath,
    raw: &RawAcme,
    scope: AcmeScope<'_>,
    report: &mut ProblemReport,
) -> Option<AcmeConfig> {
    for name in raw.unsupported_fields() {
        let message = match name {
            "dns01_challenge" => "without effect: HTTP-01 and TLS-ALPN-01 are used instead",
            _ => "without effect: the certificate authority is reached directly",
        };
        report.warning(field.key(name), message);
    }
    if field::non_empty(raw.default_server_name.as_deref()).is_some() {
        let message = "without effect: clients that send no server name get the same certificate";
        report.warning(field.key("default_server_name"), message);
    }
    let domains = domains(field, raw, report)?;
    let directory_url = directory_url(field, raw, report)?;
    let email = field::non_empty(raw.email.as_deref()).map(str::to_owned);
    let mut external_account = match &raw.external_account {
        Some(account) => external_account(&field.key("external_account"), account, report),
        None => None,
    };
    if directory_url == ZERO_SSL && external_account.is_none() && raw.account_key.is_none() {
        external_account = email
            .clone()
            .map(|email| ExternalAccount::IssuedFor { email });
        if external_account.is_none() {
            let message =
                "missing: zerossl needs it, or the key_id and the mac_key of an external_account";
            report.problem(field.key("email"), message);
        }
    }
    let folder = match field::file(raw.data_directory.as_deref()) {
        Some(folder) => folder,
        None => scope.data_dir?.join(FOLDER),
    };
    let key_type = key_type(field, raw, report);
    let account_key = account_key(field, raw, report);
    let account = account_digest(&directory_url, &email, &account_key, &external_account);
    let mut names: Vec<&str> = domains.iter().map(String::as_str).collect();
    names.sort_unstable();
    names.extend([directory_url.as_str(), key_type_name(key_type)]);
    let certificate = digest(&names);
    let first = domains[0].replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-");
    Some(AcmeConfig {
        field: field.clone(),
        challenges: challenges(field, raw, report)?,
        account_path: folder.join(format!("account-{account}.json")),
        certificate_path: folder.join(format!("{first}-{certificate}.pem")),
        domains,
        directory_url,
        email,
        account_key,
        external_account,
        key_type,
    })
}

/// Returns the key of an existing account, if there is one.
fn account_key(
    field: &ConfigPath,
    raw: &RawAcme,
    report: &mut ProblemReport,
) -> Option<SecretString> {
    let text = field::non_empty(raw.account_key.as_deref())?;
    let is_usable =
        KeyPair::from_pem(text).is_ok_and(|key| key.is_compatible(&PKCS_ECDSA_P256_SHA256));
    if !is_usable {
        let message = "expected an ECDSA key with P-256 in PEM (PKCS#8), found something else";
        report.problem(field.key("account_key"), message);
    }
    Some(SecretString::new(text.to_owned()))
}

/// Tells accounts apart, for the names of their files: another key or another external account is
/// another account.
fn account_digest(
    directory_url: &str,
    email: &Option<String>,
    key: &Option<SecretString>,
    external: &Option<ExternalAccount>,
) -> String {
    let mut texts = vec![directory_url, email.as_deref().unwrap_or_default()];
    if let Some(key) = key {
        texts.extend(["account_key", key.expose()]);
    } else if let Some(ExternalAccount::Known { key_id, .. }) = external {
        texts.extend(["external_account", key_id]);
    }
    digest(&texts)
}

/// Returns the beginning of the digest of `texts`, for names of files.
fn digest(texts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for text in texts {
        digest.update(text.as_bytes());
        digest.update([0]);
    }
    hex(&digest.finalize()[..6])
}

fn domains(field: &ConfigPath, raw: &RawAcme, report: &mut ProblemReport) -> Option<Vec<String>> {
    let list = field.key("domain");
    let mut domains = Vec::new();
    for (index, domain) in raw.domain.as_slice().iter().enumerate() {
        let domain = domain.to_ascii_lowercase();
        if domain.starts_with("*.") {
            let message = "wildcards need the challenge DNS-01, which is not supported";
            report.problem(list.index(index), message);
        } else if !is_host(&domain) {
            let message = format!("expected a domain such as \"example.com\", found {domain:?}");
            report.problem(list.index(index), message);
        } else if !domains.contains(&domain) {
            domains.push(domain);
        }
    }
    (!domains.is_empty()).then_some(domains)
}

/// Whether a certificate can be issued for `domain`: an IP address, or a host name in small letters
/// (RFC 1123, section 2.1).
fn is_host(domain: &str) -> bool {
    let is_label = |label: &str| {
        let has_letters = label.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte)
        });
        let is_bare = !label.starts_with('-') && !label.ends_with('-');
        (1..=63).contains(&label.len()) && has_letters && is_bare
    };
    domain.parse::<IpAddr>().is_ok() || (domain.len() <= 253 && domain.split('.').all(is_label))
}

fn directory_url(field: &ConfigPath, raw: &RawAcme, report: &mut ProblemReport) -> Option<String> {
    match field::non_empty(raw.provider.as_deref()) {
        None | Some("letsencrypt") => Some(LETS_ENCRYPT.to_owned()),
        Some("zerossl") => Some(ZERO_SSL.to_owned()),
        Some(url) if url.starts_with("https://") => {
            field::url(url, field.key("provider"), report).map(|_| url.to_owned())
        }
        Some(other) => {
            let message = format!(
                "expected \"letsencrypt\", \"zerossl\" or a URL that begins with https://, found {other:?}"
            );
            report.problem(field.key("provider"), message);
            None
        }
    }
}

fn external_account(
    field: &ConfigPath,
    raw: &RawExternalAccount,
    report: &mut ProblemReport,
) -> Option<ExternalAccount> {
    let key_id = field::non_empty(raw.key_id.as_deref());
    let mac_key = field::non_empty(raw.mac_key.as_deref());
    match (key_id, mac_key) {
        (None, None) => None,
        (Some(key_id), Some(mac_key)) => {
            let mac_key = mac_key.trim_end_matches('=');
            if URL_SAFE_NO_PAD.decode(mac_key).is_err() {
                report.problem(
                    field.key("mac_key"),
                    "expected base64url, found another text",
                );
                return None;
            }
            Some(ExternalAccount::Known {
                key_id: key_id.to_owned(),
                mac_key: SecretString::new(mac_key.to_owned()),
            })
        }
        (None, Some(_)) => {
            report.problem(field.key("key_id"), "missing: required with mac_key");
            None
        }
        (Some(_), None) => {
            report.problem(field.key("mac_key"), "missing: required with key_id");
            None
        }
    }
}

fn key_type(field: &ConfigPath, raw: &RawAcme, report: &mut ProblemReport) -> CertificateKeyType {
    let field = field.key("key_type");
    let name = field::non_empty(raw.key_type.as_deref()).map(str::to_ascii_lowercase);
    match name.as_deref() {
        None | Some("p256") => CertificateKeyType::P256,
        Some("p384") => CertificateKeyType::P384,
        Some("ed25519") => CertificateKeyType::Ed25519,
        Some(rsa @ ("rsa2048" | "rsa4096")) => {
            let message = format!("without effect: {rsa} is not supported, p256 is used");
            report.warning(field, message);
            CertificateKeyType::P256
        }
        Some(other) => {
            let message = format!("expected \"p256\", \"p384\" or \"ed25519\", found {other:?}");
            report.problem(field, message);
            CertificateKeyType::P256
        }
    }
}

fn key_type_name(key_type: CertificateKeyType) -> &'static str {
    match key_type {
        CertificateKeyType::P256 => "p256",
        CertificateKeyType::P384 => "p384",
        CertificateKeyType::Ed25519 => "ed25519",
    }
}

fn challenges(
    field: &ConfigPath,
    raw: &RawAcme,
    report: &mut ProblemReport,
) -> Option<Vec<AcmeChallenge>> {
    let is_set = |port: &u16| *port != 0;
    let mut challenges = Vec::new();
    if !raw.disable_tls_alpn_challenge {
        challenges.push(AcmeChallenge::TlsAlpn {
            port: raw.alternative_tls_port.filter(is_set),
        });
    }
    if !raw.disable_http_challenge {
        challenges.push(AcmeChallenge::Http {
            port: raw
                .alternative_http_port
                .filter(is_set)
                .unwrap_or(HTTP_PORT),
        });
    }
    if challenges.is_empty() {
        let message = "expected at least one challenge, but both are disabled";
        report.problem(field.key("disable_http_challenge"), message);
        return None;
    }
    Some(challenges)
}
