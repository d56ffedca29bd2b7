//! Select: a balancer chooses the credential. Where it fails the shipped one does, then the order of the pool.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::authenticate::User;
use crate::credentials::{Credential, Identity, IdentityKind};
use crate::pipeline::refusal::Refusal;
use crate::pipeline::service::{Pool, Service};
use crate::pipeline::settle::OpenRow;
use crate::policy::{Choice, Facts};
use crate::values::candidate::Candidate;
use crate::values::clock::Timestamp;

/// For how long a request waits for a credential's file to be read.
const FILE_TIMEOUT: Duration = Duration::from_secs(2);

/// A credential that was chosen, and what upstream is shown of it.
pub(crate) struct Selected {
    /// Its place in the service.
    pub(crate) credential: usize,
    pub(crate) identity: Arc<Identity>,
    /// The session lives there once it has answered.
    pub(crate) move_home: bool,
}

/// Chooses among the members that were not tried. Those that are found to be of no use, because their tokens cannot be
/// refreshed within `refresh_limit`, count as tried from here on, as does the one that is chosen.
///
/// # Errors
/// Nobody is usable.
pub(crate) async fn select(
    service: &Service,
    open: &OpenRow,
    tried: &mut Vec<usize>,
    refresh_limit: Duration,
) -> Result<Selected, Refusal> {
    let pool = open.pool();
    read_again(service, pool, Timestamp::now()).await;
    let mut unready = false;
    loop {
        let now = Timestamp::now();
        let candidates = candidates(service, open, tried, now);
        let home = home(service, open, now);
        let chosen = choose(service, pool, open, &candidates, home, now).await;
        let Some((member, move_home)) = chosen else {
            return Err(nobody(service, open, unready, now));
        };
        let credential = pool.members[member];
        tried.push(credential);
        // At once, but where its tokens have expired: then a refresh is waited for.
        if let Some(identity) = service.parts.credentials[credential]
            .present(refresh_limit)
            .await
        {
            return Ok(Selected {
                credential,
                identity,
                move_home,
            });
        }
        unready = true;
    }
}

/// The credential that the request's session would be given now, where it has one to live on and there is a choice.
pub(crate) async fn would_choose(
    service: &Service,
    open: &OpenRow,
    now: Timestamp,
) -> Option<usize> {
    let pool = open.pool();
    let home = home(service, open, now).filter(|_| !pool.single)?;
    let candidates = candidates(service, open, &[], now);
    let chosen = choose(service, pool, open, &candidates, Some(home), now).await;
    chosen.map(|(member, _)| pool.members[member])
}

/// Whether there is a usable member that was not tried.
pub(crate) fn has_other(
    service: &Service,
    open: &OpenRow,
    tried: &[usize],
    now: Timestamp,
) -> bool {
    candidates(service, open, tried, now)
        .iter()
        .any(|candidate| candidate.usable)
}

/// Reads the files of members that are unavailable, where that is due, all at once. A file may have appeared since.
async fn read_again(service: &Service, pool: &Pool, now: Timestamp) {
    let mut readings = JoinSet::new();
    for member in &pool.members {
        let credential = &service.parts.credentials[*member];
        if credential.claim_reading(now) {
            let credential = Arc::clone(credential);
            readings.spawn_blocking(move || read(&credential, now));
        }
    }
    if !readings.is_empty() {
        // A file may lie on a disk that hangs: no worker waits for it, and no request for long.
        let _ = timeout(FILE_TIMEOUT, async {
            while readings.join_next().await.is_some() {}
        })
        .await;
        readings.detach_all();
    }
}

fn read(credential: &Credential, now: Timestamp) {
    let before = credential.unavailable();
    match credential.read(now) {
        Ok(()) if before.is_some() => {
            tracing::info!(credential = credential.tag(), "credential available")
        }
        Err(reason) if before.as_ref() != Some(&reason) => {
            tracing::warn!(credential = credential.tag(), %reason, "credential unavailable");
        }
        _ => {}
    }
}

