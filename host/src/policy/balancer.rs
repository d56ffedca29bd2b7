//! Balancers: a pool's table goes in, a member's index comes out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::bindings::balancer::exports::tollgate::policy::balancer::Member;
use super::bindings::balancer::{BalancerPolicy, BalancerPolicyPre};
use super::engine::Engine;
use super::fault::{Fault, FaultKind};
use super::instance::{Seat, world};
use super::load::{LoadError, load};
use super::{Facts, Stamp};
use crate::config::{PolicyConfig, PolicyKind};
use crate::values::candidate::Candidate;

world!(BalancerPolicy, BalancerPolicyPre<super::instance::Guest>, PolicyKind::Balancer);

/// The columns of the table, in the order of [`row`]. The contract describes them.
const COLUMNS: [&str; 13] = [
    "usable",
    "five-hour-used",
    "five-hour-cap",
    "five-hour-reset",
    "weekly-used",
    "weekly-cap",
    "weekly-reset",
    "limited",
    "in-flight",
    "recent-failures",
    "recent-latency",
    "continues",
    "own-weight",
];

fn row(candidate: &Candidate) -> [f64; COLUMNS.len()] {
    let unknown = -1.0;
    [
        f64::from(u8::from(candidate.usable)),
        candidate.five_hour_used,
        candidate.five_hour_cap,
        candidate.five_hour_reset.unwrap_or(unknown),
        candidate.weekly_used,
        candidate.weekly_cap,
        candidate.weekly_reset.unwrap_or(unknown),
        candidate.limited,
        f64::from(candidate.in_flight),
        f64::from(candidate.recent_failures),
        candidate.recent_latency.unwrap_or(unknown),
        f64::from(u8::from(candidate.continues)),
        candidate.own_weight.unwrap_or(unknown),
    ]
}

/// A pool's members as a balancer is told of them. Telling costs more than picking, so an instance remembers whose
/// members it knows.
#[derive(Debug, Clone)]
pub struct Members {
    /// Which pool, unique in the process.
    pool: u64,
    /// Counts the changes of its members.
    version: u64,
    /// Tag and plan of each, in order.
    named: Arc<[(String, String)]>,
}

impl Members {
    /// A new pool with these members: tag and plan of each.
    pub fn new(named: Vec<(String, String)>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { pool: NEXT.fetch_add(1, Ordering::Relaxed), version: 0, named: named.into() }
    }

    /// The same pool with other members or plans.
    pub fn changed(&self, named: Vec<(String, String)>) -> Self {
        Self { pool: self.pool, version: self.version + 1, named: named.into() }
    }

    /// Tag and plan of each member.
    pub fn named(&self) -> &[(String, String)] {
        &self.named
    }
}

/// What a balancer chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// A usable member.
    Member {
        /// Its index.
        index: usize,
        /// Whether the session lives there from now on.
        move_home: bool,
    },
    /// None of them.
    Nobody {
        /// Why not.
        reason: String,
    },
}

/// A loaded balancer.
pub struct Balancer {
    seat: Seat<BalancerPolicy>,
    stamp: Stamp,
}

impl std::fmt::Debug for Balancer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Balancer").field("tag", &self.seat.tag).finish_non_exhaustive()
    }
}

impl Balancer {
    /// # Errors
    /// The component or its configuration cannot be used.
    pub fn load(engine: &Engine, policy: &PolicyConfig) -> Result<Self, LoadError> {
        let loaded = load::<BalancerPolicy>(engine, policy)?;
        Ok(Self { seat: loaded.seat, stamp: loaded.stamp })
    }

    /// Which component it is.
    pub fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// Chooses among `candidates`, the members `members` in the same order.
    ///
    /// # Errors
    /// The policy failed, or chose what is not there or not usable.
    pub fn pick(
        &self,
        facts: &Facts<'_>,
        members: &Members,
        candidates: &[Candidate],
        home: Option<usize>,
    ) -> Result<Choice, Fault> {
        let request = self.seat.request(facts);
        let mut table = Vec::with_capacity(candidates.len() * COLUMNS.len());
        for candidate in candidates {
            table.extend_from_slice(&row(candidate));
        }
        let home = home.map_or(-1, |home| home as i32);
        let decision = self.seat.call("pick", facts, |store, world| {
            let balancer = world.tollgate_policy_balancer();
            if store.data().announced != Some((members.pool, members.version)) {
                balancer.call_members(&mut *store, &columns(), &named(members))?;
                store.data_mut().announced = Some((members.pool, members.version));
            }
            balancer.call_pick(&mut *store, &request, &table, home)
        })?;
        let decision = decision.map_err(|reason| self.seat.fault("pick", FaultKind::Failed, cut(reason)))?;
        if decision.member == -1 {
            return Ok(Choice::Nobody { reason: cut(decision.reason) });
        }
        match usize::try_from(decision.member).ok().filter(|index| *index < candidates.len()) {
            Some(index) if candidates[index].usable => Ok(Choice::Member { index, move_home: decision.move_home }),
            Some(index) => Err(self.bad_output(format!("member {index} is not usable"))),
            None => {
                let count = candidates.len();
                Err(self.bad_output(format!("member {} of a pool of {count}", decision.member)))
            }
        }
    }

    /// The weight of each member's capacity.
    ///
    /// # Errors
    /// The policy failed, or its weights are no positive numbers, one a member.
    pub fn weights(&self, facts: &Facts<'_>, members: &Members) -> Result<Vec<f64>, Fault> {
        let weights = self.seat.call("members", facts, |store, world| {
            let weights = world.tollgate_policy_balancer().call_members(&mut *store, &columns(), &named(members))?;
            store.data_mut().announced = Some((members.pool, members.version));
            Ok(weights)
        })?;
        let sound =
            weights.len() == members.named.len() && weights.iter().all(|weight| weight.is_finite() && *weight > 0.0);
        if sound {
            return Ok(weights);
        }
        let detail = format!("bad output: expected {} weights above 0", members.named.len());
        Err(self.seat.fault("members", FaultKind::BadOutput, detail))
    }

    fn bad_output(&self, what: String) -> Fault {
        self.seat.fault("pick", FaultKind::BadOutput, format!("bad output: {what}"))
    }
}

fn columns() -> Vec<String> {
    COLUMNS.map(str::to_owned).to_vec()
}

fn named(members: &Members) -> Vec<Member> {
    members.named.iter().map(|(tag, plan)| Member { tag: tag.clone(), plan: plan.clone() }).collect()
}

/// A guest's text, cut to what a log line or a column may hold.
pub(super) fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(crate::values::limits::FIELD_BYTES));
    text
}
