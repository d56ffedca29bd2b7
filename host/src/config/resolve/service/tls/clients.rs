//! How clients authenticate with certificates.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::pem::inline_pem;
use crate::config::model::{ClientAuthentication, ClientAuthenticationMode, PemContent, PemSource};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::RawTls;
use crate::config::resolve::field;

/// The field that says what is asked of clients.
const MODE: &str = "client_authentication";

/// The digests of public keys.
const PUBLIC_KEYS: &str = "client_certificate_public_key_sha256";

/// Whether there is something to verify the certificates of clients with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum VerificationMeans {
    Configured,
    Missing,
}

/// Returns how clients authenticate, or `None` if they are not asked to.
pub(super) fn client_authentication(
    path: &ConfigPath,
    raw: &RawTls,
    report: &mut ProblemReport,
) -> Option<ClientAuthentication> {
    let authorities = authorities(path, raw, report);
    let public_keys = public_keys(path, raw, report);
    let means = if authorities.is_empty() && raw_public_keys(raw).is_empty() {
        VerificationMeans::Missing
    } else {
        VerificationMeans::Configured
    };
    let mode = mode(path, raw, means, report)?;
    if mode.verifies() && means == VerificationMeans::Missing {
        let message = format!(
            "{:?} needs client_certificate, client_certificate_path or {PUBLIC_KEYS}",
            mode.as_str()
        );
        report.problem(path.key(MODE), message);
    }
    if !mode.verifies() && !authorities.is_empty() {
        let message = format!("without effect: {MODE} is {:?}", mode.as_str());
        report.warning(authorities[0].field.clone(), message);
    }
    Some(ClientAuthentication {
        mode,
        authorities,
        public_keys,
    })
}

/// Returns what is asked of clients. Something to verify with and no mode means that every client
/// is verified: an operator who forgets the mode locks clients out, and lets none in.
fn mode(
    path: &ConfigPath,
    raw: &RawTls,
    means: VerificationMeans,
    report: &mut ProblemReport,
) -> Option<ClientAuthenticationMode> {
    let field = path.key(MODE);
    let Some(name) = field::non_empty(raw.client_authentication.as_deref()) else {
        if means == VerificationMeans::Missing {
            return None;
        }
        let message = "not set: \"require-and-verify\", because there is something to verify with";
        report.warning(field, message);
        return Some(ClientAuthenticationMode::RequireAndVerify);
    };
    if name == "no" {
        if means == VerificationMeans::Configured {
            let message = "\"no\": clients are not asked for certificates, and the fields that verify them have no effect";
            report.warning(field, message);
        }
        return None;
    }
    let mode = ClientAuthenticationMode::ALL
        .into_iter()
        .find(|mode| mode.as_str() == name);
    if mode.is_none() {
        let modes = ClientAuthenticationMode::ALL.map(|mode| format!("{:?}", mode.as_str()));
        let message = format!("expected \"no\", {}, found {name:?}", modes.join(", "));
        report.problem(field, message);
    }
    mode
}

fn authorities(path: &ConfigPath, raw: &RawTls, report: &mut ProblemReport) -> Vec<PemSource> {
    let inline = inline_pem(path.key("client_certificate"), &raw.client_certificate);
    let list = path.key("client_certificate_path");
    let files = raw.client_certificate_path.as_slice().iter().enumerate();
    let files = files.filter_map(|(index, file)| {
        let field = list.index(index);
        let Some(file) = field::file(Some(file)) else {
            // Left out, it would let in clients that it should keep out.
            report.problem(field, "must not be empty");
            return None;
        };
        Some(PemSource {
            field,
            content: PemContent::File(file),
        })
    });
    inline.into_iter().chain(files).collect()
}

fn raw_public_keys(raw: &RawTls) -> &[String] {
    raw.client_certificate_public_key_sha256.as_slice()
}

fn public_keys(path: &ConfigPath, raw: &RawTls, report: &mut ProblemReport) -> Vec<[u8; 32]> {
    let list = path.key(PUBLIC_KEYS);
    let mut digests = Vec::new();
    for (index, text) in raw_public_keys(raw).iter().enumerate() {
        let decoded = STANDARD.decode(text).ok();
        match decoded.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) {
            Some(digest) => digests.push(digest),
            None => report.problem(
                list.index(index),
                format!("expected 32 bytes in base64, found {text:?}"),
            ),
        }
    }
    digests
}
