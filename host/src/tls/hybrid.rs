//! The key exchange X25519MLKEM768 (draft-ietf-tls-ecdhe-mlkem): ML-KEM-768 (FIPS 203) beside
//! X25519. Both shares and both secrets are concatenated, those of ML-KEM first.
//!
//! Owns the layout alone: ML-KEM is of the crate `ml-kem`, X25519 of ring. Invariant: the randomness
//! of an encapsulation is used once.

use std::sync::LazyLock;

use ml_kem::kem::{Decapsulate, KeyExport};
use ml_kem::ml_kem_768::{Ciphertext, DecapsulationKey, EncapsulationKey};
use ml_kem::{B32, Key, Seed};
use rustls::crypto::ring::{default_provider, kx_group};
use rustls::crypto::{
    ActiveKeyExchange, CompletedKeyExchange, CryptoProvider, SecureRandom, SharedSecret,
    SupportedKxGroup,
};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::server::ClientHello;
use rustls::{Error, NamedGroup, PeerMisbehaved, ProtocolVersion};
use zeroize::Zeroizing;

/// The length of an encapsulation key, which a client sends.
const ENCAPSULATION_KEY_BYTES: usize = 1184;

/// The length of a ciphertext, which a server sends.
const CIPHERTEXT_BYTES: usize = 1088;

/// The length of a public key of X25519.
const X25519_BYTES: usize = 32;

const INVALID_KEY_SHARE: Error = Error::PeerMisbehaved(PeerMisbehaved::InvalidKeyShare);

static RANDOM: LazyLock<&'static dyn SecureRandom> =
    LazyLock::new(|| default_provider().secure_random);

/// The key exchange, for clients and servers.
#[derive(Debug)]
pub(super) struct X25519MlKem768;

impl SupportedKxGroup for X25519MlKem768 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let mut seed = Zeroizing::new(Seed::default());
        RANDOM.fill(seed.as_mut_slice())?;
        let key = DecapsulationKey::from_seed(*seed);
        let x25519 = kx_group::X25519.start()?;
        let share = [
            key.encapsulation_key().to_bytes().as_slice(),
            x25519.pub_key(),
        ]
        .concat();
        Ok(Box::new(StartedExchange { key, x25519, share }))
    }

    fn start_and_complete(&self, client_share: &[u8]) -> Result<CompletedKeyExchange, Error> {
        let (encapsulation_key, x25519_share) =
            split(client_share, ENCAPSULATION_KEY_BYTES).ok_or(INVALID_KEY_SHARE)?;
        let encapsulation_key = Key::<EncapsulationKey>::try_from(encapsulation_key)
            .ok()
            .and_then(|key| EncapsulationKey::new(&key).ok())
            .ok_or(INVALID_KEY_SHARE)?;
        let x25519 = kx_group::X25519.start_and_complete(x25519_share)?;
        let mut randomness = Zeroizing::new(B32::default());
        RANDOM.fill(randomness.as_mut_slice())?;
        let (ciphertext, secret) = encapsulation_key.encapsulate_deterministic(&randomness);
        let secret = Zeroizing::new(secret);
        Ok(CompletedKeyExchange {
            group: self.name(),
            pub_key: [ciphertext.as_slice(), &x25519.pub_key].concat(),
            secret: joined(secret.as_slice(), &x25519.secret),
        })
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        version == ProtocolVersion::TLSv1_3
    }
}

/// Another key exchange, for TLS 1.2 alone.
#[derive(Debug)]
struct OfTls12(fn() -> &'static dyn SupportedKxGroup);

impl SupportedKxGroup for OfTls12 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        (self.0)().start()
    }

    fn start_and_complete(&self, client_share: &[u8]) -> Result<CompletedKeyExchange, Error> {
        (self.0)().start_and_complete(client_share)
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        (self.0)().ffdhe_group()
    }

    fn name(&self) -> NamedGroup {
        (self.0)().name()
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        version == ProtocolVersion::TLSv1_2
    }
}

/// All other key exchanges.
static OTHERS: [OfTls12; 3] = [
    OfTls12(|| kx_group::X25519),
    OfTls12(|| kx_group::SECP256R1),
    OfTls12(|| kx_group::SECP384R1),
];

/// Returns `provider` with this key exchange as the only one for TLS 1.3, if it has it. Those for
/// TLS 1.2 stay: a hello may name this one, and still lead to that version.
pub(super) fn hybrid_alone(provider: &CryptoProvider) -> Option<CryptoProvider> {
    let has = |name: NamedGroup| provider.kx_groups.iter().any(|group| group.name() == name);
    if !has(NamedGroup::X25519MLKEM768) {
        return None;
    }
    let mut alone = provider.clone();
    alone.kx_groups = vec![&X25519MlKem768];
    for other in OTHERS.iter().filter(|other| has(other.name())) {
        alone.kx_groups.push(other);
    }
    Some(alone)
}

/// Returns whether the client offers this key exchange.
pub(super) fn offers_hybrid(hello: &ClientHello<'_>) -> bool {
    hello
        .named_groups()
        .is_some_and(|groups| groups.contains(&NamedGroup::X25519MLKEM768))
}

