//! The versions, cipher suites and key exchanges of a configuration, as rustls names them.

use rustls::SupportedProtocolVersion;
use rustls::crypto::ring::cipher_suite::{
    TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::ring::{default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{SupportedCipherSuite, version};

use super::hybrid::X25519MlKem768;
use crate::config::{KeyExchange, Tls12Suite, TlsConfig, TlsVersion};

/// Returns ring's provider, reduced to what `config` offers.
pub(super) fn provider(config: &TlsConfig) -> CryptoProvider {
    let mut provider = default_provider();
    provider
        .cipher_suites
        .retain(|suite| suite.version().version == rustls::ProtocolVersion::TLSv1_3);
    provider
        .cipher_suites
        .extend(config.tls12_suites.iter().map(|suite| tls12_suite(*suite)));
    provider.kx_groups = config
        .key_exchanges
        .iter()
        .map(|exchange| group(*exchange))
        .collect();
    provider
}

/// Returns the versions that `config` accepts.
pub(super) fn protocol_versions(config: &TlsConfig) -> Vec<&'static SupportedProtocolVersion> {
    [
        (TlsVersion::V1_2, &version::TLS12),
        (TlsVersion::V1_3, &version::TLS13),
    ]
    .into_iter()
    .filter(|(version, _)| (config.min_version..=config.max_version).contains(version))
    .map(|(_, version)| version)
    .collect()
}

fn tls12_suite(suite: Tls12Suite) -> SupportedCipherSuite {
    match suite {
        Tls12Suite::EcdheEcdsaAes256GcmSha384 => TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        Tls12Suite::EcdheEcdsaAes128GcmSha256 => TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        Tls12Suite::EcdheEcdsaChacha20Poly1305Sha256 => {
            TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        }
        Tls12Suite::EcdheRsaAes256GcmSha384 => TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        Tls12Suite::EcdheRsaAes128GcmSha256 => TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        Tls12Suite::EcdheRsaChacha20Poly1305Sha256 => TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    }
}

fn group(exchange: KeyExchange) -> &'static dyn SupportedKxGroup {
    match exchange {
        KeyExchange::X25519MlKem768 => &X25519MlKem768,
        KeyExchange::X25519 => kx_group::X25519,
        KeyExchange::P256 => kx_group::SECP256R1,
        KeyExchange::P384 => kx_group::SECP384R1,
    }
}
