//! Rewriters: the header fields that a policy wants to see go in, edits come out.
//!
//! Invariant: the edits of a call are applied all together after they were checked, or not at all.

use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use http::header::HeaderMap;
use wasmtime::Store;

use super::guest_text::truncated;
use super::header_edits::{self, CheckedEdit, EditAuthority, apply, visible};
use crate::config::{OnFailure, PolicyConfig, PolicyKind, PolicySource};
use crate::policy::call::recorded::{CallArguments, CallOutcome, OwnedRequestFacts};
use crate::policy::contract::bindings::rewriter::{RewriterPolicy, RewriterPolicyPre};
use crate::policy::contract::bindings::types::{Header, Refusal};
use crate::policy::contract::facts::RequestFacts;
use crate::policy::engine::PolicyEngine;
use crate::policy::engine::fault::{CallFailure, GuestFunction, PolicyFault};
use crate::policy::engine::guest::GuestState;
use crate::policy::engine::world::impl_policy_world;
use crate::policy::generation::component::{ComponentGeneration, GenerationControl};
use crate::policy::generation::load::{LoadOptions, load, self_test};
use crate::policy::generation::load_error::PolicyLoadError;
use crate::policy::generation::shared::SharedPolicyState;
use crate::policy::generation::source::ComponentBytes;

impl_policy_world!(
    RewriterPolicy,
    RewriterPolicyPre<GuestState>,
    PolicyKind::Rewriter
);

/// A rewriter's decision to refuse a request.
#[derive(Debug, Clone)]
pub struct RewriterRefusal {
    /// The status of the response to the client, from 400 to 599.
    pub status: StatusCode,
    /// The message to the client.
    pub message: String,
}

/// A rewriter's decision about a request.
type RequestDecision = Result<Vec<CheckedEdit>, RewriterRefusal>;

/// A generation of a rewriting policy.
#[derive(Debug)]
pub struct RewriterGeneration {
    generation: ComponentGeneration<RewriterPolicy>,
    on_failure: OnFailure,
    authority: EditAuthority,
}

impl RewriterGeneration {
    pub(super) fn load(
        engine: &PolicyEngine,
        policy: &PolicyConfig,
        source: &ComponentBytes,
        options: &LoadOptions<'_>,
    ) -> Result<Self, PolicyLoadError> {
        let rewriter = Self {
            generation: load::<RewriterPolicy>(engine, policy, source, options)?,
            on_failure: policy.on_failure,
            authority: match policy.source {
                PolicySource::Shipped(_) => EditAuthority::Operator,
                PolicySource::File(_) => EditAuthority::Component,
            },
        };
        self_test(&rewriter.generation, policy, |_| {
            rewriter
                .call_request(&RequestFacts::self_test(), &[])
                .map(drop)
        })?;
        Ok(rewriter)
    }

    /// Creates a generation without a component: each call fails with `reason`.
    pub(super) fn unavailable(
        shared: &Arc<SharedPolicyState>,
        reason: String,
        on_failure: OnFailure,
    ) -> Self {
        Self {
            generation: ComponentGeneration::unavailable(shared, reason),
            on_failure,
            authority: EditAuthority::Component,
        }
    }

    pub(super) fn control(&self) -> &dyn GenerationControl {
        &self.generation
    }

    /// Returns what happens to a request if the policy fails.
    pub(crate) fn on_failure(&self) -> OnFailure {
        self.on_failure
    }

    /// Edits the header fields of a request. On an error they are unchanged. A slow rewriter runs
    /// on a policy thread.
    ///
    /// # Errors
    /// The policy failed, or its edits cannot be applied.
    pub(crate) async fn rewrite_request(
        self: &Arc<Self>,
        facts: &RequestFacts<'_>,
        headers: &mut HeaderMap,
    ) -> Result<Result<(), RewriterRefusal>, PolicyFault> {
        let visible = self.visible_in_request(headers);
        let decision = if self.generation.is_slow() {
            let (this, facts) = (Arc::clone(self), OwnedRequestFacts::of(facts));
            let decide = move || this.decide_on_request(&facts.facts(), &visible);
            self.generation
                .on_policy_thread(GuestFunction::RewriteRequest, decide)
                .await
        } else {
            self.decide_on_request(facts, &visible)
        };
        Ok(decision?.map(|edits| apply(edits, self.authority, headers)))
    }

    /// Like `RewriterGeneration::rewrite_request`, on this thread even if the rewriter is slow.
    ///
    /// # Errors
    /// The same as those of `RewriterGeneration::rewrite_request`.
    pub fn rewrite_request_on_this_thread(
        &self,
        facts: &RequestFacts<'_>,
        headers: &mut HeaderMap,
    ) -> Result<Result<(), RewriterRefusal>, PolicyFault> {
        let visible = self.visible_in_request(headers);
        Ok(self
            .decide_on_request(facts, &visible)?
            .map(|edits| apply(edits, self.authority, headers)))
    }

    fn visible_in_request(&self, headers: &HeaderMap) -> Vec<Header> {
        match self.generation.manifest() {
            Some(manifest) => visible(headers, manifest.request_headers()),
            None => Vec::new(),
        }
    }

    fn decide_on_request(
        &self,
        facts: &RequestFacts<'_>,
        visible: &[Header],
    ) -> Result<RequestDecision, PolicyFault> {
        let started = Instant::now();
        let decision = self.call_request(facts, visible);
        if let Ok(Err(_)) = &decision {
            self.generation.shared().stats().count_refusal();
        }
        self.generation.observe(facts, started, || {
            let arguments = CallArguments::RewriteRequest {
                headers: to_pairs(visible),
            };
            (arguments, request_outcome(&decision))
        });
        decision
    }

