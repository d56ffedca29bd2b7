//! A service as the stages see it: everything that they look things up in, and nothing that they wait for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::authenticate::{User, Users};
use crate::config::{Endpoints, PoolConfig, ServiceConfig};
use crate::credentials::{Credential, Health};
use crate::ledger::{KnownMaker, KnownSession, Ledger};
use crate::policy::{Balancer, Members, Pricer, Rewriter};
use crate::sessions::{Owner, Sessions};
use crate::upstream::Upstream;
use crate::values::clock::Millis;
use crate::values::limits::Limits;
use crate::values::phase::Phase;

/// What a service is made of.
#[derive(Debug)]
pub struct Parts {
    /// The credentials, in the order of the configuration.
    pub credentials: Vec<Arc<Credential>>,
    /// The connections of each.
    pub upstreams: Vec<Upstream>,
    /// The balancer of each pool.
    pub balancers: Vec<Arc<Balancer>>,
    /// The balancer that stands in for one that fails.
    pub fallback: Arc<Balancer>,
    /// The rewriters, in order.
    pub rewriters: Vec<Arc<Rewriter>>,
    /// The pricer.
    pub pricer: Arc<Pricer>,
    /// The ledger.
    pub ledger: Arc<Ledger>,
    /// The bounds.
    pub limits: Arc<Limits>,
    /// How far the gateway is from its end.
    pub phases: watch::Receiver<Phase>,
    /// Held for as long as anything holds the service: whoever has the other end knows when all is over.
    pub alive: mpsc::Sender<()>,
}

/// A service.
#[derive(Debug)]
pub struct Service {
    pub(super) tag: String,
    pub(super) users: Users,
    pub(super) pools: Vec<Pool>,
    pub(super) default_pool: usize,
    pub(super) endpoints: Endpoints,
    pub(super) sessions: Sessions,
    pub(super) parts: Parts,
    requests: AtomicU64,
    /// Open WebSockets of each user, and of nobody in the last place.
    sockets: Arc<[AtomicU64]>,
}

/// A WebSocket's place among those of its user.
#[derive(Debug)]
pub(super) struct Seat {
    sockets: Arc<[AtomicU64]>,
    place: usize,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.sockets[self.place].fetch_sub(1, Ordering::AcqRel);
    }
}

/// A pool: its members and who chooses among them.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) tag: String,
    /// Places in [`Parts::credentials`].
    pub(super) members: Vec<usize>,
    pub(super) balancer: Arc<Balancer>,
    /// It is one credential alone: there is nothing to choose.
    pub(super) single: bool,
    /// The members as balancers are told of them, and the sum of their plans' versions then.
    announced: Mutex<(u64, Members)>,
    homeless: AtomicU64,
}

impl Service {
    /// The service of `config`, made of `parts`.
    pub fn new(config: ServiceConfig, parts: Parts) -> Self {
        let pools = config
            .pools
            .into_iter()
            .zip(&parts.balancers)
            .map(|(pool, balancer)| Pool::new(pool, balancer, &parts.credentials));
        Self {
            tag: config.tag,
            sockets: (0..=config.users.len()).map(|_| AtomicU64::new(0)).collect(),
            users: Users::new(&config.users, &parts.limits),
            pools: pools.collect(),
            default_pool: config.default_pool,
            endpoints: config.endpoints,
            sessions: Sessions::new(&parts.limits),
            requests: AtomicU64::new(0),
            parts,
        }
    }

    /// Its name.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.parts.limits
    }

    /// Its credentials.
    pub fn credentials(&self) -> &[Arc<Credential>] {
        &self.parts.credentials
    }

    pub(super) fn pool_of(&self, user: Option<&User>) -> usize {
        user.map_or(self.default_pool, |user| user.pool)
    }

    /// Takes up what the ledger knows of sessions and responses: homes and makers whose user, pool and credential are
    /// still there, oldest first.
    pub fn restore(&self, sessions: &[KnownSession], makers: &[KnownMaker]) {
        let credential = |tag: &str| self.parts.credentials.iter().position(|known| known.tag() == tag);
        for known in sessions.iter().filter(|known| known.service == self.tag) {
            let Some(user) = self.users.named(&known.user) else { continue };
            let Some(pool) = self.pools.iter().position(|pool| pool.tag == known.pool) else { continue };
            let Some(credential) = credential(&known.credential) else { continue };
            let owner = Owner { pool, user: user.as_ref().map(|user| user.index) };
            self.sessions.restore_home(&owner, &known.session, credential, known.used_at);
        }
        for known in makers.iter().filter(|known| known.service == self.tag) {
            let Some(user) = self.users.named(&known.user) else { continue };
            let Some(credential) = credential(&known.credential) else { continue };
            let owner = Owner { pool: self.pool_of(user.as_deref()), user: user.as_ref().map(|user| user.index) };
            self.sessions.made(&owner, &known.response_id, credential, known.made_at);
        }
    }

    /// How its credentials are, each with the number of sessions that live on it.
    pub fn health(&self, now: Millis) -> Vec<(Health, usize)> {
        let credentials = self.parts.credentials.iter().enumerate();
        credentials.map(|(index, known)| (known.health(now), self.sessions.living_on(index, now))).collect()
    }

    /// Where upstream is.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The connections of each credential, in their order.
    pub fn upstreams(&self) -> &[Upstream] {
        &self.parts.upstreams
    }

    /// A place for one more WebSocket; none where its user has as many as may be.
    pub(super) fn take_seat(&self, owner: &Owner) -> Option<Seat> {
        let place = owner.user.unwrap_or(self.sockets.len() - 1);
        let most = self.parts.limits.websockets_per_user;
        let taken = self.sockets[place]
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| (open < most).then_some(open + 1));
        taken.is_ok().then(|| Seat { sockets: Arc::clone(&self.sockets), place })
    }

    /// For how long a request waits for a refresh of tokens: as long as one may take.
    pub(super) fn refresh_wait(&self) -> Duration {
        self.parts.limits.lock_timeout + self.parts.limits.refresh_timeout
    }

    /// The place of a request in the order of all.
    pub(super) fn next_request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }
}

impl Pool {
    fn new(config: PoolConfig, balancer: &Arc<Balancer>, credentials: &[Arc<Credential>]) -> Self {
        let versions = versions(&config.members, credentials);
        let named = named(&config.members, credentials);
        Self {
            tag: config.tag,
            members: config.members,
            balancer: Arc::clone(balancer),
            single: config.single,
            announced: Mutex::new((versions, Members::new(named))),
            homeless: AtomicU64::new(0),
        }
    }

    /// The members as a balancer is told of them, with their plans as they are now.
    pub(super) fn members_named(&self, credentials: &[Arc<Credential>]) -> Members {
        let versions = versions(&self.members, credentials);
        let mut announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        if announced.0 != versions {
            *announced = (versions, announced.1.changed(named(&self.members, credentials)));
        }
        announced.1.clone()
    }

    /// The place of a request in the order of those without a home; one that has one takes no place.
    pub(super) fn sequence(&self, has_home: bool) -> u64 {
        if has_home { self.homeless.load(Ordering::Relaxed) } else { self.homeless.fetch_add(1, Ordering::Relaxed) }
    }
}

fn versions(members: &[usize], credentials: &[Arc<Credential>]) -> u64 {
    members.iter().map(|member| credentials[*member].plan_version()).sum()
}

fn named(members: &[usize], credentials: &[Arc<Credential>]) -> Vec<(String, String)> {
    members.iter().map(|member| (credentials[*member].tag().to_owned(), credentials[*member].plan())).collect()
}
