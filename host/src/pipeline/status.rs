//! Status: how much of their credentials' capacity a user has left, in the form of sing-box's OCM.
//!
//! Owns `/ocm/v1/status`. It is for a service's users, who are authenticated as for any request; it
//! makes no row.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Response};
use serde_json::json;

use super::attempt::select::is_allowed;
use super::entry::receive::{Received, authenticate_sender};
use super::refusal::Refusal;
use super::service::{CredentialPool, Service};
use crate::authenticate::User;
use crate::credentials::Credential;
use crate::policy::{PoolMembers, RequestFacts};
use crate::values::clock::Timestamp;

const PATH: &str = "/ocm/v1/status";

pub(crate) fn is_requested(received: &Received) -> bool {
    received.path() == PATH
}

/// # Errors
/// The method is not GET, the service has no users, or the request presents no token of a user.
pub(crate) async fn status(received: Received) -> Result<Response<Bytes>, Refusal> {
    let service = &received.service;
    if received.head.method != Method::GET {
        return Err(Refusal::get_only());
    }
    if service.users().is_empty() {
        return Err(Refusal::forbidden(
            "the status is for users, and this service has none",
        ));
    }
    let proof = authenticate_sender(&received).await?;
    let user = proof.user().map(Arc::as_ref);
    let capacity = remaining_capacity(service, user, received.at).await;
    let body = json!({
        "five_hour_utilization": capacity.five_hour_utilization,
        "weekly_utilization": capacity.weekly_utilization,
        "plan_weight": capacity.plan_weight,
    });
    let mut response = Response::new(Bytes::from(body.to_string()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// The capacity of a user's credentials as one: used percent, and the sum of their weights.
#[derive(Debug, PartialEq)]
struct PoolCapacity {
    five_hour_utilization: f64,
    weekly_utilization: f64,
    plan_weight: f64,
}

impl PoolCapacity {
    /// The capacity of no credential.
    const NONE: Self = Self {
        five_hour_utilization: 100.0,
        weekly_utilization: 100.0,
        plan_weight: 0.0,
    };
}

/// Returns 100 minus the weighted mean of what is left under each window's cap.
async fn remaining_capacity(
    service: &Service,
    user: Option<&User>,
    now: Timestamp,
) -> PoolCapacity {
    let pool = service.pool_of(user);
    let weights = weights(service, pool, &pool.balancer_members(), now).await;
    let mut five_hour_left = 0.0;
    let mut weekly_left = 0.0;
    let mut plan_weight = 0.0;
    for (weight, credential) in weights.into_iter().zip(pool.credentials()) {
        if !is_available(credential, user, now) {
            continue;
        }
        // Another gateway reports its own weight.
        let weight = credential.own_weight().unwrap_or(weight);
        let caps = credential.caps();
        let (five_hour_used, weekly_used) = credential.used(now);
        five_hour_left += (caps.five_hour - five_hour_used).max(0.0) * weight;
        weekly_left += (caps.weekly - weekly_used).max(0.0) * weight;
        plan_weight += weight;
    }
    if plan_weight == 0.0 {
        return PoolCapacity::NONE;
    }
    PoolCapacity {
        five_hour_utilization: 100.0 - five_hour_left / plan_weight,
        weekly_utilization: 100.0 - weekly_left / plan_weight,
        plan_weight,
    }
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