fn candidates(
    service: &Service,
    open: &OpenRow,
    tried: &[usize],
    now: Timestamp,
) -> Vec<Candidate> {
    let pool = open.pool();
    let previous = open.asked().previous_response_id.as_deref();
    let maker = previous.and_then(|id| service.sessions().maker(open.owner(), id, now));
    let candidate = |member: &usize| {
        let credential = &service.parts.credentials[*member];
        let excluded = tried.contains(member)
            || !belongs(pool, credential)
            || !is_allowed(open.user(), credential)
            || steps_back(pool, credential, now);
        Candidate {
            continues: maker.as_ref() == Some(credential.name()),
            ..credential.candidate(now, excluded)
        }
    };
    pool.members.iter().map(candidate).collect()
}

/// An API key is no member of a pool, even where its file becomes one later.
fn belongs(pool: &Pool, credential: &Credential) -> bool {
    pool.single
        || credential
            .identity()
            .is_none_or(|identity| identity.kind != IdentityKind::ApiKey)
}

/// Other gateways serve only users who may use them.
pub(crate) fn is_allowed(user: Option<&User>, credential: &Credential) -> bool {
    credential.gateway().is_none() || user.is_none_or(|user| user.allow_external_usage)
}

/// A member of a pool whose token upstream refused of late. A credential alone is tried all the same.
fn steps_back(pool: &Pool, credential: &Credential, now: Timestamp) -> bool {
    !pool.single && credential.is_suspect(now)
}

/// The member that the request's session lives on.
fn home(service: &Service, open: &OpenRow, now: Timestamp) -> Option<usize> {
    let credential = service
        .sessions()
        .home(open.owner(), open.session()?, now)?;
    open.pool()
        .members
        .iter()
        .position(|member| *service.parts.credentials[*member].name() == credential)
}

async fn choose(
    service: &Service,
    pool: &Pool,
    open: &OpenRow,
    candidates: &[Candidate],
    home: Option<usize>,
    now: Timestamp,
) -> Option<(usize, bool)> {
    if pool.single {
        return candidates[0].usable.then_some((0, false));
    }
    let members = pool.members_named(&service.parts.credentials);
    let facts = Facts {
        sequence: pool.sequence(home.is_some()),
        ..open.facts(now, "")
    };
    let by = [&pool.balancer, &service.parts.fallback];
    for balancer in by {
        match balancer.pick(&facts, &members, candidates, home).await {
            Ok(Choice::Member { index, move_home }) => return Some((index, move_home)),
            Ok(Choice::Nobody { reason }) => {
                tracing::debug!(pool = &*pool.tag, reason, "the balancer chose nobody");
                return None;
            }
            Err(fault) if fault.is_news() => {
                tracing::error!(pool = &*pool.tag, %fault, "the next balancer chooses");
            }
            Err(fault) => tracing::debug!(pool = &*pool.tag, %fault, "the next balancer chooses"),
        }
    }
    candidates
        .iter()
        .position(|candidate| candidate.usable)
        .map(|first| (first, home.is_none()))
}

/// Why nobody is usable: rate-limited where anybody is loaded, unavailable where nobody is, or where a refresh was waited for
/// in vain (`unready`) and nobody else would serve.
fn nobody(service: &Service, open: &OpenRow, unready: bool, now: Timestamp) -> Refusal {
    let pool = open.pool();
    let credentials = pool
        .members
        .iter()
        .map(|member| &service.parts.credentials[*member]);
    let counts = |credential: &&Arc<Credential>| {
        credential.can_serve(now)
            && (!unready || credential.is_used_up(now))
            && belongs(pool, credential)
            && is_allowed(open.user(), credential)
            && !steps_back(pool, credential, now)
    };
    let mut loaded = credentials.filter(counts).peekable();
    if loaded.peek().is_none() {
        return Refusal::unavailable();
    }
    Refusal::exhausted(
        now,
        loaded
            .filter_map(|credential| credential.usable_again_at(now))
            .min(),
    )
}
