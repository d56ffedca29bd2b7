//! Attempt: the request is sent with one credential after another until an outcome is final.
//!
//! ```text
//! [ select -> rewrite -> forward -> judge ]   again, with another credential
//! ```
//!
//! Owns the loop and what one attempt leaves for the next; each step is a module of its name.
//! Invariant: a credential is tried once, or once more after a refresh of its tokens, and none is
//! tried after a byte of a response has been sent to the client.

pub(super) mod forward;
pub(super) mod judge;
mod reset_hint;
pub(super) mod rewrite;
pub(super) mod select;

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::HeaderMap;
use http::{Method, Uri};

use super::affinity;
use super::entry::body::KeptBody;
use super::entry::inspect::Inspected;
use super::exchange::{Exchange, RefusedRequest};
use super::refusal::Refusal;
use crate::credentials::{CredentialKind, UpstreamIdentity};
use crate::values::clock::Timestamp;

use forward::{NoResponse, Sent, forward};
use judge::{
    AttemptVerdict, FailedAttempt, OtherCredentials, RefreshAllowance, UpstreamAnswer, judge,
};
use rewrite::{Rewritten, StrippedHead, rewrite};
use select::{Selected, TriedCredentials, has_other, refuse_unsendable, select};

const CHAT_COMPLETIONS: &str = "/v1/chat/completions";

/// A request with the response that its client gets.
pub(crate) struct Answered {
    pub(crate) exchange: Box<Exchange>,
    pub(crate) answer: UpstreamAnswer,
}

/// # Errors
/// No credential is usable, none answered, or a policy refuses the request.
pub(crate) async fn attempt(inspected: Inspected) -> Result<Answered, RefusedRequest> {
    let mut attempts = AttemptLoop::new(inspected);
    match attempts.run().await {
        Ok(answer) => Ok(Answered {
            exchange: attempts.exchange,
            answer,
        }),
        Err(refusal) => Err(attempts.exchange.refuse(refusal)),
    }
}

/// What one attempt leaves for the next.
struct AttemptLoop {
    exchange: Box<Exchange>,
    method: Method,
    uri: Uri,
    /// `None` once an attempt took them that no other can follow.
    headers: Option<HeaderMap>,
    body: KeptBody,
    /// When no further attempt is begun.
    deadline: Instant,
    tried: TriedCredentials,
    refresh: RefreshUse,
    /// What the client gets if no further credential answers.
    last: FailedAttempt,
}

/// The use of a refresh of refused tokens, which a request may wait for once.
enum RefreshUse {
    Unused,
    /// The same credential is tried again, with its new tokens.
    Refreshed(Selected),
    Used,
}

impl AttemptLoop {
    fn new(inspected: Inspected) -> Self {
        let Inspected {
            exchange,
            head,
            body,
        } = inspected;
        Self {
            deadline: Instant::now() + exchange.service().limits().failover_timeout,
            exchange,
            method: head.method,
            uri: head.uri,
            headers: Some(head.headers),
            body,
            tried: TriedCredentials::default(),
            refresh: RefreshUse::Unused,
            last: FailedAttempt::Unusable,
        }
    }

    async fn run(&mut self) -> Result<UpstreamAnswer, Refusal> {
        loop {
            self.check_pool_has_endpoint()?;
            let selected = match self.select().await {
                Ok(selected) => selected,
                Err(none_usable) => return self.final_failure(none_usable),
            };
            self.check_credential_has_endpoint(&selected)?;
            let others = self.others();
            let rewritten = self.rewrite(&selected, others).await?;
            let forwarded = self.forward(&selected, rewritten).await;
            match self.judge(forwarded, others).await {
                AttemptVerdict::Answer(answer) => {
                    if selected.moves_home {
                        let status = answer.response.status();
                        affinity::move_home(&self.exchange, &answer.credential, status);
                    }
                    return Ok(answer);
                }
                AttemptVerdict::Refuse(refusal) => return Err(refusal),
                AttemptVerdict::AgainWith(identity) => self.retry_refreshed(selected, identity),
                // The outcome of an earlier attempt counts for more: a failure may be worth another
                // try.
                AttemptVerdict::Next(FailedAttempt::Unusable) => {}
                AttemptVerdict::Next(failed) => self.last = failed,
                AttemptVerdict::CutOff => {
                    return Err(refuse_unsendable(&self.exchange, &self.tried));
                }
            }
        }
    }

