//! Who sends a request: users and their tokens.
//!
//! Owns the users' token hashes and the memory of failed attempts; refuses to know what a user may use. Invariant: a
//! token is neither kept nor shown; what is kept is a hash under a key that lives as long as the process.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use lru::LruCache;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::UserConfig;
use crate::values::clock::Timestamp;
use crate::values::limits::Limits;

/// Failures of an address before its answers are delayed.
const FREE_FAILURES: u32 = 5;
/// The first delay; it doubles with each further failure up to the last.
const DELAY_FIRST: Duration = Duration::from_millis(100);
const DELAY_LAST: Duration = Duration::from_secs(5);
/// An address that was quiet for so long starts anew.
const FORGIVEN_AFTER: Duration = Duration::from_secs(15 * 60);

/// A user, as a service's list has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: Arc<str>,
    /// Its pool: a place in the service's pools.
    pub pool: usize,
    /// Whether other gateways may serve it.
    pub allow_external_usage: bool,
}

/// Who sends a request: proof that it was asked for. Only this module makes one.
#[derive(Debug)]
pub struct Authenticated {
    user: Option<Arc<User>>,
}

impl Authenticated {
    /// The user; none where the service has no users.
    pub fn user(&self) -> Option<&Arc<User>> {
        self.user.as_ref()
    }
}

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No `Authorization`.
    #[error("missing api key")]
    Missing,
    /// Not of the scheme `Bearer`.
    #[error("invalid api key format")]
    Format,
    /// Nobody's token.
    #[error("invalid api key")]
    Unknown,
}

/// The users of a service.
pub struct Users {
    users: Vec<Arc<User>>,
    key: [u8; 16],
    by_hash: HashMap<[u8; 32], usize>,
}

/// The memory of failed attempts. It outlives the users of a configuration.
pub struct Attempts(Mutex<LruCache<IpAddr, Failures>>);

impl std::fmt::Debug for Attempts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Attempts")
    }
}

struct Failures {
    count: u32,
    last: Timestamp,
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Users")
            .field("count", &self.users.len())
            .finish_non_exhaustive()
    }
}

impl Users {
    /// The users of `configs`.
    pub fn new(configs: &[UserConfig]) -> Self {
        let key = *uuid::Uuid::new_v4().as_bytes();
        let by_hash = configs
            .iter()
            .enumerate()
            .map(|(index, user)| (hash(&key, user.token.expose()), index));
        let users = configs.iter().map(|user| {
            Arc::new(User {
                name: user.name.as_str().into(),
                pool: user.pool,
                allow_external_usage: user.allow_external_usage,
            })
        });
        Self {
            users: users.collect(),
            by_hash: by_hash.collect(),
            key,
        }
    }

    /// Whether everybody is let in.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// The user of that name: none for the empty name where there are no users, and an outer none where there is no
    /// such user.
    pub fn named(&self, name: &str) -> Option<Option<Arc<User>>> {
        if self.users.is_empty() {
            return name.is_empty().then_some(None);
        }
        self.users
            .iter()
            .find(|user| *user.name == *name)
            .map(|user| Some(Arc::clone(user)))
    }

    /// Who sends a request with these headers.
    ///
    /// # Errors
    /// Nobody who may.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Authenticated, AuthError> {
        if self.users.is_empty() {
            return Ok(Authenticated { user: None });
        }
        let value = headers.get(AUTHORIZATION).ok_or(AuthError::Missing)?;
        let token = value
            .to_str()
            .ok()
            .and_then(bearer)
            .ok_or(AuthError::Format)?;
        let found = hash(&self.key, token);
        // Which bucket is looked at depends on a hash under a key that nobody outside knows.
        let (known, index) = self
            .by_hash
            .get_key_value(&found)
            .ok_or(AuthError::Unknown)?;
        if bool::from(known.ct_eq(&found)) {
            Ok(Authenticated {
                user: Some(Arc::clone(&self.users[*index])),
            })
        } else {
            Err(AuthError::Unknown)
        }
    }
}

impl Attempts {
    /// None yet, and room for the addresses of `limits`.
    pub fn new(limits: &Limits) -> Self {
        let room = usize::try_from(limits.auth_addresses)
            .ok()
            .and_then(NonZeroUsize::new);
        let mut failures = LruCache::unbounded();
        failures.resize(room.unwrap_or(NonZeroUsize::MIN));
        Self(Mutex::new(failures))
    }

    /// Takes in a failed attempt of `address`. Answers for how long its answer is to be held back.
    pub fn failed(&self, address: IpAddr, now: Timestamp) -> Duration {
        let mut addresses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = addresses.get_or_insert_mut(address, || Failures {
            count: 0,
            last: now,
        });
        if now.since(failures.last) >= FORGIVEN_AFTER {
            failures.count = 0;
        }
        failures.count = failures.count.saturating_add(1);
        failures.last = now;
        delay(failures.count)
    }
}

fn delay(failures: u32) -> Duration {
    match failures.checked_sub(FREE_FAILURES + 1) {
        None => Duration::ZERO,
        Some(further) => (DELAY_FIRST * 2_u32.saturating_pow(further.min(16))).min(DELAY_LAST),
    }
}

/// The token of `Bearer <token>` (RFC 6750); the scheme's case does not matter.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn hash(key: &[u8; 16], token: &str) -> [u8; 32] {
    Sha256::new()
        .chain_update(key)
        .chain_update(token)
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::secret::Secret;

    fn users() -> Users {
        let user = |name: &str, token: &str| UserConfig {
            name: name.to_owned(),
            token: Secret::new(token.to_owned()),
            pool: 0,
            allow_external_usage: false,
        };
        Users::new(&[user("alice", "sk-a"), user("bob", "sk-b")])
    }

    #[track_caller]
    fn check(authorization: Option<&str>, expected: Result<&str, AuthError>) {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, value.parse().expect("a value"));
        }
        let users = users();
        let found = users
            .authenticate(&headers)
            .map(|found| found.user().expect("a user").name.to_string());
        assert_eq!(found, expected.map(str::to_owned));
    }

    #[test]
    fn a_token_names_its_user() {
        check(Some("Bearer sk-a"), Ok("alice"));
        check(Some("bearer sk-b"), Ok("bob"));
    }

    #[test]
    fn everything_else_is_told_apart() {
        check(None, Err(AuthError::Missing));
        check(Some("Basic sk-a"), Err(AuthError::Format));
        check(Some("Bearer"), Err(AuthError::Format));
        check(Some("Bearer "), Err(AuthError::Format));
        check(Some("Bearer sk-c"), Err(AuthError::Unknown));
        check(Some("Bearer sk-"), Err(AuthError::Unknown));
        check(Some("Bearer sk-aa"), Err(AuthError::Unknown));
    }

    #[test]
    fn repeated_failures_are_delayed_up_to_a_bound_and_forgiven() {
        let users = Attempts::new(&Limits::default());
        let address: IpAddr = "192.0.2.1".parse().expect("an address");
        let delays: Vec<u128> = (0..20)
            .map(|_| users.failed(address, Timestamp(0)).as_millis())
            .collect();
        assert_eq!(&delays[..8], &[0, 0, 0, 0, 0, 100, 200, 400]);
        assert_eq!(delays[19], 5000);
        assert_eq!(
            users.failed(address, Timestamp(0).after(FORGIVEN_AFTER)),
            Duration::ZERO
        );
    }
}
