//! Where sessions live: the credential that serves a user's session, and the one that made a response.
//!
//! Owns two bounded maps; refuses to know when a session should move. Keys are per user: nobody finds another's. Pools,
//! users and credentials are known by their names, which outlive a configuration.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use lru::LruCache;
use sha2::{Digest, Sha256};

use crate::values::clock::Timestamp;
use crate::values::limits::{FIELD_BYTES, Limits};

/// The headers that name a session, the first found counts. Codex CLI sends `session-id` (0.144 and later) or
/// `session_id` (before).
const SESSION_HEADERS: [&str; 5] = [
    "session_id",
    "session-id",
    "x-session-id",
    "conversation_id",
    "thread-id",
];

/// How often in its lifetime a session's use is noted: after a restart it lives shorter by at most so small a part.
const NOTES_A_LIFE: u32 = 24;

/// The session that a request's headers name, by the first of them that can. Without one, the body's `prompt_cache_key` is the key.
pub fn key_in_headers(headers: &HeaderMap) -> Option<String> {
    let key = |name: &&str| {
        let key = headers.get(*name)?.to_str().ok()?.trim();
        (!key.is_empty() && key.len() <= FIELD_BYTES).then(|| key.to_owned())
    };
    SESSION_HEADERS.iter().find_map(key)
}

/// The key of something that has no bound of its own: a turn's state. No response's id looks like it.
pub fn opaque_key(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Whose key: the pool and the user, by their names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The pool.
    pub pool: Arc<str>,
    /// The user; none where the service has no users.
    pub user: Option<Arc<str>>,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    owner: Owner,
    name: String,
}

struct Home {
    credential: Arc<str>,
    used_at: Timestamp,
    /// The use that was told last to whoever keeps it; none where it moved since.
    noted_at: Option<Timestamp>,
}

/// The sessions of a service.
pub struct Sessions {
    homes: Mutex<LruCache<Key, Home>>,
    makers: Mutex<LruCache<Key, Home>>,
    lifetime: Duration,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

impl Sessions {
    /// No sessions, and room for `limits.sessions`.
    pub fn new(limits: &Limits) -> Self {
        let room = usize::try_from(limits.sessions)
            .ok()
            .and_then(NonZeroUsize::new)
            .unwrap_or(NonZeroUsize::MIN);
        let room = || Mutex::new(LruCache::unbounded().resized(room));
        Self {
            homes: room(),
            makers: room(),
            lifetime: limits.session_lifetime,
        }
    }

    /// The credential that the session lives on. Asking counts as use.
    pub fn home(&self, owner: &Owner, session: &str, now: Timestamp) -> Option<Arc<str>> {
        self.find(&self.homes, owner, session, now)
    }

    /// The session lives on that credential from now on.
    pub fn settle_on(&self, owner: &Owner, session: &str, credential: &Arc<str>, now: Timestamp) {
        put(
            &self.homes,
            owner,
            session,
            Home {
                credential: Arc::clone(credential),
                used_at: now,
                noted_at: None,
            },
        );
    }

    /// The session's home, where that is worth noting: it moved, or its last noted use is some time ago. Whoever is told
    /// keeps it.
    pub fn to_note(&self, owner: &Owner, session: &str, now: Timestamp) -> Option<Arc<str>> {
        let key = Key {
            owner: owner.clone(),
            name: session.to_owned(),
        };
        let mut homes = self.homes.lock().unwrap_or_else(PoisonError::into_inner);
        let home = homes.get_mut(&key)?;
        let is_fresh = home
            .noted_at
            .is_some_and(|noted| now.since(noted) < self.lifetime / NOTES_A_LIFE);
        if is_fresh {
            return None;
        }
        home.noted_at = Some(now);
        Some(Arc::clone(&home.credential))
    }

    /// The session lived on that credential, and was used last at `used_at`, as was noted.
    pub fn restore_home(
        &self,
        owner: &Owner,
        session: &str,
        credential: &Arc<str>,
        used_at: Timestamp,
    ) {
        put(
            &self.homes,
            owner,
            session,
            Home {
                credential: Arc::clone(credential),
                used_at,
                noted_at: Some(used_at),
            },
        );
    }

    /// How many sessions live on that credential.
    pub fn living_on(&self, credential: &str, now: Timestamp) -> usize {
        let homes = self.homes.lock().unwrap_or_else(PoisonError::into_inner);
        let lives = |home: &&Home| {
            *home.credential == *credential && now.since(home.used_at) < self.lifetime
        };
        homes.iter().map(|(_, home)| home).filter(lives).count()
    }

    /// The credential that made the response of that id.
    pub fn maker(&self, owner: &Owner, response_id: &str, now: Timestamp) -> Option<Arc<str>> {
        self.find(&self.makers, owner, response_id, now)
    }

