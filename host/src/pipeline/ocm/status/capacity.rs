//! How much of their credentials' capacity a user has left.
//!
//! Owns the five figures and their JSON. Does not know when they are sent. Invariant: a login that
//! several credentials share counts once.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use crate::authenticate::User;
use crate::config::WindowCaps;
use crate::credentials::Credential;
use crate::pipeline::attempt::select::is_allowed;
use crate::pipeline::service::{CredentialPool, Service};
use crate::policy::{PoolMembers, RequestFacts};
use crate::values::clock::Timestamp;
use crate::values::credential::windows::WindowKind;

/// The capacity of a user's credentials as one.
#[derive(Debug, Serialize)]
struct UserCapacity {
    /// The used percent of the 5-hour windows.
    five_hour_utilization: f64,
    /// The mean of their resets in Unix seconds; 0 if none is known.
    five_hour_reset: u64,
    /// The used percent of the weekly windows.
    weekly_utilization: f64,
    /// The mean of their resets in Unix seconds; 0 if none is known.
    weekly_reset: u64,
    /// The sum of the weights of the plans.
    plan_weight: f64,
}

/// What the credentials have left in one window, and when it resets.
#[derive(Debug, Default)]
struct WindowSum {
    left: f64,
    resets_unix: f64,
    reset_weight: f64,
}

impl WindowSum {
    fn add(&mut self, cap: f64, used: f64, reset: Option<Timestamp>, weight: f64) {
        self.left += (cap - used).max(0.0) * weight;
        if let Some(reset) = reset {
            self.resets_unix += reset.unix() as f64 * weight;
            self.reset_weight += weight;
        }
    }

    /// Returns 100 minus the weighted mean of what is left under the caps.
    fn utilization(&self, plan_weight: f64) -> f64 {
        if plan_weight == 0.0 {
            return 100.0;
        }
        100.0 - self.left / plan_weight
    }

    fn reset(&self) -> u64 {
        if self.reset_weight == 0.0 {
            return 0;
        }
        (self.resets_unix / self.reset_weight).round() as u64
    }
}

/// Returns the status as a line of JSON.
pub(super) async fn status_line(service: &Service, user: Option<&User>, now: Timestamp) -> Bytes {
    let capacity = remaining_capacity(service, user, now).await;
    match serde_json::to_string(&capacity) {
        Ok(json) => Bytes::from(json + "\n"),
        Err(error) => unreachable!("the status consists of numbers: {error}"),
    }
}

/// Returns what a user's available credentials have left, as one.
async fn remaining_capacity(
    service: &Service,
    user: Option<&User>,
    now: Timestamp,
) -> UserCapacity {
    let pool = service.pool_of(user);
    let weights = weights(service, pool, &pool.balancer_members(), now).await;
    let (mut five_hour, mut weekly) = (WindowSum::default(), WindowSum::default());
    let mut plan_weight = 0.0;
    for account in accounts(pool, weights, user, now) {
        let AccountCapacity {
            credential,
            weight,
            caps,
        } = account;
        let (five_hour_used, weekly_used) = credential.used(now);
        let reset = |window: WindowKind| credential.reset_at(window, now);
        five_hour.add(
            caps.five_hour,
            five_hour_used,
            reset(WindowKind::FiveHour),
            weight,
        );
        weekly.add(caps.weekly, weekly_used, reset(WindowKind::Weekly), weight);
        plan_weight += weight;
    }
    UserCapacity {
        five_hour_utilization: five_hour.utilization(plan_weight),
        five_hour_reset: five_hour.reset(),
        weekly_utilization: weekly.utilization(plan_weight),
        weekly_reset: weekly.reset(),
        plan_weight,
    }
}

/// An account that a user's requests can be sent with.
struct AccountCapacity<'a> {
    credential: &'a Arc<Credential>,
    weight: f64,
    /// The largest caps of the credentials that share the account.
    caps: WindowCaps,
}

fn accounts<'a>(
    pool: &'a CredentialPool,
    weights: Vec<f64>,
    user: Option<&User>,
    now: Timestamp,
) -> Vec<AccountCapacity<'a>> {
    let mut accounts: Vec<AccountCapacity<'_>> = Vec::new();
    for (weight, credential) in weights.into_iter().zip(pool.credentials()) {
        if !is_available(credential, user, now) {
            continue;
        }
        let caps = credential.caps();
        let shared = accounts
            .iter_mut()
            .find(|account| account.credential.shares_login_with(credential));
        match shared {
            Some(account) => {
                account.caps.five_hour = account.caps.five_hour.max(caps.five_hour);
                account.caps.weekly = account.caps.weekly.max(caps.weekly);
            }
            None => accounts.push(AccountCapacity {
                credential,
                // Another gateway reports its own weight.
                weight: credential.own_weight().unwrap_or(weight),
                caps,
            }),
        }
    }
    accounts
}

fn is_available(credential: &Credential, user: Option<&User>, now: Timestamp) -> bool {
    let is_left_out = user
        .and_then(|user| user.external_credential.as_deref())
        .is_some_and(|tag| tag == credential.tag());
    credential.is_presentable(now) && is_allowed(user, credential) && !is_left_out
}

async fn weights(
    service: &Service,
    pool: &CredentialPool,
    members: &PoolMembers,
    now: Timestamp,
) -> Vec<f64> {
    let facts = RequestFacts {
        service: service.tag(),
        now,
        ..RequestFacts::default()
    };
    for balancer in [pool.balancer(), &service.parts().stand_in] {
        match balancer.weights(&facts, members).await {
            Ok(weights) => return weights,
            Err(fault) => {
                tracing::error!(%fault, "balancer failed, using the weights of the next one");
            }
        }
    }
    vec![1.0; members.tags_and_plans().len()]
}
