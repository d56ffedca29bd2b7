//! Who sends a request: users and their tokens.
//!
//! Owns the hashes of the users' tokens and the memory of failed attempts. Does not know what a
//! user may use. Invariant: no token is stored; what is stored is a hash under a random key of the
//! process.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use lru::LruCache;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::UserConfig;
use crate::values::clock::Timestamp;
use crate::values::exchange::client_address::ClientAddress;
use crate::values::headers::bearer_token;
use crate::values::limits::Limits;

/// How many failures of an address are answered without a delay.
const UNDELAYED_FAILURES: u32 = 5;
/// The first delay, which doubles with each further failure, and the longest one.
const DELAY_MIN: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(5);
/// How long after its last failure an address is forgiven.
const FORGIVEN_AFTER: Duration = Duration::from_secs(15 * 60);

/// The key of every token's hash. It is the same under every configuration, so that a user is
/// recognised after a reload.
static HASH_KEY: LazyLock<[u8; 16]> = LazyLock::new(|| *uuid::Uuid::new_v4().as_bytes());

/// What distinguishes users: the hash of a token under the random key of the process. Users may
/// share a name, but not a token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct UserId([u8; 32]);

impl UserId {
    fn of(token: &str) -> Self {
        let hash = Sha256::new().chain_update(*HASH_KEY).chain_update(token);
        Self(hash.finalize().into())
    }
}

impl std::fmt::Debug for UserId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UserId")
    }
}

/// A user of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) id: UserId,
    /// Empty if the configuration gives no name; other users may have the same.
    pub(crate) name: Arc<str>,
    /// Its pool: an index into the service's pools.
    pub(crate) pool: usize,
    /// Whether its requests may be sent to external credentials.
    pub(crate) allow_external_usage: bool,
    /// The tag of the external credential that its status leaves out.
    pub(crate) external_credential: Option<Arc<str>>,
}

/// Proof that a request was authenticated, and by whom it was sent. Only this module creates one.
#[derive(Debug)]
pub(crate) struct AuthenticationProof {
    user: Option<Arc<User>>,
}

impl AuthenticationProof {
    /// Returns the user; `None` if the service has no users.
    pub(crate) fn user(&self) -> Option<&Arc<User>> {
        self.user.as_ref()
    }
}

/// Why a request is rejected. The client must act. The texts are public.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    /// There is no `Authorization` field.
    #[error("missing api key")]
    Missing,
    /// The field is not `Bearer <token>`.
    #[error("invalid api key format")]
    Format,
    /// No user has this token.
    #[error("invalid api key")]
    Unknown,
}

/// The users of a service.
pub(crate) struct UserDirectory {
    users: Vec<Arc<User>>,
    /// The index of each user in `users`.
    by_id: HashMap<UserId, usize>,
}

impl std::fmt::Debug for UserDirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserDirectory")
            .field("count", &self.users.len())
            .finish_non_exhaustive()
    }
}

impl UserDirectory {
    /// Creates the directory of the configured users.
    pub(crate) fn new(configs: &[UserConfig]) -> Self {
        let users = configs.iter().map(|user| {
            Arc::new(User {
                id: UserId::of(user.token.expose()),
                name: user.name.as_str().into(),
                pool: user.pool,
                allow_external_usage: user.allow_external_usage,
                external_credential: user.external_credential.as_deref().map(Into::into),
            })
        });
        let users: Vec<Arc<User>> = users.collect();
        Self {
            by_id: users.iter().map(|user| user.id).zip(0..).collect(),
            users,
        }
    }

    /// Whether there are no users: every request is accepted.
    pub(crate) fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Returns the user with that token, if there still is one.
    pub(crate) fn with_id(&self, id: UserId) -> Option<&Arc<User>> {
        self.by_id.get(&id).map(|index| &self.users[*index])
    }

    /// Returns the first user of that name. The outer `None` means that there is no such user;
    /// `Some(None)` is the answer to the empty name if the service has no users.
    pub(crate) fn named(&self, name: &str) -> Option<Option<Arc<User>>> {
        if self.users.is_empty() {
            return name.is_empty().then_some(None);
        }
        self.users
            .iter()
            .find(|user| *user.name == *name)
            .map(|user| Some(Arc::clone(user)))
    }

