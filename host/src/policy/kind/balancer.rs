//! Balancers: a pool's table goes in, the index of a member comes out.
//!
//! Invariant: a chosen member exists and is usable.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use wasmtime::Store;

use super::guest_text::truncated;
use super::pool_table::{column_names, is_usable, table};
use crate::config::{PolicyConfig, PolicyKind};
use crate::policy::call::recorded::{CallArguments, CallOutcome, OwnedRequestFacts};
use crate::policy::contract::bindings::balancer::exports::tollgate::policy::balancer::{
    Decision, Member,
};
use crate::policy::contract::bindings::balancer::{BalancerPolicy, BalancerPolicyPre};
use crate::policy::contract::facts::RequestFacts;
use crate::policy::engine::PolicyEngine;
use crate::policy::engine::fault::{CallFailure, GuestFunction, PolicyFault};
use crate::policy::engine::guest::{GuestState, MembersVersion};
use crate::policy::engine::world::impl_policy_world;
use crate::policy::generation::component::{ComponentGeneration, GenerationControl};
use crate::policy::generation::load::{LoadOptions, load, self_test};
use crate::policy::generation::load_error::PolicyLoadError;
use crate::policy::generation::shared::SharedPolicyState;
use crate::policy::generation::source::ComponentBytes;
use crate::values::credential::candidate::BalancerCandidate;

impl_policy_world!(
    BalancerPolicy,
    BalancerPolicyPre<GuestState>,
    PolicyKind::Balancer
);

/// The home of a session that has none, and the decision for no member.
const NO_MEMBER: i32 = -1;

/// A pool's members as a balancer gets them. Passing them costs more than a pick, so each instance
/// remembers which members it was given last.
#[derive(Debug, Clone)]
pub struct PoolMembers {
    version: MembersVersion,
    /// Tag and plan of each member, in order.
    tags_and_plans: Arc<[(String, String)]>,
}

impl PoolMembers {
    /// Creates a new pool with these members: tag and plan of each.
    pub fn new(tags_and_plans: Vec<(String, String)>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let pool = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            version: MembersVersion { pool, version: 0 },
            tags_and_plans: tags_and_plans.into(),
        }
    }

    /// Returns the same pool with other members or plans.
    pub(crate) fn changed(&self, tags_and_plans: Vec<(String, String)>) -> Self {
        let MembersVersion { pool, version } = self.version;
        Self {
            version: MembersVersion {
                pool,
                version: version + 1,
            },
            tags_and_plans: tags_and_plans.into(),
        }
    }

    /// Returns tag and plan of each member.
    pub(crate) fn tags_and_plans(&self) -> &[(String, String)] {
        &self.tags_and_plans
    }

    fn len(&self) -> usize {
        self.tags_and_plans.len()
    }

    /// Returns the members in the form of the contract.
    fn to_contract(&self) -> Vec<Member> {
        self.tags_and_plans
            .iter()
            .map(|(tag, plan)| Member {
                tag: tag.clone(),
                plan: plan.clone(),
            })
            .collect()
    }
}

/// What a balancer chose for one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BalancerChoice {
    /// A member that was usable when the policy was called.
    Member {
        /// The member's index in the pool.
        index: usize,
        /// Whether the member becomes the session's home.
        move_home: bool,
    },
    /// None of the members.
    NoMember {
        /// The reason that the policy gives, shortened.
        reason: String,
    },
}

/// A generation of a balancer policy.
#[derive(Debug)]
pub struct BalancerGeneration {
    generation: ComponentGeneration<BalancerPolicy>,
}

