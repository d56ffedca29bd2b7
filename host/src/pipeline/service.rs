//! A service as the stages see it: everything that they look things up in, and nothing that they wait for.
//!
//! What a request finds when it begins stays as it is until the request has ended: a change makes a new [`Service`], which
//! requests find from then on in [`Live`]. What lasts longer than a configuration ([`Lasting`]) goes from one to the next.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::authenticate::{Attempts, User, Users};
use crate::config::{Endpoints, PoolConfig, ServiceConfig};
use crate::credentials::{Credential, Health};
use crate::ledger::{KnownMaker, KnownSession, Ledger};
use crate::metrics::Metrics;
use crate::policy::{Balancer, Members, Pricer, Rewriter};
use crate::sessions::{Owner, Sessions};
use crate::upstream::Upstream;
use crate::values::clock::Timestamp;
use crate::values::limits::Limits;
use crate::values::phase::Phase;

/// What a service is made of.
#[derive(Debug, Clone)]
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
    /// What is counted for operators.
    pub metrics: Arc<Metrics>,
    /// The bounds.
    pub limits: Arc<Limits>,
    /// How far the gateway is from its end.
    pub phases: watch::Receiver<Phase>,
    /// Held for as long as anything holds the service: whoever has the other end knows when all is over.
    pub alive: mpsc::Sender<()>,
}

/// What lasts from one configuration to the next.
#[derive(Debug, Clone)]
struct Lasting {
    sessions: Arc<Sessions>,
    attempts: Arc<Attempts>,
    requests: Arc<AtomicU64>,
    sockets: Arc<Sockets>,
}

/// A service, as one configuration and one generation of each policy have it.
#[derive(Debug)]
pub struct Service {
    pub(crate) tag: String,
    pub(crate) users: Users,
    pub(crate) pools: Vec<Pool>,
    pub(crate) default_pool: usize,
    pub(crate) endpoints: Endpoints,
    pub(crate) parts: Parts,
    lasting: Lasting,
}

/// The service as it is now, and word of each change.
#[derive(Debug, Clone)]
pub struct Live(watch::Receiver<Arc<Service>>);

impl Live {
    /// Follows what `services` is told.
    pub fn of(services: &watch::Sender<Arc<Service>>) -> Self {
        Self(services.subscribe())
    }

    /// What a request that begins now finds.
    pub fn now(&self) -> Arc<Service> {
        Arc::clone(&self.0.borrow())
    }

    /// Waits until it is another than when it was last asked for here.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // Nobody can change it any more.
            std::future::pending::<()>().await;
        }
    }
}

/// Open WebSockets of each user, and of nobody.
#[derive(Debug, Default)]
struct Sockets(Mutex<HashMap<Option<Arc<str>>, u64>>);

/// A WebSocket's place among those of its user.
#[derive(Debug)]
pub(crate) struct Seat {
    sockets: Arc<Sockets>,
    user: Option<Arc<str>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self
            .sockets
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match open.get_mut(&self.user) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(open.remove(&self.user)),
        }
    }
}

/// A pool: its members and who chooses among them.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) tag: Arc<str>,
    /// Places in [`Parts::credentials`].
    pub(crate) members: Vec<usize>,
    pub(crate) balancer: Arc<Balancer>,
    /// It is one credential alone: there is nothing to choose.
    pub(crate) single: bool,
    lasting: Arc<LastingPool>,
}

/// What lasts of a pool for as long as its members are the same.
#[derive(Debug)]
struct LastingPool {
    members: Vec<Arc<str>>,
    /// The members as balancers are told of them, and the sum of their plans' versions then.
    announced: Mutex<(u64, Members)>,
    homeless: AtomicU64,
}

impl Service {
    /// The service of `config`, made of `parts`. What lasts of `before` goes on in it.
    pub fn new(config: &ServiceConfig, parts: Parts, before: Option<&Self>) -> Self {
        let lasting = before.map_or_else(
            || Lasting {
                sessions: Arc::new(Sessions::new(&parts.limits)),
                attempts: Arc::new(Attempts::new(&parts.limits)),
                requests: Arc::default(),
                sockets: Arc::default(),
            },
            |before| before.lasting.clone(),
        );
        let pools = config
            .pools
            .iter()
            .zip(&parts.balancers)
            .map(|(pool, balancer)| {
                let known = before
                    .and_then(|before| before.pools.iter().find(|known| *known.tag == *pool.tag));
                Pool::new(pool, balancer, &parts.credentials, known)
            });
        Self {
            tag: config.tag.clone(),
            users: Users::new(&config.users),
            pools: pools.collect(),
            default_pool: config.default_pool,
            endpoints: config.endpoints.clone(),
            parts,
            lasting,
        }
    }

    /// Its name.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The bounds.
    pub fn limits(&self) -> &Arc<Limits> {
        &self.parts.limits
    }

    /// What it is made of.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Its credentials.
    pub fn credentials(&self) -> &[Arc<Credential>] {
        &self.parts.credentials
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.lasting.sessions
    }

    pub(crate) fn attempts(&self) -> &Attempts {
        &self.lasting.attempts
    }

    pub(crate) fn pool_of(&self, user: Option<&User>) -> usize {
        user.map_or(self.default_pool, |user| user.pool)
    }

