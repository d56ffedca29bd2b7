//! Pricers: token counts go in, nano-dollars come out.

use super::balancer::cut;
use super::bindings::pricer::exports::tollgate::policy::pricer::Quote;
use super::bindings::pricer::{PricerPolicy, PricerPolicyPre};
use super::engine::Engine;
use super::fault::{Fault, FaultKind};
use super::instance::{Seat, world};
use super::load::{LoadError, load};
use super::{Facts, Stamp};
use crate::config::{PolicyConfig, PolicyKind};
use crate::values::counts::{COLUMN_NAMES, TokenCounts};
use crate::values::money::{Cost, NanoUsd};

/// Dearer than any response: a million dollars. A price past it is a fault, and no price.
const NANO_USD_MAX: f64 = 1e15;

world!(
    PricerPolicy,
    PricerPolicyPre<super::instance::Guest>,
    PolicyKind::Pricer,
    fn prepare(&self, store: &mut wasmtime::Store<super::instance::Guest>) -> wasmtime::Result<()> {
        self.tollgate_policy_pricer().call_columns(store, &COLUMN_NAMES.map(str::to_owned))
    }
);

/// A loaded pricer.
pub struct Pricer {
    seat: Seat<PricerPolicy>,
    stamp: Stamp,
}

impl std::fmt::Debug for Pricer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pricer").field("tag", &self.seat.tag).finish_non_exhaustive()
    }
}

impl Pricer {
    /// # Errors
    /// The component or its configuration cannot be used.
    pub fn load(engine: &Engine, policy: &PolicyConfig) -> Result<Self, LoadError> {
        let loaded = load::<PricerPolicy>(engine, policy)?;
        Ok(Self { seat: loaded.seat, stamp: loaded.stamp })
    }

    /// Which component it is.
    pub fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// What `counts` cost. A policy that says it does not know leaves them unpriced; that is no fault.
    ///
    /// # Errors
    /// The policy failed, or named an absurd price.
    pub fn price(&self, facts: &Facts<'_>, counts: &TokenCounts) -> Result<Cost, Fault> {
        let request = self.seat.request(facts);
        let columns = counts.columns();
        let quote = self.seat.call("price", facts, |store, world| {
            world.tollgate_policy_pricer().call_price(store, &request, &columns)
        })?;
        match quote {
            Err(reason) => Ok(Cost::Unpriced { reason: cut(reason) }),
            Ok(quote) => self.check(&quote),
        }
    }

    fn check(&self, quote: &Quote) -> Result<Cost, Fault> {
        let whole = |number: f64, max: f64| (0.0..=max).contains(&number) && number.fract() == 0.0;
        let sum: f64 = quote.by_kind.iter().sum();
        let sound = quote.by_kind.len() == COLUMN_NAMES.len()
            && quote.by_kind.iter().all(|cost| whole(*cost, NANO_USD_MAX))
            && whole(quote.total, NANO_USD_MAX)
            && sum == quote.total
            && whole(quote.context_window, 1e9);
        if !sound {
            let detail = "bad output: expected whole nano-dollars by kind and their sum".to_owned();
            return Err(self.seat.fault("price", FaultKind::BadOutput, detail));
        }
        Ok(Cost::Priced { amount: NanoUsd(quote.total as u64), context_window: quote.context_window as u64 })
    }
}