impl BalancerGeneration {
    pub(super) fn load(
        engine: &PolicyEngine,
        policy: &PolicyConfig,
        source: &ComponentBytes,
        options: &LoadOptions<'_>,
    ) -> Result<Self, PolicyLoadError> {
        let generation = load::<BalancerPolicy>(engine, policy, source, options)?;
        let members = ["plus", "pro"].map(|plan| (plan.to_owned(), plan.to_owned()));
        let members = PoolMembers::new(members.into());
        let pool = PickPool::of_this_release(&members);
        let unused = BalancerCandidate {
            usable: true,
            five_hour_cap: 99.0,
            weekly_cap: 99.0,
            ..BalancerCandidate::default()
        };
        let table = table(&[unused, unused]);
        self_test(&generation, policy, |generation| {
            pick(
                generation,
                &RequestFacts::self_test(),
                &pool,
                &table,
                NO_MEMBER,
            )
            .map(drop)
        })?;
        Ok(Self { generation })
    }

    /// Creates a generation without a component: each call fails with `reason`.
    pub(super) fn unavailable(shared: &Arc<SharedPolicyState>, reason: String) -> Self {
        Self {
            generation: ComponentGeneration::unavailable(shared, reason),
        }
    }

    pub(super) fn control(&self) -> &dyn GenerationControl {
        &self.generation
    }

    /// Chooses among `candidates`, which are `members` in the same order. A slow balancer runs on a
    /// policy thread.
    ///
    /// # Errors
    /// The policy failed, or chose a member that does not exist or is not usable.
    pub(crate) async fn pick(
        self: &Arc<Self>,
        facts: &RequestFacts<'_>,
        members: &PoolMembers,
        candidates: &[BalancerCandidate],
        home: Option<usize>,
    ) -> Result<BalancerChoice, PolicyFault> {
        if !self.generation.is_slow() {
            return self.pick_on_this_thread(facts, members, candidates, home);
        }
        let (this, facts) = (Arc::clone(self), OwnedRequestFacts::of(facts));
        let (members, candidates) = (members.clone(), candidates.to_vec());
        let pick = move || this.pick_on_this_thread(&facts.facts(), &members, &candidates, home);
        self.generation
            .on_policy_thread(GuestFunction::Pick, pick)
            .await
    }

    /// Like `BalancerGeneration::pick`, on this thread even if the balancer is slow.
    ///
    /// # Errors
    /// The same as those of `BalancerGeneration::pick`.
    pub fn pick_on_this_thread(
        &self,
        facts: &RequestFacts<'_>,
        members: &PoolMembers,
        candidates: &[BalancerCandidate],
        home: Option<usize>,
    ) -> Result<BalancerChoice, PolicyFault> {
        let started = Instant::now();
        let table = table(candidates);
        let home = home.map_or(NO_MEMBER, |home| home as i32);
        let pool = PickPool::of_this_release(members);
        let choice = pick(&self.generation, facts, &pool, &table, home);
        self.generation.observe(facts, started, || {
            let arguments = CallArguments::Pick {
                columns: column_names(),
                members: members.tags_and_plans.to_vec(),
                table,
                home,
            };
            (arguments, outcome(&choice))
        });
        choice
    }

    /// Repeats a recorded call.
    pub(super) fn repeat(
        &self,
        facts: &RequestFacts<'_>,
        columns: &[String],
        members: &[(String, String)],
        table: &[f64],
        home: i32,
    ) -> CallOutcome {
        let pool = PickPool {
            recorded_columns: Some(columns),
            members: &PoolMembers::new(members.to_vec()),
        };
        outcome(&pick(&self.generation, facts, &pool, table, home))
    }

    /// Returns the weight of each member's capacity. A slow balancer runs on a policy thread.
    ///
    /// # Errors
    /// The policy failed, or its weights are not one positive number per member.
    pub(crate) async fn weights(
        self: &Arc<Self>,
        facts: &RequestFacts<'_>,
        members: &PoolMembers,
    ) -> Result<Vec<f64>, PolicyFault> {
        if !self.generation.is_slow() {
            return self.weights_on_this_thread(facts, members);
        }
        let (this, facts) = (Arc::clone(self), OwnedRequestFacts::of(facts));
        let members = members.clone();
        let weigh = move || this.weights_on_this_thread(&facts.facts(), &members);
        self.generation
            .on_policy_thread(GuestFunction::Members, weigh)
            .await
    }