    /// Edits the header fields of a response, if the policy wants to see any. On an error they are
    /// unchanged. A slow rewriter runs on a policy thread.
    ///
    /// # Errors
    /// The policy failed, or its edits cannot be applied.
    pub(crate) async fn rewrite_response(
        self: &Arc<Self>,
        facts: &RequestFacts<'_>,
        status: StatusCode,
        headers: &mut HeaderMap,
    ) -> Result<(), PolicyFault> {
        // A policy whose component is not loaded failed the request already, or may be skipped.
        let Some(manifest) = self.generation.manifest() else {
            return Ok(());
        };
        if manifest.response_headers().is_empty() {
            return Ok(());
        }
        let visible = visible(headers, manifest.response_headers());
        let status = u32::from(status.as_u16());
        let edits = if self.generation.is_slow() {
            let (this, facts) = (Arc::clone(self), OwnedRequestFacts::of(facts));
            let edit = move || this.edit_response(&facts.facts(), status, &visible);
            self.generation
                .on_policy_thread(GuestFunction::RewriteResponse, edit)
                .await
        } else {
            self.edit_response(facts, status, &visible)
        };
        apply(edits?, self.authority, headers);
        Ok(())
    }

    fn edit_response(
        &self,
        facts: &RequestFacts<'_>,
        status: u32,
        visible: &[Header],
    ) -> Result<Vec<CheckedEdit>, PolicyFault> {
        let started = Instant::now();
        let edits = self.call_response(facts, status, visible);
        self.generation.observe(facts, started, || {
            let arguments = CallArguments::RewriteResponse {
                status,
                headers: to_pairs(visible),
            };
            (arguments, response_outcome(&edits))
        });
        edits
    }

    /// Repeats a recorded call about a request.
    pub(super) fn repeat_request(
        &self,
        facts: &RequestFacts<'_>,
        headers: &[(String, String)],
    ) -> CallOutcome {
        request_outcome(&self.call_request(facts, &from_pairs(headers)))
    }

    /// Repeats a recorded call about a response.
    pub(super) fn repeat_response(
        &self,
        facts: &RequestFacts<'_>,
        status: u32,
        headers: &[(String, String)],
    ) -> CallOutcome {
        response_outcome(&self.call_response(facts, status, &from_pairs(headers)))
    }

    fn call_request(
        &self,
        facts: &RequestFacts<'_>,
        visible: &[Header],
    ) -> Result<RequestDecision, PolicyFault> {
        let request = self.generation.request(facts);
        let call = |store: &mut Store<GuestState>, world: &RewriterPolicy| {
            world
                .tollgate_policy_rewriter()
                .call_rewrite_request(store, &request, visible)
        };
        let check = |decision: Result<_, Refusal>| match decision {
            Ok(edits) => header_edits::check(edits, self.authority).map(Ok),
            Err(refusal) => check_refusal(refusal).map(Err),
        };
        self.generation
            .call(GuestFunction::RewriteRequest, facts, call, check)
    }

    fn call_response(
        &self,
        facts: &RequestFacts<'_>,
        status: u32,
        visible: &[Header],
    ) -> Result<Vec<CheckedEdit>, PolicyFault> {
        let request = self.generation.request(facts);
        let call = |store: &mut Store<GuestState>, world: &RewriterPolicy| {
            world
                .tollgate_policy_rewriter()
                .call_rewrite_response(store, &request, status, visible)
        };
        let check = |edits: Result<_, String>| match edits {
            Ok(edits) => header_edits::check(edits, self.authority),
            Err(reason) => Err(CallFailure::reported(truncated(reason))),
        };
        self.generation
            .call(GuestFunction::RewriteResponse, facts, call, check)
    }
}

fn check_refusal(refusal: Refusal) -> Result<RewriterRefusal, CallFailure> {
    let status = u16::try_from(refusal.status)
        .ok()
        .filter(|status| (400..600).contains(status));
    match status.and_then(|status| StatusCode::from_u16(status).ok()) {
        Some(status) => Ok(RewriterRefusal {
            status,
            message: truncated(refusal.message),
        }),
        None => Err(CallFailure::bad_output(format!(
            "expected a refusal with a status from 400 to 599, found {}",
            refusal.status
        ))),
    }
}

fn request_outcome(decision: &Result<RequestDecision, PolicyFault>) -> CallOutcome {
    match decision {
        Ok(Ok(edits)) => header_edits::outcome(edits),
        Ok(Err(refusal)) => CallOutcome::Refused {
            status: u32::from(refusal.status.as_u16()),
            message: refusal.message.clone(),
        },
        Err(fault) => CallOutcome::failed(fault),
    }
}

fn response_outcome(edits: &Result<Vec<CheckedEdit>, PolicyFault>) -> CallOutcome {
    match edits {
        Ok(edits) => header_edits::outcome(edits),
        Err(fault) => CallOutcome::failed(fault),
    }
}

fn to_pairs(fields: &[Header]) -> Vec<(String, String)> {
    fields
        .iter()
        .map(|field| (field.name.clone(), field.value.clone()))
        .collect()
}

fn from_pairs(pairs: &[(String, String)]) -> Vec<Header> {
    pairs
        .iter()
        .map(|(name, value)| Header {
            name: name.clone(),
            value: value.clone(),
        })
        .collect()
}
