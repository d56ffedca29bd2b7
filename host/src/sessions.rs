//! The store of affinity: the home of each session, and the issuer of each response.
//!
//! Owns two maps that are bounded by `limits.sessions`; does not know when a session moves.
//! Credentials, pools and users are stored by name, which outlives a configuration. Invariant: a
//! key includes its owner, so that one user never finds another's.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;

use crate::values::clock::Timestamp;
use crate::values::limits::Limits;

/// How many times in a session's lifetime its use is recorded. After a restart a session may end
/// earlier, by at most this part of its lifetime.
const RECORDS_PER_LIFETIME: u32 = 24;

/// Who sessions and responses belong to: a pool and a user, by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SessionOwner {
    pub(crate) pool: Arc<str>,
    /// The user's name; `None` if the service has no users.
    pub(crate) user: Option<Arc<str>>,
}

#[derive(PartialEq, Eq, Hash)]
struct AffinityKey {
    owner: SessionOwner,
    /// The session's key or the response's id.
    name: String,
}

struct AffinityEntry {
    credential: Arc<str>,
    used_at: Timestamp,
    /// The last use that the ledger records; `None` if the entry changed since.
    recorded_at: Option<Timestamp>,
}

type AffinityMap = LruCache<AffinityKey, AffinityEntry>;

/// The sessions of a service, and the issuers of its responses.
pub(crate) struct Sessions {
    homes: Mutex<AffinityMap>,
    issuers: Mutex<AffinityMap>,
    lifetime: Duration,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

impl Sessions {
    /// Creates an empty store with room for `limits.sessions` of each kind.
    pub(crate) fn new(limits: &Limits) -> Self {
        let entries_max = usize::try_from(limits.sessions)
            .ok()
            .and_then(NonZeroUsize::new)
            .unwrap_or(NonZeroUsize::MIN);
        Self {
            homes: Mutex::new(empty_map(entries_max)),
            issuers: Mutex::new(empty_map(entries_max)),
            lifetime: limits.session_lifetime,
        }
    }

    /// Returns the credential that the session has its home on. This counts as a use of the
    /// session.
    pub(crate) fn home(
        &self,
        owner: &SessionOwner,
        session: &str,
        now: Timestamp,
    ) -> Option<Arc<str>> {
        self.find(&self.homes, owner, session, now)
    }

    /// Makes that credential the session's home.
    pub(crate) fn set_home(
        &self,
        owner: &SessionOwner,
        session: &str,
        credential: &Arc<str>,
        now: Timestamp,
    ) {
        let entry = AffinityEntry {
            credential: Arc::clone(credential),
            used_at: now,
            recorded_at: None,
        };
        lock(&self.homes).put(key(owner, session), entry);
    }

    /// Returns the session's home if the ledger is to record it: it moved, or its last recorded use
    /// is some time ago. The caller must record it.
    pub(crate) fn home_to_record(
        &self,
        owner: &SessionOwner,
        session: &str,
        now: Timestamp,
    ) -> Option<Arc<str>> {
        let mut homes = lock(&self.homes);
        let home = homes.get_mut(&key(owner, session))?;
        let is_fresh = home
            .recorded_at
            .is_some_and(|recorded| now.since(recorded) < self.lifetime / RECORDS_PER_LIFETIME);
        if is_fresh {
            return None;
        }
        home.recorded_at = Some(now);
        Some(Arc::clone(&home.credential))
    }

    /// Restores a session's home as the ledger recorded it, with its last use at `used_at`.
    pub(crate) fn restore_home(
        &self,
        owner: &SessionOwner,
        session: &str,
        credential: &Arc<str>,
        used_at: Timestamp,
    ) {
        let entry = AffinityEntry {
            credential: Arc::clone(credential),
            used_at,
            recorded_at: Some(used_at),
        };
        lock(&self.homes).put(key(owner, session), entry);
    }

    /// Returns the number of sessions that have their home on that credential.
    pub(crate) fn homes_on(&self, credential: &str, now: Timestamp) -> usize {
        lock(&self.homes)
            .iter()
            .filter(|(_, home)| {
                *home.credential == *credential && now.since(home.used_at) < self.lifetime
            })
            .count()
    }

    /// Returns the credential that issued the response of that id. This counts as a use of the
    /// response.
    pub(crate) fn issuer(
        &self,
        owner: &SessionOwner,
        response_id: &str,
        now: Timestamp,
    ) -> Option<Arc<str>> {
        self.find(&self.issuers, owner, response_id, now)
    }

