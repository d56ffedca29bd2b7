//! Status: how much of their credentials' capacity a user has left, as sing-box's OCM answers it.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Response};
use serde_json::json;

use super::answer::AnswerBody;
use super::attempt::select::is_allowed;
use super::entry::receive::{Received, prove};
use super::refusal::Refusal;
use super::service::Service;
use crate::authenticate::User;
use crate::credentials::Credential;
use crate::policy::{Facts, Members};
use crate::values::clock::Timestamp;

const PATH: &str = "/ocm/v1/status";

pub(crate) fn is_asked(received: &Received) -> bool {
    received.path() == PATH
}

/// # Errors
/// There are no users, nobody who may asks, or it is not asked by GET.
pub(crate) async fn answer(
    service: &Service,
    received: &Received,
) -> Result<Response<AnswerBody>, Refusal> {
    if received.head.method != Method::GET {
        return Err(Refusal::get_only());
    }
    if service.users.is_empty() {
        return Err(Refusal::forbidden(
            "status is for users, and this service has none",
        ));
    }
    let proof = prove(service, received).await?;
    let capacity = capacity(service, proof.user().map(Arc::as_ref), received.at).await;
    let body = json!({
        "five_hour_utilization": capacity.five_hour_utilization,
        "weekly_utilization": capacity.weekly_utilization,
        "plan_weight": capacity.plan_weight,
    });
    let mut response = Response::new(AnswerBody::whole(Bytes::from(body.to_string())));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

#[derive(Debug, PartialEq)]
struct Capacity {
    five_hour_utilization: f64,
    weekly_utilization: f64,
    plan_weight: f64,
}

/// 100 less the weighted mean of what is left under each window's cap; 100, 100 and 0 where there is no credential.
async fn capacity(service: &Service, user: Option<&User>, now: Timestamp) -> Capacity {
    let pool = &service.pools[service.pool_of(user)];
    let credentials: Vec<&Arc<Credential>> = pool
        .members
        .iter()
        .map(|member| &service.parts.credentials[*member])
        .collect();
    let available: Vec<usize> = (0..credentials.len())
        .filter(|index| credentials[*index].can_serve(now) && is_allowed(user, credentials[*index]))
        .collect();
    let members = pool.members_named(&service.parts.credentials);
    let mut weights = weights(service, pool, &members, now).await;
    // A gateway tells its own.
    for (weight, credential) in weights.iter_mut().zip(&credentials) {
        *weight = credential.own_weight().unwrap_or(*weight);
    }
    let mut left = (0.0, 0.0);
    let mut total = 0.0;
    for index in available {
        let (weight, caps) = (weights[index], credentials[index].caps());
        let used = credentials[index].used(now);
        left.0 += (caps.five_hour - used.0).max(0.0) * weight;
        left.1 += (caps.weekly - used.1).max(0.0) * weight;
        total += weight;
    }
    if total == 0.0 {
        return Capacity {
            five_hour_utilization: 100.0,
            weekly_utilization: 100.0,
            plan_weight: 0.0,
        };
    }
    Capacity {
        five_hour_utilization: 100.0 - left.0 / total,
        weekly_utilization: 100.0 - left.1 / total,
        plan_weight: total,
    }
}

async fn weights(
    service: &Service,
    pool: &super::service::Pool,
    members: &Members,
    now: Timestamp,
) -> Vec<f64> {
    let facts = Facts {
        service: service.tag(),
        now,
        ..Facts::default()
    };
    for balancer in [&pool.balancer, &service.parts.fallback] {
        match balancer.weights(&facts, members).await {
            Ok(weights) => return weights,
            Err(fault) => tracing::error!(%fault, "the next balancer weighs"),
        }
    }
    vec![1.0; members.named().len()]
}