    async fn select(&mut self) -> Result<Selected, Refusal> {
        let refreshed = self.refreshed();
        // What another credential answered from here on would come too late.
        let is_late = !self.tried.is_empty() && Instant::now() >= self.deadline;
        if is_late || self.headers.is_none() {
            return Err(refuse_unsendable(&self.exchange, &self.tried));
        }
        if let Some(selected) = refreshed {
            return Ok(selected);
        }
        let refresh_limit = self.refresh_limit();
        select(&self.exchange, &mut self.tried, refresh_limit).await
    }

    async fn rewrite(
        &mut self,
        selected: &Selected,
        others: OtherCredentials,
    ) -> Result<Rewritten, Refusal> {
        let can_refresh =
            self.body.can_be_sent_again() && matches!(self.refresh, RefreshUse::Unused);
        // A last attempt takes them: copying them would be for nothing.
        let headers = if others == OtherCredentials::Left || can_refresh {
            self.headers.clone()
        } else {
            self.headers.take()
        };
        let head = StrippedHead {
            method: self.method.clone(),
            uri: self.uri.clone(),
            headers: headers.unwrap_or_default(),
        };
        rewrite(&self.exchange, selected, head, &mut self.body).await
    }

    async fn forward(
        &mut self,
        selected: &Selected,
        rewritten: Rewritten,
    ) -> Result<Sent, NoResponse> {
        let limit = self.head_limit();
        forward(&mut self.exchange, selected, rewritten, limit).await
    }

    async fn judge(
        &mut self,
        forwarded: Result<Sent, NoResponse>,
        others: OtherCredentials,
    ) -> AttemptVerdict {
        let refresh = match self.refresh {
            RefreshUse::Unused => RefreshAllowance::Unused {
                limit: self.refresh_limit(),
            },
            RefreshUse::Refreshed(_) | RefreshUse::Used => RefreshAllowance::Used,
        };
        judge(&self.exchange, forwarded, others, refresh).await
    }

    /// Returns what the client gets when no credential is left to be tried.
    fn final_failure(&mut self, none_usable: Refusal) -> Result<UpstreamAnswer, Refusal> {
        match mem::replace(&mut self.last, FailedAttempt::Unusable) {
            FailedAttempt::Answer(answer) => Ok(answer),
            FailedAttempt::Refusal(refusal) => Err(refusal),
            FailedAttempt::Unusable => Err(none_usable),
        }
    }

    fn retry_refreshed(&mut self, selected: Selected, identity: Arc<UpstreamIdentity>) {
        self.refresh = RefreshUse::Refreshed(Selected {
            identity,
            ..selected
        });
    }

    fn refreshed(&mut self) -> Option<Selected> {
        match mem::replace(&mut self.refresh, RefreshUse::Used) {
            RefreshUse::Unused => {
                self.refresh = RefreshUse::Unused;
                None
            }
            RefreshUse::Refreshed(selected) => Some(selected),
            RefreshUse::Used => None,
        }
    }

    fn others(&self) -> OtherCredentials {
        if !self.body.can_be_sent_again() {
            OtherCredentials::BodyConsumed
        } else if Instant::now() < self.deadline
            && has_other(&self.exchange, &self.tried, Timestamp::now())
        {
            OtherCredentials::Left
        } else {
            OtherCredentials::NoneLeft
        }
    }

    /// Returns how long a refresh of tokens is awaited: as long as one may take, and no longer than
    /// the request may.
    fn refresh_limit(&self) -> Duration {
        self.exchange.service().refresh_wait().min(self.time_left())
    }

    /// Returns how long an attempt waits for its response's head. Every attempt but the first has
    /// the time that is left.
    fn head_limit(&self) -> Duration {
        let limit = self.exchange.service().limits().upstream_head_timeout;
        if self.exchange.attempts().is_empty() {
            limit
        } else {
            limit.min(self.time_left())
        }
    }

    fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Chat completions exist only with an API key.
    ///
    /// # Errors
    /// The request asks for them, and a member of the pool is a ChatGPT login.
    fn check_pool_has_endpoint(&self) -> Result<(), Refusal> {
        let has_login = || {
            self.exchange
                .pool()
                .credentials()
                .filter_map(|credential| credential.identity())
                .any(|identity| identity.kind() == CredentialKind::OAuth)
        };
        if self.uri.path() == CHAT_COMPLETIONS && has_login() {
            return Err(Refusal::api_key_only());
        }
        Ok(())
    }

    /// # Errors
    /// As [`Self::check_pool_has_endpoint`], for the chosen credential: its file may have appeared
    /// in the meantime.
    fn check_credential_has_endpoint(&self, selected: &Selected) -> Result<(), Refusal> {
        if self.uri.path() == CHAT_COMPLETIONS && selected.identity.kind() == CredentialKind::OAuth
        {
            return Err(Refusal::api_key_only());
        }
        Ok(())
    }
}