/// A client's part of an exchange, until the server's share arrives.
struct StartedExchange {
    key: DecapsulationKey,
    x25519: Box<dyn ActiveKeyExchange>,
    share: Vec<u8>,
}

impl ActiveKeyExchange for StartedExchange {
    fn complete(self: Box<Self>, server_share: &[u8]) -> Result<SharedSecret, Error> {
        let (ciphertext, x25519_share) =
            split(server_share, CIPHERTEXT_BYTES).ok_or(INVALID_KEY_SHARE)?;
        let ciphertext = Ciphertext::try_from(ciphertext).map_err(|_| INVALID_KEY_SHARE)?;
        let secret = Zeroizing::new(self.key.decapsulate(&ciphertext));
        let x25519 = self.x25519.complete(x25519_share)?;
        Ok(joined(secret.as_slice(), &x25519))
    }

    fn pub_key(&self) -> &[u8] {
        &self.share
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }
}

/// Splits a share into that of ML-KEM, of `length`, and that of X25519.
fn split(share: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
    (share.len() == length + X25519_BYTES).then(|| share.split_at(length))
}

fn joined(ml_kem: &[u8], x25519: &SharedSecret) -> SharedSecret {
    SharedSecret::from([ml_kem, x25519.secret_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_and_server_agree_on_a_secret_of_both_parts() {
        let client = X25519MlKem768.start().expect("randomness");
        assert_eq!(client.pub_key().len(), 1216);
        let server = X25519MlKem768
            .start_and_complete(client.pub_key())
            .expect("a good share");
        assert_eq!(server.pub_key.len(), 1120);
        assert_eq!(server.group, NamedGroup::X25519MLKEM768);
        let secret = client.complete(&server.pub_key).expect("a good share");
        assert_eq!(secret.secret_bytes().len(), 64);
        assert_eq!(secret.secret_bytes(), server.secret.secret_bytes());
    }

    #[test]
    fn two_exchanges_have_different_secrets_in_both_parts() {
        let client = X25519MlKem768.start().expect("randomness");
        let exchange = || {
            X25519MlKem768
                .start_and_complete(client.pub_key())
                .expect("a good share")
        };
        let (one, other) = (exchange(), exchange());
        for part in [0..32, 32..64] {
            assert_ne!(
                one.secret.secret_bytes()[part.clone()],
                other.secret.secret_bytes()[part]
            );
        }
    }

    /// Both parts are computed here, apart from each other.
    #[test]
    fn shares_and_secrets_have_the_part_of_ml_kem_first() {
        let key = DecapsulationKey::from_seed(Seed::from([7; 64]));
        let x25519 = kx_group::X25519.start().expect("randomness");
        let encapsulation_key = key.encapsulation_key().to_bytes();
        let share = [encapsulation_key.as_slice(), x25519.pub_key()].concat();
        let server = X25519MlKem768
            .start_and_complete(&share)
            .expect("a good share");
        let (ciphertext, x25519_share) = server.pub_key.split_at(1088);
        let ciphertext = Ciphertext::try_from(ciphertext).expect("its length");
        let secret = server.secret.secret_bytes();
        assert_eq!(secret[..32], *key.decapsulate(&ciphertext).as_slice());
        let x25519 = x25519.complete(x25519_share).expect("a good share");
        assert_eq!(secret[32..], *x25519.secret_bytes());
    }

    #[test]
    fn a_share_of_low_order_is_rejected() {
        let mut share = X25519MlKem768
            .start()
            .expect("randomness")
            .pub_key()
            .to_vec();
        // With this X25519 share, every client has the secret zero (RFC 7748, section 6.1).
        share[ENCAPSULATION_KEY_BYTES..].fill(0);
        assert!(X25519MlKem768.start_and_complete(&share).is_err());
    }

    #[test]
    fn shares_of_another_length_or_with_an_invalid_key_are_rejected() {
        let share = X25519MlKem768
            .start()
            .expect("randomness")
            .pub_key()
            .to_vec();
        let mut longer = share.clone();
        longer.push(0);
        // Coefficients of 12 bits must be below 3329 (FIPS 203, section 7.2).
        let mut invalid = share.clone();
        invalid[..3].fill(0xff);
        for bad in [&share[1..], &longer, &invalid, &[]] {
            assert!(X25519MlKem768.start_and_complete(bad).is_err());
        }
        for length in [0, 1119, 1121] {
            let client = X25519MlKem768.start().expect("randomness");
            assert!(client.complete(&vec![0; length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_changed_ciphertext_gives_another_secret() {
        let client = X25519MlKem768.start().expect("randomness");
        let server = X25519MlKem768
            .start_and_complete(client.pub_key())
            .expect("a good share");
        let mut changed = server.pub_key.clone();
        changed[0] ^= 1;
        // FIPS 203 rejects implicitly: only the client knows the secret.
        let secret = client
            .complete(&changed)
            .expect("a share of the right form");
        assert_ne!(secret.secret_bytes(), server.secret.secret_bytes());
    }
}