    /// Notes that a credential issued the response of that id.
    pub(crate) fn record_issuer(
        &self,
        owner: &SessionOwner,
        response_id: &str,
        credential: &Arc<str>,
        now: Timestamp,
    ) {
        let entry = AffinityEntry {
            credential: Arc::clone(credential),
            used_at: now,
            recorded_at: None,
        };
        lock(&self.issuers).put(key(owner, response_id), entry);
    }

    fn find(
        &self,
        map: &Mutex<AffinityMap>,
        owner: &SessionOwner,
        name: &str,
        now: Timestamp,
    ) -> Option<Arc<str>> {
        let key = key(owner, name);
        let mut map = lock(map);
        let entry = map.get_mut(&key)?;
        if now.since(entry.used_at) >= self.lifetime {
            map.pop(&key);
            return None;
        }
        entry.used_at = now;
        Some(Arc::clone(&entry.credential))
    }
}

fn key(owner: &SessionOwner, name: &str) -> AffinityKey {
    AffinityKey {
        owner: owner.clone(),
        name: name.to_owned(),
    }
}

fn lock(map: &Mutex<AffinityMap>) -> MutexGuard<'_, AffinityMap> {
    // A panic elsewhere cannot leave an entry half-written.
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns a map that grows as it is used: `LruCache::new` would allocate room for all entries at
/// once.
fn empty_map(entries_max: NonZeroUsize) -> AffinityMap {
    let mut map = LruCache::unbounded();
    map.resize(entries_max);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(user: &str) -> SessionOwner {
        SessionOwner {
            pool: "pool".into(),
            user: Some(user.into()),
        }
    }

    fn sessions(entries_max: u64) -> Sessions {
        Sessions::new(&Limits {
            sessions: entries_max,
            ..Limits::default()
        })
    }

    fn tag(number: u8) -> Arc<str> {
        number.to_string().into()
    }

    #[test]
    fn a_session_belongs_to_its_user_alone() {
        let sessions = sessions(10);
        sessions.set_home(&owner("a"), "s", &tag(2), Timestamp(0));
        assert_eq!(sessions.home(&owner("a"), "s", Timestamp(0)), Some(tag(2)));
        assert_eq!(sessions.home(&owner("b"), "s", Timestamp(0)), None);
    }

    #[test]
    fn a_session_ends_a_day_after_its_last_use() {
        let sessions = sessions(10);
        let hours = |hours: u64| Timestamp(hours * 3_600_000);
        let owner = owner("a");
        sessions.set_home(&owner, "s", &tag(1), hours(0));
        assert_eq!(sessions.home(&owner, "s", hours(23)), Some(tag(1)));
        assert_eq!(sessions.home(&owner, "s", hours(46)), Some(tag(1)));
        assert_eq!(sessions.home(&owner, "s", hours(70)), None);
    }

    #[test]
    fn the_session_that_was_idle_longest_is_dropped_first() {
        let sessions = sessions(2);
        let owner = owner("a");
        for (name, time) in [("a", 0), ("b", 1)] {
            sessions.set_home(&owner, name, &tag(0), Timestamp(time));
        }
        sessions.home(&owner, "a", Timestamp(2));
        sessions.set_home(&owner, "c", &tag(0), Timestamp(3));
        assert_eq!(sessions.home(&owner, "b", Timestamp(4)), None);
        assert_eq!(sessions.home(&owner, "a", Timestamp(4)), Some(tag(0)));
    }

    #[test]
    fn a_home_is_recorded_when_it_moves_and_once_an_hour() {
        let sessions = sessions(10);
        let minutes = |minutes: u64| Timestamp(minutes * 60_000);
        let owner = owner("a");
        let to_record = |at: u64| sessions.home_to_record(&owner, "s", minutes(at));
        assert_eq!(to_record(0), None);
        sessions.set_home(&owner, "s", &tag(1), minutes(0));
        assert_eq!(to_record(0), Some(tag(1)));
        assert_eq!(to_record(59), None);
        assert_eq!(to_record(60), Some(tag(1)));
        sessions.set_home(&owner, "s", &tag(2), minutes(61));
        assert_eq!(to_record(61), Some(tag(2)));
        let homes_on = |credential: &str| sessions.homes_on(credential, minutes(61));
        assert_eq!((homes_on("2"), homes_on("1")), (1, 0));
    }
}