    /// Whose sessions a user's are.
    pub(crate) fn owner(&self, user: Option<&Arc<User>>) -> (usize, Owner) {
        let pool = self.pool_of(user.map(Arc::as_ref));
        let owner = Owner {
            pool: Arc::clone(&self.pools[pool].tag),
            user: user.map(|user| Arc::clone(&user.name)),
        };
        (pool, owner)
    }

    /// The place of the credential of that name.
    pub(crate) fn place_of(&self, credential: &str) -> Option<usize> {
        self.parts
            .credentials
            .iter()
            .position(|known| known.tag() == credential)
    }

    /// Takes up what the ledger knows of sessions and responses: homes and makers whose user, pool and credential are
    /// still there, oldest first.
    pub fn restore(&self, sessions: &[KnownSession], makers: &[KnownMaker]) {
        let credential = |tag: &str| {
            self.place_of(tag)
                .map(|place| self.parts.credentials[place].name())
        };
        for known in sessions.iter().filter(|known| known.service == self.tag) {
            let Some(user) = self.users.named(&known.user) else {
                continue;
            };
            let Some(pool) = self.pools.iter().find(|pool| *pool.tag == *known.pool) else {
                continue;
            };
            let Some(credential) = credential(&known.credential) else {
                continue;
            };
            let owner = Owner {
                pool: Arc::clone(&pool.tag),
                user: user.map(|user| Arc::clone(&user.name)),
            };
            self.sessions()
                .restore_home(&owner, &known.session, credential, known.used_at);
        }
        for known in makers.iter().filter(|known| known.service == self.tag) {
            let Some(user) = self.users.named(&known.user) else {
                continue;
            };
            let Some(credential) = credential(&known.credential) else {
                continue;
            };
            let (_, owner) = self.owner(user.as_ref());
            self.sessions()
                .made(&owner, &known.response_id, credential, known.made_at);
        }
    }

    /// How its credentials are, each with the number of sessions that live on it.
    pub fn health(&self, now: Timestamp) -> Vec<(Health, usize)> {
        let health = |known: &Arc<Credential>| {
            (
                known.health(now),
                self.sessions().living_on(known.tag(), now),
            )
        };
        self.parts.credentials.iter().map(health).collect()
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
    pub(crate) fn take_seat(&self, owner: &Owner) -> Option<Seat> {
        let mut open = self
            .lasting
            .sockets
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(owner.user.clone()).or_default();
        if *count >= self.parts.limits.websockets_per_user {
            return None;
        }
        *count += 1;
        Some(Seat {
            sockets: Arc::clone(&self.lasting.sockets),
            user: owner.user.clone(),
        })
    }

    /// Open WebSockets.
    pub fn sockets(&self) -> u64 {
        self.lasting
            .sockets
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .sum()
    }

    /// For how long a request waits for a refresh of tokens: as long as one may take.
    pub(crate) fn refresh_wait(&self) -> Duration {
        self.parts.limits.lock_timeout + self.parts.limits.refresh_timeout
    }

    /// The place of a request in the order of all.
    pub(crate) fn next_request(&self) -> u64 {
        self.lasting.requests.fetch_add(1, Ordering::Relaxed)
    }
}

impl Pool {
    fn new(
        config: &PoolConfig,
        balancer: &Arc<Balancer>,
        credentials: &[Arc<Credential>],
        before: Option<&Self>,
    ) -> Self {
        let names: Vec<Arc<str>> = config
            .members
            .iter()
            .map(|member| Arc::clone(credentials[*member].name()))
            .collect();
        let lasting = match before {
            Some(before) if before.lasting.members == names => Arc::clone(&before.lasting),
            _ => Arc::new(LastingPool {
                announced: Mutex::new((
                    versions(&config.members, credentials),
                    Members::new(named(&config.members, credentials)),
                )),
                members: names,
                homeless: AtomicU64::new(0),
            }),
        };
        Self {
            tag: config.tag.as_str().into(),
            members: config.members.clone(),
            balancer: Arc::clone(balancer),
            single: config.single,
            lasting,
        }
    }

    /// The members as a balancer is told of them, with their plans as they are now.
    pub(crate) fn members_named(&self, credentials: &[Arc<Credential>]) -> Members {
        let versions = versions(&self.members, credentials);
        let mut announced = self
            .lasting
            .announced
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if announced.0 != versions {
            *announced = (
                versions,
                announced.1.changed(named(&self.members, credentials)),
            );
        }
        announced.1.clone()
    }

    /// The place of a request in the order of those without a home; one that has one takes no place.
    pub(crate) fn sequence(&self, has_home: bool) -> u64 {
        let homeless = &self.lasting.homeless;
        if has_home {
            homeless.load(Ordering::Relaxed)
        } else {
            homeless.fetch_add(1, Ordering::Relaxed)
        }
    }
}

fn versions(members: &[usize], credentials: &[Arc<Credential>]) -> u64 {
    members
        .iter()
        .map(|member| credentials[*member].plan_version())
        .sum()
}

fn named(members: &[usize], credentials: &[Arc<Credential>]) -> Vec<(String, String)> {
    members
        .iter()
        .map(|member| {
            (
                credentials[*member].tag().to_owned(),
                credentials[*member].plan(),
            )
        })
        .collect()
}
