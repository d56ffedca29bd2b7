//! Cipher suites and key exchanges. A name that sing-box knows and the TLS library does not support
//! is a warning, as long as another one remains.

use crate::config::model::{KeyExchange, Tls12Suite, TlsVersion};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::RawTls;

/// The suites of TLS 1.3, which are always offered.
const TLS13_SUITES: [&str; 3] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
];

/// The suites of TLS 1.2 and below that sing-box knows and the TLS library does not support: they
/// lack forward secrecy, or use CBC, RC4 or 3DES.
const UNSUPPORTED_SUITES: [&str; 17] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_FALLBACK_SCSV",
];

/// A key exchange that sing-box knows and the TLS library does not support.
const UNSUPPORTED_KEY_EXCHANGE: &str = "P521";

/// Returns the cipher suites to offer for TLS 1.2, if `versions`, the lowest and the highest one,
/// include it.
pub(super) fn tls12_suites(
    path: &ConfigPath,
    raw: &RawTls,
    (min_version, max_version): (TlsVersion, TlsVersion),
    report: &mut ProblemReport,
) -> Vec<Tls12Suite> {
    let list = path.key("cipher_suites");
    let names = raw.cipher_suites.as_slice();
    if names.is_empty() {
        return Tls12Suite::ALL.to_vec();
    }
    let mut chosen = Vec::new();
    let mut remaining = 0;
    for (index, name) in names.iter().enumerate() {
        let field = list.index(index);
        if let Some(suite) = Tls12Suite::ALL.iter().find(|suite| suite.name() == name) {
            chosen.push(*suite);
            remaining += 1;
        } else if TLS13_SUITES.contains(&name.as_str()) {
            remaining += usize::from(max_version == TlsVersion::V1_3);
            let message = "without effect: the suites of TLS 1.3 are always offered";
            report.warning(field, message);
        } else if UNSUPPORTED_SUITES.contains(&name.as_str()) {
            report.warning(field, format!("without effect: {name} is not supported"));
        } else {
            let example = Tls12Suite::EcdheEcdsaAes256GcmSha384.name();
            let message = format!("expected a cipher suite such as {example:?}, found {name:?}");
            report.problem(field, message);
            remaining += 1;
        }
    }
    if remaining == 0 && min_version == TlsVersion::V1_3 {
        return Tls12Suite::ALL.to_vec();
    }
    if remaining == 0 {
        let supported = Tls12Suite::ALL.map(Tls12Suite::name).join(", ");
        let message = format!("expected at least one supported cipher suite: {supported}");
        report.problem(list, message);
        return Tls12Suite::ALL.to_vec();
    }
    in_order(&Tls12Suite::ALL, &chosen)
}

/// Returns the key exchanges to offer.
pub(super) fn key_exchanges(
    path: &ConfigPath,
    raw: &RawTls,
    max_version: TlsVersion,
    report: &mut ProblemReport,
) -> Vec<KeyExchange> {
    let list = path.key("curve_preferences");
    let names = raw.curve_preferences.as_slice();
    // The hybrid exists in TLS 1.3 alone.
    let is_possible = |exchange: &KeyExchange| {
        max_version == TlsVersion::V1_3 || *exchange != KeyExchange::X25519MlKem768
    };
    let possible: Vec<_> = KeyExchange::ALL.into_iter().filter(is_possible).collect();
    if names.is_empty() {
        return possible;
    }
    let supported = KeyExchange::ALL.map(KeyExchange::name).join(", ");
    let mut chosen = Vec::new();
    let mut is_complete = true;
    for (index, name) in names.iter().enumerate() {
        let field = list.index(index);
        if let Some(known) = KeyExchange::ALL
            .iter()
            .find(|known| known.name().eq_ignore_ascii_case(name))
        {
            chosen.push(*known);
        } else if name.eq_ignore_ascii_case(UNSUPPORTED_KEY_EXCHANGE) {
            report.warning(field, format!("without effect: {name} is not supported"));
        } else {
            is_complete = false;
            report.problem(
                field,
                format!("expected one of {supported}, found {name:?}"),
            );
        }
    }
    chosen.retain(is_possible);
    if chosen.is_empty() {
        if is_complete {
            let message = format!("expected at least one supported key exchange: {supported}");
            report.problem(list, message);
        }
        return possible;
    }
    in_order(&possible, &chosen)
}

/// Returns the items of `all` that are among `chosen`: an operator's order does not count.
fn in_order<T: Copy + PartialEq>(all: &[T], chosen: &[T]) -> Vec<T> {
    all.iter()
        .copied()
        .filter(|item| chosen.contains(item))
        .collect()
}
