//! Select: a balancer chooses the credential of an attempt.
//!
//! Owns which members of the pool may be chosen, and what happens when a balancer fails: the
//! shipped one chooses, then the order of the pool. Invariant: a credential is chosen at most once
//! for a request.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::authenticate::User;
use crate::credentials::{Credential, CredentialKind, CredentialLoadError, UpstreamIdentity};
use crate::pipeline::affinity;
use crate::pipeline::exchange::Exchange;
use crate::pipeline::refusal::Refusal;
use crate::pipeline::service::{CredentialPool, PoolMember};
use crate::policy::{BalancerChoice, PolicyFault, RequestFacts};
use crate::values::clock::Timestamp;
use crate::values::credential::candidate::BalancerCandidate;

/// How long a request waits for the file of an unavailable credential to be read.
const FILE_TIMEOUT: Duration = Duration::from_secs(2);

/// A credential that was chosen, and what is presented to upstream.
pub(crate) struct Selected {
    pub(crate) member: Arc<PoolMember>,
    pub(crate) identity: Arc<UpstreamIdentity>,
    /// The credential becomes the home of the request's session once it has answered.
    pub(crate) moves_home: bool,
}

impl Selected {
    pub(crate) fn credential(&self) -> &Arc<Credential> {
        self.member.credential()
    }
}

/// The credentials that were chosen for a request already.
#[derive(Default)]
pub(crate) struct TriedCredentials(Vec<Arc<Credential>>);

impl TriedCredentials {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn contains(&self, credential: &Arc<Credential>) -> bool {
        self.0.iter().any(|tried| Arc::ptr_eq(tried, credential))
    }

    fn insert(&mut self, credential: &Arc<Credential>) {
        self.0.push(Arc::clone(credential));
    }
}

/// Chooses among the members that were not tried. The chosen one counts as tried from here on, and
/// so do those whose tokens could not be refreshed within `refresh_limit`.
///
/// # Errors
/// No member is usable.
pub(crate) async fn select(
    exchange: &Exchange,
    tried: &mut TriedCredentials,
    refresh_limit: Duration,
) -> Result<Selected, Refusal> {
    let pool = exchange.pool();
    read_unavailable(pool, Timestamp::now()).await;
    let mut refresh = RefreshResult::Fine;
    let mut has_waited = false;
    loop {
        let now = Timestamp::now();
        let candidates = candidates(exchange, tried, now);
        let home = affinity::home(exchange, now);
        let Some(choice) = choose(exchange, &candidates, home, now).await else {
            if !has_waited && until_reconnected(exchange, tried).await {
                has_waited = true;
                continue;
            }
            return Err(none_usable(exchange, refresh, Timestamp::now()));
        };
        let member = &pool.members()[choice.index];
        tried.insert(member.credential());
        // Returns at once unless the tokens have expired: then the refresh is awaited.
        if let Some(identity) = member
            .credential()
            .presentable_identity(refresh_limit)
            .await
        {
            return Ok(Selected {
                member: Arc::clone(member),
                identity,
                moves_home: choice.moves_home,
            });
        }
        refresh = RefreshResult::Failed;
    }
}

/// Returns the credential that the session of the request would be given now, if it has a home and
/// there is a choice. Returns `None` while the home is temporarily unusable and stays the home.
pub(crate) async fn choice_for_session(
    exchange: &Exchange,
    now: Timestamp,
) -> Option<Arc<Credential>> {
    let pool = exchange.pool();
    if pool.is_single() {
        return None;
    }
    let home = affinity::home(exchange, now)?;
    let candidates = candidates(exchange, &TriedCredentials::default(), now);
    let choice = choose(exchange, &candidates, Some(home), now).await?;
    // While the home is out for a short time, one credential in its place is as good as another: a
    // rotation would choose a different one each time.
    let is_temporary = !candidates[home].usable && !choice.moves_home;
    (!is_temporary).then(|| Arc::clone(pool.members()[choice.index].credential()))
}

/// Returns whether a member that was not tried is usable now.
pub(crate) fn has_other(exchange: &Exchange, tried: &TriedCredentials, now: Timestamp) -> bool {
    candidates(exchange, tried, now)
        .iter()
        .any(|candidate| candidate.usable)
}

/// Returns what the client of a request gets that cannot be sent again: whether to try again
/// depends on what is usable now. Asks no policy and waits for nothing.
pub(crate) fn refuse_unsendable(exchange: &Exchange, tried: &TriedCredentials) -> Refusal {
    let now = Timestamp::now();
    if has_other(exchange, tried, now) {
        Refusal::cut_off()
    } else {
        none_usable(exchange, RefreshResult::Fine, now)
    }
}

/// Reads the files of unavailable members that are due to be read, all at once: a file may have
/// appeared since.
async fn read_unavailable(pool: &CredentialPool, now: Timestamp) {
    let mut readings = JoinSet::new();
    for credential in pool.credentials() {
        if credential.claim_reload(now) {
            let credential = Arc::clone(credential);
            readings.spawn_blocking(move || read(&credential, now));
        }
    }
    if !readings.is_empty() {
        // The disk may hang: no worker waits for it, and no request for long.
        let _ = timeout(FILE_TIMEOUT, async {
            while readings.join_next().await.is_some() {}
        })
        .await;
        readings.detach_all();
    }
}

fn read(credential: &Credential, now: Timestamp) {
    let before = credential.load_error();
    match credential.load(now) {
        Ok(()) if before.is_some() => {
            tracing::info!(credential = credential.tag(), "credential available");
        }
        Ok(()) => {}
        Err(reason) if before.as_ref() != Some(&reason) => {
            tracing::warn!(credential = credential.tag(), %reason, "credential unavailable");
        }
        Err(_) => {}
    }
}

