//! A service as the stages see it: one configuration, and one generation of each policy.
//!
//! Owns what the stages look up, and the state that outlives a configuration; does not know what a
//! request does with it. Invariant: a service never changes. A new configuration or a new
//! generation makes another [`Service`], which requests find in [`live::LiveService`] from then on;
//! a request that has begun keeps its own to its end.

pub(crate) mod live;
mod parts;
mod pool;
mod sockets;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub(crate) use parts::ServiceParts;
pub(crate) use pool::{CredentialPool, PoolMember};
pub(crate) use sockets::SocketPermit;

use crate::authenticate::{FailedAttempts, User, UserDirectory};
use crate::config::{ServiceConfig, TrustedProxies, UpstreamEndpoints};
use crate::credentials::{Credential, CredentialHealth};
use crate::sessions::{SessionOwner, Sessions};
use crate::upstream::UpstreamClient;
use crate::values::clock::Timestamp;
use crate::values::limits::Limits;

use sockets::OpenSockets;

/// What outlives a configuration: the next service continues with it.
#[derive(Debug, Clone)]
struct ServiceState {
    sessions: Arc<Sessions>,
    failed_attempts: Arc<FailedAttempts>,
    requests: Arc<AtomicU64>,
    sockets: Arc<OpenSockets>,
    /// Statuses that are watched; each is as long-lived as a socket.
    status_watches: Arc<OpenSockets>,
}

/// A service, as one configuration and one generation of each policy describe it.
#[derive(Debug)]
pub(crate) struct Service {
    tag: String,
    users: UserDirectory,
    trusted_proxies: TrustedProxies,
    pools: Vec<CredentialPool>,
    /// An index into `pools`.
    default_pool: usize,
    endpoints: UpstreamEndpoints,
    parts: ServiceParts,
    state: ServiceState,
}

impl Service {
    /// Creates the service that `config` describes from `parts`. It continues with the state of
    /// `before`.
    pub(crate) fn new(config: &ServiceConfig, parts: ServiceParts, before: Option<&Self>) -> Self {
        let state = before.map_or_else(
            || ServiceState {
                sessions: Arc::new(Sessions::new(&parts.limits)),
                failed_attempts: Arc::new(FailedAttempts::new(&parts.limits)),
                requests: Arc::default(),
                sockets: Arc::default(),
                status_watches: Arc::default(),
            },
            |before| before.state.clone(),
        );
        let pools = config
            .pools
            .iter()
            .zip(&parts.balancers)
            .map(|(pool, balancer)| {
                let known = before.and_then(|before| {
                    before.pools.iter().find(|known| **known.tag() == *pool.tag)
                });
                CredentialPool::new(pool, balancer, &parts, known)
            });
        Self {
            tag: config.tag.clone(),
            users: UserDirectory::new(&config.users),
            trusted_proxies: config.trusted_proxies.clone(),
            pools: pools.collect(),
            default_pool: config.default_pool,
            endpoints: config.endpoints.clone(),
            parts,
            state,
        }
    }

    pub(crate) fn tag(&self) -> &str {
        &self.tag
    }

    pub(crate) fn limits(&self) -> &Arc<Limits> {
        &self.parts.limits
    }

    pub(crate) fn parts(&self) -> &ServiceParts {
        &self.parts
    }

    /// Returns its credentials, in the order of the configuration.
    pub(crate) fn credentials(&self) -> &[Arc<Credential>] {
        &self.parts.credentials
    }

    /// Returns the connections of each credential, in the order of [`Service::credentials`].
    pub(crate) fn upstreams(&self) -> &[UpstreamClient] {
        &self.parts.upstreams
    }

    pub(crate) fn endpoints(&self) -> &UpstreamEndpoints {
        &self.endpoints
    }

    pub(crate) fn users(&self) -> &UserDirectory {
        &self.users
    }

    /// Returns the proxies whose statements about a client's address are believed.
    pub(crate) fn trusted_proxies(&self) -> &TrustedProxies {
        &self.trusted_proxies
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.state.sessions
    }

    pub(crate) fn failed_attempts(&self) -> &FailedAttempts {
        &self.state.failed_attempts
    }

    /// Returns the pool of that index, as [`Service::pool_index`] gives it.
    pub(crate) fn pool(&self, index: usize) -> &CredentialPool {
        &self.pools[index]
    }

    pub(crate) fn pool_of(&self, user: Option<&User>) -> &CredentialPool {
        &self.pools[self.pool_index(user)]
    }

    pub(crate) fn pool_tagged(&self, tag: &str) -> Option<&CredentialPool> {
        self.pools.iter().find(|pool| **pool.tag() == *tag)
    }

    pub(crate) fn pool_index(&self, user: Option<&User>) -> usize {
        user.map_or(self.default_pool, |user| user.pool)
    }

    /// Returns who a user's sessions belong to.
    pub(crate) fn owner(&self, user: Option<&Arc<User>>) -> SessionOwner {
        SessionOwner {
            pool: Arc::clone(self.pool_of(user.map(Arc::as_ref)).tag()),
            user: user.map(|user| Arc::clone(&user.name)),
        }
    }

    pub(crate) fn credential_tagged(&self, tag: &str) -> Option<&Arc<Credential>> {
        self.parts
            .credentials
            .iter()
            .find(|known| known.tag() == tag)
    }

    /// Returns the state of each credential, with the number of sessions that have their home on
    /// it.
    pub(crate) fn health(&self, now: Timestamp) -> Vec<(CredentialHealth, usize)> {
        let health = |known: &Arc<Credential>| {
            let sessions = self.sessions().homes_on(known.tag(), now);
            (known.health(now), sessions)
        };
        self.parts.credentials.iter().map(health).collect()
    }

    /// Reserves a place for one more WebSocket, or returns `None` if its user has
    /// `limits.websockets_per_user` open.
    pub(crate) fn reserve_socket(&self, user: Option<&User>) -> Option<SocketPermit> {
        let user = user.map(|user| user.id);
        let sockets = &self.state.sockets;
        sockets.reserve(user, self.parts.limits.websockets_per_user)
    }

    /// Reserves a place for one more watched status, or returns `None` if its user watches
    /// `limits.status_watches_per_user` already.
    pub(crate) fn reserve_status_watch(&self, user: Option<&User>) -> Option<SocketPermit> {
        let user = user.map(|user| user.id);
        let watches = &self.state.status_watches;
        watches.reserve(user, self.parts.limits.status_watches_per_user)
    }

    pub(crate) fn sockets(&self) -> u64 {
        self.state.sockets.count()
    }

    /// Returns how long a request waits for a refresh of tokens: as long as one may take.
    pub(crate) fn refresh_wait(&self) -> Duration {
        self.parts.limits.lock_timeout + self.parts.limits.refresh_timeout
    }

    /// Returns the number of the next request of this service.
    pub(crate) fn next_request(&self) -> u64 {
        self.state.requests.fetch_add(1, Ordering::Relaxed)
    }
}
