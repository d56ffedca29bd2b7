//! Pricers: token counts go in, nano-dollars come out.

use std::time::Instant;

use wasmtime::Store;

use super::balancer::cut;
use super::bindings::pricer::exports::tollgate::policy::pricer::Quote;
use super::bindings::pricer::{PricerPolicy, PricerPolicyPre};
use super::engine::Engine;
use super::fault::Fault;
use super::instance::{Guest, world};
use super::load::{LoadError, Loading, Source, load, try_out};
use super::repeat::{Asked, Said};
use super::seat::{Bad, Seat};
use super::threads::Full;
use super::{Facts, generation};
use crate::config::{PolicyConfig, PolicyKind};
use crate::values::counts::{COLUMN_NAMES, TokenCounts};
use crate::values::money::{NanoUsd, ResponseCost};

/// Dearer than any response: a million dollars. A price past it is a fault, and no price.
const NANO_USD_MAX: f64 = 1e15;

world!(
    PricerPolicy,
    PricerPolicyPre<super::instance::Guest>,
    PolicyKind::Pricer,
    fn prepare(&self, store: &mut wasmtime::Store<super::instance::Guest>) -> wasmtime::Result<()> {
        self.tollgate_policy_pricer()
            .call_columns(store, &COLUMN_NAMES.map(str::to_owned))
    }
);

/// A pricer: one generation of a slot.
pub struct Pricer {
    seat: Seat<PricerPolicy>,
}

impl std::fmt::Debug for Pricer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pricer")
            .field("tag", &self.seat.slot().tag())
            .finish_non_exhaustive()
    }
}

generation!(Pricer);

impl Pricer {
    /// # Errors
    /// The component or its configuration cannot be used, or it failed when it was tried.
    pub fn load(
        engine: &Engine,
        policy: &PolicyConfig,
        source: &Source,
        loading: &Loading<'_>,
    ) -> Result<Self, LoadError> {
        let seat = load::<PricerPolicy>(engine, policy, source, loading)?;
        let counts = TokenCounts {
            input: 1000,
            output: 100,
            ..TokenCounts::default()
        }
        .columns();
        try_out(&seat, policy, |seat| {
            price(seat, &Facts::trial(), &COLUMN_NAMES, &counts).map(drop)
        })?;
        Ok(Self { seat })
    }

    /// What `counts` cost. A policy that says it does not know leaves them unpriced; that is no fault.
    ///
    /// # Errors
    /// The policy failed, or named an absurd price.
    pub fn price(&self, facts: &Facts<'_>, counts: &TokenCounts) -> Result<ResponseCost, Fault> {
        let begun = Instant::now();
        let counts = counts.columns();
        let cost = price(&self.seat, facts, &COLUMN_NAMES, &counts);
        self.seat.slot().note(|| {
            let columns = COLUMN_NAMES.map(str::to_owned).to_vec();
            self.seat.kept(
                facts,
                begun,
                Asked::Price {
                    columns,
                    counts: counts.to_vec(),
                },
                said(&cost),
            )
        });
        cost
    }

    /// Whether its calls belong on threads of their own.
    pub fn is_slow(&self) -> bool {
        self.seat.is_slow()
    }

    /// Runs `job`, which prices something, on a thread of its own.
    ///
    /// # Errors
    /// There is no room for it to wait; it was not run.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Fault> {
        self.seat
            .slot()
            .threads()
            .spawn(job)
            .map_err(|Full| self.busy("price"))
    }

    /// What it says to a call that another one had. Counts of other names than those of this release are left out.
    pub(super) fn repeat(&self, facts: &Facts<'_>, columns: &[String], counts: &[f64]) -> Said {
        let count = |name: &&str| {
            let place = columns.iter().position(|column| column == name);
            place
                .and_then(|place| counts.get(place))
                .copied()
                .unwrap_or(0.0)
        };
        let counts: Vec<f64> = COLUMN_NAMES.iter().map(count).collect();
        said(&price(&self.seat, facts, &COLUMN_NAMES, &counts))
    }
}

fn price(
    seat: &Seat<PricerPolicy>,
    facts: &Facts<'_>,
    columns: &[&str],
    counts: &[f64],
) -> Result<ResponseCost, Fault> {
    let request = seat.request(facts);
    let ask = |store: &mut Store<Guest>, world: &PricerPolicy| {
        world
            .tollgate_policy_pricer()
            .call_price(store, &request, counts)
    };
    seat.call("price", facts, ask, |quote| match quote {
        Err(reason) => Ok(ResponseCost::Unpriced {
            reason: cut(reason),
        }),
        Ok(quote) => check(&quote, columns.len()),
    })
}

fn check(quote: &Quote, kinds: usize) -> Result<ResponseCost, Bad> {
    let whole = |number: f64, max: f64| (0.0..=max).contains(&number) && number.fract() == 0.0;
    let sum: f64 = quote.by_kind.iter().sum();
    let sound = quote.by_kind.len() == kinds
        && quote.by_kind.iter().all(|cost| whole(*cost, NANO_USD_MAX))
        && whole(quote.total, NANO_USD_MAX)
        && sum == quote.total
        && whole(quote.context_window, 1e9);
    if !sound {
        return Err(Bad::output(
            "expected whole nano-dollars by kind and their sum",
        ));
    }
    Ok(ResponseCost::Priced {
        amount: NanoUsd(quote.total as u64),
        context_window: quote.context_window as u64,
    })
}

fn said(cost: &Result<ResponseCost, Fault>) -> Said {
    match cost {
        Ok(ResponseCost::Priced {
            amount,
            context_window,
        }) => Said::Priced {
            nanousd: amount.0,
            context_window: *context_window,
        },
        Ok(ResponseCost::Unpriced { reason }) => Said::Unpriced {
            reason: reason.clone(),
        },
        Err(fault) => Said::failed(fault),
    }
}
