//! Balancers: a pool's table goes in, a member's index comes out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use wasmtime::Store;

use super::bindings::balancer::exports::tollgate::policy::balancer::Member;
use super::bindings::balancer::{BalancerPolicy, BalancerPolicyPre};
use super::engine::Engine;
use super::fault::Fault;
use super::instance::{Guest, world};
use super::load::{LoadError, Loading, Source, load, try_out};
use super::repeat::{Asked, OwnFacts, Said};
use super::seat::{Bad, Seat};
use super::threads::Full;
use super::{Facts, generation};
use crate::config::{PolicyConfig, PolicyKind};
use crate::values::candidate::BalancerCandidate;

world!(
    BalancerPolicy,
    BalancerPolicyPre<super::instance::Guest>,
    PolicyKind::Balancer
);

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

fn row(candidate: &BalancerCandidate) -> [f64; COLUMNS.len()] {
    let unknown = -1.0;
    [
        f64::from(u8::from(candidate.usable)),
        candidate.five_hour_used,
        candidate.five_hour_cap,
        candidate.five_hour_reset_minutes.unwrap_or(unknown),
        candidate.weekly_used,
        candidate.weekly_cap,
        candidate.weekly_reset_minutes.unwrap_or(unknown),
        candidate.limited_minutes,
        f64::from(candidate.in_flight),
        f64::from(candidate.recent_failures),
        candidate.recent_latency_ms.unwrap_or(unknown),
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
        Self {
            pool: NEXT.fetch_add(1, Ordering::Relaxed),
            version: 0,
            named: named.into(),
        }
    }

    /// The same pool with other members or plans.
    pub fn changed(&self, named: Vec<(String, String)>) -> Self {
        Self {
            pool: self.pool,
            version: self.version + 1,
            named: named.into(),
        }
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

/// A balancer: one generation of a slot.
pub struct Balancer {
    seat: Seat<BalancerPolicy>,
}

impl std::fmt::Debug for Balancer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Balancer")
            .field("tag", &self.seat.slot().tag())
            .finish_non_exhaustive()
    }
}

generation!(Balancer);

impl Balancer {
    /// # Errors
    /// The component or its configuration cannot be used, or it failed when it was tried.
    pub fn load(
        engine: &Engine,
        policy: &PolicyConfig,
        source: &Source,
        loading: &Loading<'_>,
    ) -> Result<Self, LoadError> {
        let seat = load::<BalancerPolicy>(engine, policy, source, loading)?;
        let members = Members::new(
            ["plus", "pro"]
                .map(|plan| (plan.to_owned(), plan.to_owned()))
                .into(),
        );
        let room = BalancerCandidate {
            usable: true,
            five_hour_cap: 99.0,
            weekly_cap: 99.0,
            ..BalancerCandidate::default()
        };
        let table = table(&[room, room]);
        try_out(&seat, policy, |seat| {
            pick(seat, &Facts::trial(), &Told::of(&members), &table, -1).map(drop)
        })?;
        Ok(Self { seat })
    }

    /// Chooses among `candidates`, the members `members` in the same order. One that is slow does so on a thread of its
    /// own.
    ///
    /// # Errors
    /// The policy failed, or chose what is not there or not usable.
    pub async fn pick(
        self: &Arc<Self>,
        facts: &Facts<'_>,
        members: &Members,
        candidates: &[BalancerCandidate],
        home: Option<usize>,
    ) -> Result<Choice, Fault> {
        if !self.seat.is_slow() {
            return self.pick_here(facts, members, candidates, home);
        }
        let (this, facts, members, candidates) = (
            Arc::clone(self),
            OwnFacts::of(facts),
            members.clone(),
            candidates.to_vec(),
        );
        let picking = move || this.pick_here(&facts.facts(), &members, &candidates, home);
        self.seat
            .slot()
            .threads()
            .run(picking)
            .await
            .unwrap_or_else(|Full| Err(self.busy("pick")))
    }

    /// The same, on this thread, however slow it is.
    ///
    /// # Errors
    /// As [`Balancer::pick`].
    pub fn pick_here(
        &self,
        facts: &Facts<'_>,
        members: &Members,
        candidates: &[BalancerCandidate],
        home: Option<usize>,
    ) -> Result<Choice, Fault> {
        let begun = Instant::now();
        let table = table(candidates);
        let home = home.map_or(-1, |home| home as i32);
        let chosen = pick(&self.seat, facts, &Told::of(members), &table, home);
        self.seat.slot().note(|| {
            let asked = Asked::Pick {
                columns: columns(),
                members: members.named.to_vec(),
                table,
                home,
            };
            self.seat.kept(facts, begun, asked, said(&chosen))
        });
        chosen
    }