    fn weights_on_this_thread(
        &self,
        facts: &RequestFacts<'_>,
        members: &PoolMembers,
    ) -> Result<Vec<f64>, PolicyFault> {
        let pool = PickPool::of_this_release(members);
        let call =
            |store: &mut Store<GuestState>, world: &BalancerPolicy| pool.announce(store, world);
        self.generation
            .call(GuestFunction::Members, facts, call, |weights| {
                check_weights(weights, members.len())
            })
    }
}

/// The pool that a pick is about: its members, and the columns of its table.
struct PickPool<'a> {
    /// The columns of a recorded table. `None` stands for those of this release, which are copied
    /// only if an instance does not know the members yet.
    recorded_columns: Option<&'a [String]>,
    members: &'a PoolMembers,
}

impl<'a> PickPool<'a> {
    fn of_this_release(members: &'a PoolMembers) -> Self {
        Self {
            recorded_columns: None,
            members,
        }
    }

    /// Gives the members and the names of the columns to an instance, and returns the weights that
    /// the policy gives to the members.
    fn announce(
        &self,
        store: &mut Store<GuestState>,
        world: &BalancerPolicy,
    ) -> wasmtime::Result<Vec<f64>> {
        let columns = self
            .recorded_columns
            .map_or_else(column_names, <[String]>::to_vec);
        let weights = world.tollgate_policy_balancer().call_members(
            &mut *store,
            &columns,
            &self.members.to_contract(),
        )?;
        store.data_mut().set_known_members(self.members.version);
        Ok(weights)
    }
}

fn pick(
    generation: &ComponentGeneration<BalancerPolicy>,
    facts: &RequestFacts<'_>,
    pool: &PickPool<'_>,
    table: &[f64],
    home: i32,
) -> Result<BalancerChoice, PolicyFault> {
    let request = generation.request(facts);
    let call = |store: &mut Store<GuestState>, world: &BalancerPolicy| {
        if store.data().known_members() != Some(pool.members.version) {
            pool.announce(store, world)?;
        }
        world
            .tollgate_policy_balancer()
            .call_pick(store, &request, table, home)
    };
    generation.call(GuestFunction::Pick, facts, call, |decision| {
        let decision = decision.map_err(|reason| CallFailure::reported(truncated(reason)))?;
        check_decision(decision, pool, table)
    })
}

fn check_decision(
    decision: Decision,
    pool: &PickPool<'_>,
    table: &[f64],
) -> Result<BalancerChoice, CallFailure> {
    if decision.member == NO_MEMBER {
        return Ok(BalancerChoice::NoMember {
            reason: truncated(decision.reason),
        });
    }
    let count = pool.members.len();
    let index = usize::try_from(decision.member)
        .ok()
        .filter(|index| *index < count);
    let Some(index) = index else {
        let problem = format!("member {} of a pool of {count}", decision.member);
        return Err(CallFailure::bad_output(problem));
    };
    if !is_usable(table, pool.recorded_columns, index) {
        return Err(CallFailure::bad_output(format!(
            "member {index} is not usable"
        )));
    }
    Ok(BalancerChoice::Member {
        index,
        move_home: decision.move_home,
    })
}

fn check_weights(weights: Vec<f64>, count: usize) -> Result<Vec<f64>, CallFailure> {
    let are_positive = weights
        .iter()
        .all(|weight| weight.is_finite() && *weight > 0.0);
    if weights.len() == count && are_positive {
        Ok(weights)
    } else {
        Err(CallFailure::bad_output(format!(
            "expected {count} weights above 0"
        )))
    }
}

fn outcome(choice: &Result<BalancerChoice, PolicyFault>) -> CallOutcome {
    match choice {
        Ok(BalancerChoice::Member { index, move_home }) => CallOutcome::Member {
            index: *index,
            move_home: *move_home,
        },
        Ok(BalancerChoice::NoMember { reason }) => CallOutcome::NoMember {
            reason: reason.clone(),
        },
        Err(fault) => CallOutcome::failed(fault),
    }
}