/// Waits for the first of the members whose reverse connection ended shortly before. Returns
/// whether it is there again.
async fn until_reconnected(exchange: &Exchange, tried: &TriedCredentials) -> bool {
    let mut waiting = JoinSet::new();
    for credential in exchange.pool().credentials() {
        let may_be_chosen = !tried.contains(credential) && is_allowed(exchange.user(), credential);
        if may_be_chosen && credential.is_disconnected() {
            let credential = Arc::clone(credential);
            waiting.spawn(async move { credential.until_reconnected().await });
        }
    }
    while let Some(connected) = waiting.join_next().await {
        if connected.unwrap_or(false) {
            return true;
        }
    }
    false
}

fn candidates(
    exchange: &Exchange,
    tried: &TriedCredentials,
    now: Timestamp,
) -> Vec<BalancerCandidate> {
    let pool = exchange.pool();
    let issuer = affinity::issuer_of_previous(exchange, now);
    let candidate = |credential: &Arc<Credential>| {
        let is_excluded = tried.contains(credential)
            || !may_be_member(pool, credential)
            || !is_allowed(exchange.user(), credential)
            || is_stepping_back(pool, credential, now);
        let mut candidate = credential.candidate(now);
        candidate.usable &= !is_excluded;
        candidate.continues = issuer.as_ref() == Some(credential.shared_tag());
        candidate
    };
    pool.credentials().map(candidate).collect()
}

/// Returns whether a credential may be chosen from its pool: an API key is no member of a pool,
/// even if its file becomes one later.
fn may_be_member(pool: &CredentialPool, credential: &Credential) -> bool {
    pool.is_single()
        || credential
            .identity()
            .is_none_or(|identity| identity.kind() != CredentialKind::ApiKey)
}

/// Returns whether a user may use that credential: other gateways are only for users with
/// `allow_external_usage`.
pub(crate) fn is_allowed(user: Option<&User>, credential: &Credential) -> bool {
    !credential.is_external() || user.is_none_or(|user| user.allow_external_usage)
}

/// Returns whether a member of a pool steps back because upstream refused its token recently. A
/// credential that is used alone is tried all the same.
fn is_stepping_back(pool: &CredentialPool, credential: &Credential, now: Timestamp) -> bool {
    !pool.is_single() && credential.is_token_rejected(now)
}

/// A choice among the members of a pool.
struct MemberChoice {
    index: usize,
    moves_home: bool,
}

async fn choose(
    exchange: &Exchange,
    candidates: &[BalancerCandidate],
    home: Option<usize>,
    now: Timestamp,
) -> Option<MemberChoice> {
    let pool = exchange.pool();
    if pool.is_single() {
        return candidates[0].usable.then_some(MemberChoice {
            index: 0,
            moves_home: false,
        });
    }
    let members = pool.balancer_members();
    let facts = RequestFacts {
        sequence: pool.sequence(home),
        ..exchange.facts(now, "")
    };
    for balancer in [pool.balancer(), &exchange.service().parts().stand_in] {
        match balancer.pick(&facts, &members, candidates, home).await {
            Ok(BalancerChoice::Member { index, move_home }) => {
                return Some(MemberChoice {
                    index,
                    moves_home: move_home,
                });
            }
            Ok(BalancerChoice::NoMember { reason }) => {
                tracing::debug!(pool = &**pool.tag(), reason, "balancer chose no credential");
                return None;
            }
            Err(fault) => log_balancer_fault(pool, &fault),
        }
    }
    let index = candidates.iter().position(|candidate| candidate.usable)?;
    Some(MemberChoice {
        index,
        moves_home: home.is_none(),
    })
}

fn log_balancer_fault(pool: &CredentialPool, fault: &PolicyFault) {
    let pool = &**pool.tag();
    if fault.should_be_logged() {
        tracing::error!(pool, %fault, "balancer failed, falling back to the next one");
    } else {
        tracing::debug!(pool, %fault, "balancer failed, falling back to the next one");
    }
}

/// Whether the tokens of a chosen credential had expired and could not be refreshed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RefreshResult {
    Fine,
    Failed,
}

/// Returns the refusal when no member of `pool` is loaded.
fn unavailable(pool: &CredentialPool) -> Refusal {
    let mut members = pool.credentials();
    match (members.next(), members.next()) {
        (Some(only), None) if only.load_error() == Some(CredentialLoadError::NotConnected) => {
            Refusal::not_connected(only.tag())
        }
        _ => Refusal::unavailable(),
    }
}

/// Returns the refusal when no member is usable: rate-limited if a member is loaded, and
/// unavailable if none is. After a failed refresh only the members that are used up count as
/// loaded: any other one would have been chosen.
fn none_usable(exchange: &Exchange, refresh: RefreshResult, now: Timestamp) -> Refusal {
    let pool = exchange.pool();
    let is_loaded = |credential: &&Arc<Credential>| {
        credential.is_presentable(now)
            && (refresh == RefreshResult::Fine || credential.is_used_up(now))
            && may_be_member(pool, credential)
            && is_allowed(exchange.user(), credential)
            && !is_stepping_back(pool, credential, now)
    };
    let mut loaded = pool.credentials().filter(is_loaded).peekable();
    if loaded.peek().is_none() {
        return unavailable(pool);
    }
    let usable_again_at = loaded
        .filter_map(|credential| credential.usable_again_at(now))
        .min();
    Refusal::exhausted(now, usable_again_at)
}