    /// What it says to a call that another one had.
    pub(super) fn repeat(
        &self,
        facts: &Facts<'_>,
        columns: &[String],
        members: &[(String, String)],
        table: &[f64],
        home: i32,
    ) -> Said {
        let members = Members::new(members.to_vec());
        said(&pick(
            &self.seat,
            facts,
            &Told {
                columns: columns.to_vec(),
                members: &members,
            },
            table,
            home,
        ))
    }

    /// The weight of each member's capacity.
    ///
    /// # Errors
    /// The policy failed, or its weights are no positive numbers, one a member.
    pub async fn weights(
        self: &Arc<Self>,
        facts: &Facts<'_>,
        members: &Members,
    ) -> Result<Vec<f64>, Fault> {
        if !self.seat.is_slow() {
            return self.weights_here(facts, members);
        }
        let (this, facts, members) = (Arc::clone(self), OwnFacts::of(facts), members.clone());
        let weighing = move || this.weights_here(&facts.facts(), &members);
        self.seat
            .slot()
            .threads()
            .run(weighing)
            .await
            .unwrap_or_else(|Full| Err(self.busy("members")))
    }

    fn weights_here(&self, facts: &Facts<'_>, members: &Members) -> Result<Vec<f64>, Fault> {
        let ask = |store: &mut Store<Guest>, world: &BalancerPolicy| {
            let weights = world.tollgate_policy_balancer().call_members(
                &mut *store,
                &columns(),
                &named(members),
            )?;
            store.data_mut().announced = Some((members.pool, members.version));
            Ok(weights)
        };
        let count = members.named.len();
        self.seat.call("members", facts, ask, |weights: Vec<f64>| {
            let sound = weights.len() == count
                && weights
                    .iter()
                    .all(|weight| weight.is_finite() && *weight > 0.0);
            if sound {
                Ok(weights)
            } else {
                Err(Bad::output(format!("expected {count} weights above 0")))
            }
        })
    }
}

/// What an instance is told before it picks.
struct Told<'a> {
    columns: Vec<String>,
    members: &'a Members,
}

impl<'a> Told<'a> {
    fn of(members: &'a Members) -> Self {
        // Empty: those of this release. They are put together only where an instance has not been told them yet.
        Self {
            columns: Vec::new(),
            members,
        }
    }
}

fn pick(
    seat: &Seat<BalancerPolicy>,
    facts: &Facts<'_>,
    told: &Told<'_>,
    table: &[f64],
    home: i32,
) -> Result<Choice, Fault> {
    let (request, members) = (seat.request(facts), told.members);
    let ask = |store: &mut Store<Guest>, world: &BalancerPolicy| {
        let balancer = world.tollgate_policy_balancer();
        if store.data().announced != Some((members.pool, members.version)) {
            let columns = if told.columns.is_empty() {
                columns()
            } else {
                told.columns.clone()
            };
            balancer.call_members(&mut *store, &columns, &named(members))?;
            store.data_mut().announced = Some((members.pool, members.version));
        }
        balancer.call_pick(store, &request, table, home)
    };
    seat.call("pick", facts, ask, |decision| {
        let decision = decision.map_err(|reason| Bad::words(cut(reason)))?;
        let count = members.named.len();
        if decision.member == -1 {
            return Ok(Choice::Nobody {
                reason: cut(decision.reason),
            });
        }
        let Some(index) = usize::try_from(decision.member)
            .ok()
            .filter(|index| *index < count)
        else {
            return Err(Bad::output(format!(
                "member {} of a pool of {count}",
                decision.member
            )));
        };
        let (width, usable) = match told.columns.as_slice() {
            [] => (COLUMNS.len(), Some(0)),
            columns => (
                columns.len(),
                columns.iter().position(|name| name == COLUMNS[0]),
            ),
        };
        if usable.and_then(|usable| table.get(index * width + usable)) == Some(&0.0) {
            return Err(Bad::output(format!("member {index} is not usable")));
        }
        Ok(Choice::Member {
            index,
            move_home: decision.move_home,
        })
    })
}

fn said(chosen: &Result<Choice, Fault>) -> Said {
    match chosen {
        Ok(Choice::Member { index, move_home }) => Said::Member {
            index: *index,
            move_home: *move_home,
        },
        Ok(Choice::Nobody { reason }) => Said::Nobody {
            reason: reason.clone(),
        },
        Err(fault) => Said::failed(fault),
    }
}

fn table(candidates: &[BalancerCandidate]) -> Vec<f64> {
    let mut table = Vec::with_capacity(candidates.len() * COLUMNS.len());
    for candidate in candidates {
        table.extend_from_slice(&row(candidate));
    }
    table
}

fn columns() -> Vec<String> {
    COLUMNS.map(str::to_owned).to_vec()
}

fn named(members: &Members) -> Vec<Member> {
    members
        .named
        .iter()
        .map(|(tag, plan)| Member {
            tag: tag.clone(),
            plan: plan.clone(),
        })
        .collect()
}

/// A guest's text, cut to what a log line or a column may hold.
pub(super) fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(crate::values::limits::FIELD_BYTES));
    text
}