    /// That credential made the response of that id.
    pub fn made(&self, owner: &Owner, response_id: &str, credential: &Arc<str>, now: Timestamp) {
        put(
            &self.makers,
            owner,
            response_id,
            Home {
                credential: Arc::clone(credential),
                used_at: now,
                noted_at: None,
            },
        );
    }

    fn find(
        &self,
        map: &Mutex<LruCache<Key, Home>>,
        owner: &Owner,
        name: &str,
        now: Timestamp,
    ) -> Option<Arc<str>> {
        let key = Key {
            owner: owner.clone(),
            name: name.to_owned(),
        };
        let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
        let home = map.get_mut(&key)?;
        if now.since(home.used_at) >= self.lifetime {
            map.pop(&key);
            return None;
        }
        home.used_at = now;
        Some(Arc::clone(&home.credential))
    }
}

fn put(map: &Mutex<LruCache<Key, Home>>, owner: &Owner, name: &str, home: Home) {
    let key = Key {
        owner: owner.clone(),
        name: name.to_owned(),
    };
    map.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .put(key, home);
}

/// An LRU that grows as it is used: its bound is not its first allocation.
trait Resized {
    fn resized(self, room: NonZeroUsize) -> Self;
}

impl Resized for LruCache<Key, Home> {
    fn resized(mut self, room: NonZeroUsize) -> Self {
        self.resize(room);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(user: &str) -> Owner {
        Owner {
            pool: "pool".into(),
            user: Some(user.into()),
        }
    }

    fn sessions(room: u64) -> Sessions {
        Sessions::new(&Limits {
            sessions: room,
            ..Limits::default()
        })
    }

    fn tag(number: u8) -> Arc<str> {
        number.to_string().into()
    }

    #[test]
    fn a_session_is_its_users_own() {
        let sessions = sessions(10);
        sessions.settle_on(&owner("a"), "s", &tag(2), Timestamp(0));
        assert_eq!(sessions.home(&owner("a"), "s", Timestamp(0)), Some(tag(2)));
        assert_eq!(sessions.home(&owner("b"), "s", Timestamp(0)), None);
    }

    #[test]
    fn a_session_lives_a_day_since_its_last_use() {
        let sessions = sessions(10);
        let hours = |hours: u64| Timestamp(hours * 3_600_000);
        let owner = owner("a");
        sessions.settle_on(&owner, "s", &tag(1), hours(0));
        assert_eq!(sessions.home(&owner, "s", hours(23)), Some(tag(1)));
        assert_eq!(sessions.home(&owner, "s", hours(46)), Some(tag(1)));
        assert_eq!(sessions.home(&owner, "s", hours(70)), None);
    }

    #[test]
    fn the_session_that_was_idle_longest_goes_first() {
        let sessions = sessions(2);
        let owner = owner("a");
        for (name, time) in [("a", 0), ("b", 1)] {
            sessions.settle_on(&owner, name, &tag(0), Timestamp(time));
        }
        sessions.home(&owner, "a", Timestamp(2));
        sessions.settle_on(&owner, "c", &tag(0), Timestamp(3));
        assert_eq!(sessions.home(&owner, "b", Timestamp(4)), None);
        assert_eq!(sessions.home(&owner, "a", Timestamp(4)), Some(tag(0)));
    }

    #[test]
    fn a_home_is_noted_when_it_moves_and_once_an_hour() {
        let sessions = sessions(10);
        let minutes = |minutes: u64| Timestamp(minutes * 60_000);
        let owner = owner("a");
        assert_eq!(sessions.to_note(&owner, "s", minutes(0)), None);
        sessions.settle_on(&owner, "s", &tag(1), minutes(0));
        assert_eq!(sessions.to_note(&owner, "s", minutes(0)), Some(tag(1)));
        assert_eq!(sessions.to_note(&owner, "s", minutes(59)), None);
        assert_eq!(sessions.to_note(&owner, "s", minutes(60)), Some(tag(1)));
        sessions.settle_on(&owner, "s", &tag(2), minutes(61));
        assert_eq!(sessions.to_note(&owner, "s", minutes(61)), Some(tag(2)));
        assert_eq!(
            (
                sessions.living_on("2", minutes(61)),
                sessions.living_on("1", minutes(61))
            ),
            (1, 0)
        );
    }

    #[test]
    fn todays_and_yesterdays_session_headers_are_read() {
        for name in SESSION_HEADERS {
            let mut headers = HeaderMap::new();
            headers.insert(name, "one".parse().expect("a value"));
            assert_eq!(key_in_headers(&headers).as_deref(), Some("one"), "{name}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(
            "session-id",
            "x".repeat(FIELD_BYTES + 1).parse().expect("a value"),
        );
        assert_eq!(key_in_headers(&headers), None);
        headers.insert("thread-id", "two".parse().expect("a value"));
        assert_eq!(
            key_in_headers(&headers).as_deref(),
            Some("two"),
            "one that is of no use hides no other"
        );
    }
}
