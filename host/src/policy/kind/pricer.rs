//! Pricers: token counts go in, nano-dollars come out.
//!
//! Invariant: a price that is returned consists of whole nano-dollars whose kinds add up.

use std::sync::Arc;
use std::time::Instant;

use wasmtime::Store;

use super::guest_text::truncated;
use crate::config::{PolicyConfig, PolicyKind};
use crate::policy::call::recorded::{CallArguments, CallOutcome};
use crate::policy::contract::bindings::pricer::exports::tollgate::policy::pricer::Quote;
use crate::policy::contract::bindings::pricer::{PricerPolicy, PricerPolicyPre};
use crate::policy::contract::facts::RequestFacts;
use crate::policy::contract::identity::ComponentIdentity;
use crate::policy::engine::PolicyEngine;
use crate::policy::engine::fault::{CallFailure, GuestFunction, PolicyFault};
use crate::policy::engine::guest::GuestState;
use crate::policy::engine::world::impl_policy_world;
use crate::policy::generation::component::{ComponentGeneration, GenerationControl};
use crate::policy::generation::load::{LoadOptions, load, self_test};
use crate::policy::generation::load_error::PolicyLoadError;
use crate::policy::generation::shared::SharedPolicyState;
use crate::policy::generation::source::ComponentBytes;
use crate::values::exchange::counts::{COLUMN_NAMES, TokenCounts};
use crate::values::exchange::money::{NanoUsd, ResponseCost};

/// A million dollars, more than any response costs. A higher price is a fault.
const NANO_USD_MAX: f64 = 1e15;

/// More tokens than any context window has.
const CONTEXT_WINDOW_MAX: f64 = 1e9;

impl_policy_world!(
    PricerPolicy,
    PricerPolicyPre<GuestState>,
    PolicyKind::Pricer,
    fn prepare(&self, store: &mut wasmtime::Store<GuestState>) -> wasmtime::Result<()> {
        self.tollgate_policy_pricer()
            .call_columns(store, &column_names())
    }
);

/// A generation of a pricing policy.
#[derive(Debug)]
pub struct PricerGeneration {
    generation: ComponentGeneration<PricerPolicy>,
}

impl PricerGeneration {
    pub(super) fn load(
        engine: &PolicyEngine,
        policy: &PolicyConfig,
        source: &ComponentBytes,
        options: &LoadOptions<'_>,
    ) -> Result<Self, PolicyLoadError> {
        let generation = load::<PricerPolicy>(engine, policy, source, options)?;
        let counts = TokenCounts {
            input: 1000,
            output: 100,
            ..TokenCounts::default()
        }
        .columns();
        self_test(&generation, policy, |generation| {
            price(generation, &RequestFacts::self_test(), &counts).map(drop)
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

    /// Returns which component it is.
    pub(crate) fn identity(&self) -> &ComponentIdentity {
        self.generation.identity()
    }

    /// Prices `counts`, on this thread. A policy that does not know the price leaves them unpriced,
    /// which is no fault.
    ///
    /// # Errors
    /// The policy failed, or its price is absurd.
    pub fn price(
        &self,
        facts: &RequestFacts<'_>,
        counts: &TokenCounts,
    ) -> Result<ResponseCost, PolicyFault> {
        let started = Instant::now();
        let counts = counts.columns();
        let cost = price(&self.generation, facts, &counts);
        self.generation.observe(facts, started, || {
            let arguments = CallArguments::Price {
                columns: column_names(),
                counts: counts.to_vec(),
            };
            (arguments, outcome(&cost))
        });
        cost
    }

    /// Returns whether calls belong on policy threads.
    pub(crate) fn is_slow(&self) -> bool {
        self.generation.is_slow()
    }

    /// Runs `job`, which prices something, on a policy thread.
    ///
    /// # Errors
    /// The queue of the policy threads is full; the job does not run.
    pub(crate) fn queue_on_policy_thread(
        &self,
        job: impl FnOnce() + Send + 'static,
    ) -> Result<(), PolicyFault> {
        self.generation
            .queue_on_policy_thread(GuestFunction::Price, job)
    }

    /// Repeats a recorded call. Counts that this release does not know are left out.
    pub(super) fn repeat(
        &self,
        facts: &RequestFacts<'_>,
        columns: &[String],
        counts: &[f64],
    ) -> CallOutcome {
        let counts = COLUMN_NAMES.map(|name| {
            columns
                .iter()
                .position(|column| column == name)
                .and_then(|index| counts.get(index))
                .copied()
                .unwrap_or(0.0)
        });
        outcome(&price(&self.generation, facts, &counts))
    }
}

fn price(
    generation: &ComponentGeneration<PricerPolicy>,
    facts: &RequestFacts<'_>,
    counts: &[f64],
) -> Result<ResponseCost, PolicyFault> {
    let request = generation.request(facts);
    let call = |store: &mut Store<GuestState>, world: &PricerPolicy| {
        world
            .tollgate_policy_pricer()
            .call_price(store, &request, counts)
    };
    generation.call(GuestFunction::Price, facts, call, |quote| match quote {
        Ok(quote) => check(&quote),
        Err(reason) => Ok(ResponseCost::Unpriced {
            reason: truncated(reason),
        }),
    })
}

fn check(quote: &Quote) -> Result<ResponseCost, CallFailure> {
    let sum: f64 = quote.by_kind.iter().sum();
    let is_sound = quote.by_kind.len() == COLUMN_NAMES.len()
        && quote
            .by_kind
            .iter()
            .all(|cost| is_whole(*cost, NANO_USD_MAX))
        && is_whole(quote.total, NANO_USD_MAX)
        && sum == quote.total
        && is_whole(quote.context_window, CONTEXT_WINDOW_MAX);
    if !is_sound {
        return Err(CallFailure::bad_output(
            "expected whole nano-dollars by kind and their sum",
        ));
    }
    Ok(ResponseCost::Priced {
        amount: NanoUsd(quote.total as u64),
        context_window: quote.context_window as u64,
    })
}

fn is_whole(number: f64, max: f64) -> bool {
    (0.0..=max).contains(&number) && number.fract() == 0.0
}

fn outcome(cost: &Result<ResponseCost, PolicyFault>) -> CallOutcome {
    match cost {
        Ok(ResponseCost::Priced {
            amount,
            context_window,
        }) => CallOutcome::Priced {
            nanousd: amount.0,
            context_window: *context_window,
        },
        Ok(ResponseCost::Unpriced { reason }) => CallOutcome::Unpriced {
            reason: reason.clone(),
        },
        Err(fault) => CallOutcome::failed(fault),
    }
}

fn column_names() -> Vec<String> {
    COLUMN_NAMES.map(str::to_owned).to_vec()
}