    /// Returns who sends a request with these headers.
    ///
    /// # Errors
    /// The request carries no user's token.
    pub(crate) fn authenticate(
        &self,
        headers: &HeaderMap,
    ) -> Result<AuthenticationProof, AuthError> {
        if self.users.is_empty() {
            return Ok(AuthenticationProof { user: None });
        }
        let value = headers.get(AUTHORIZATION).ok_or(AuthError::Missing)?;
        let token = bearer_token(value).ok_or(AuthError::Format)?;
        let presented = UserId::of(token);
        // The time of the look-up depends on a hash under a key that no client knows.
        let (known, index) = self
            .by_id
            .get_key_value(&presented)
            .ok_or(AuthError::Unknown)?;
        if !bool::from(known.0.ct_eq(&presented.0)) {
            return Err(AuthError::Unknown);
        }
        Ok(AuthenticationProof {
            user: Some(Arc::clone(&self.users[*index])),
        })
    }
}

/// The memory of failed attempts, by address. It outlives the users of one configuration.
pub(crate) struct FailedAttempts(Mutex<LruCache<ClientAddress, AddressFailures>>);

struct AddressFailures {
    count: u32,
    last: Timestamp,
}

impl std::fmt::Debug for FailedAttempts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FailedAttempts")
    }
}

impl FailedAttempts {
    /// Creates an empty memory of at most `limits.auth_addresses` addresses.
    pub(crate) fn new(limits: &Limits) -> Self {
        let addresses_max = usize::try_from(limits.auth_addresses)
            .ok()
            .and_then(NonZeroUsize::new);
        let mut failures = LruCache::unbounded();
        failures.resize(addresses_max.unwrap_or(NonZeroUsize::MIN));
        Self(Mutex::new(failures))
    }

    /// Records a failed attempt of `address`, and returns how long its response is delayed.
    pub(crate) fn record(&self, address: ClientAddress, now: Timestamp) -> Duration {
        let mut addresses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = addresses.get_or_insert_mut(address, || AddressFailures {
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
    match failures.checked_sub(UNDELAYED_FAILURES + 1) {
        None => Duration::ZERO,
        Some(doublings) => (DELAY_MIN * 2_u32.saturating_pow(doublings.min(16))).min(DELAY_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::secret::SecretString;

    fn users() -> UserDirectory {
        let user = |name: &str, token: &str| UserConfig {
            name: name.to_owned(),
            token: SecretString::new(token.to_owned()),
            pool: 0,
            allow_external_usage: false,
            external_credential: None,
        };
        UserDirectory::new(&[user("alice", "sk-a"), user("bob", "sk-b")])
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
    fn users_of_one_name_are_told_apart_by_their_tokens() {
        let user = |token: &str, pool: usize| UserConfig {
            name: "alice".to_owned(),
            token: SecretString::new(token.to_owned()),
            pool,
            allow_external_usage: false,
            external_credential: None,
        };
        let before = UserDirectory::new(&[user("sk-a", 0), user("sk-b", 1)]);
        let [one, two] = [&before.users[0], &before.users[1]];
        assert_ne!(one.id, two.id);
        // After a reload that removed the first one.
        let after = UserDirectory::new(&[user("sk-b", 1)]);
        assert_eq!(after.with_id(one.id), None);
        assert_eq!(after.with_id(two.id), Some(two));
    }

    #[test]
    fn other_requests_are_rejected_with_their_reason() {
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
        let attempts = FailedAttempts::new(&Limits::default());
        let address = ClientAddress::from(std::net::IpAddr::from([192, 0, 2, 1]));
        let delays: Vec<u128> = (0..20)
            .map(|_| attempts.record(address, Timestamp(0)).as_millis())
            .collect();
        assert_eq!(&delays[..8], &[0, 0, 0, 0, 0, 100, 200, 400]);
        assert_eq!(delays[19], 5000);
        assert_eq!(
            attempts.record(address, Timestamp(0).after(FORGIVEN_AFTER)),
            Duration::ZERO
        );
    }
}
