//! Calls that can be repeated: what a policy was asked and what it said, to the bit and without secrets.
//!
//! A policy sees no secret, so its arguments have none. What a rewriter writes may be one of its operator's: of a value
//! only a digest is kept, which tells two values apart.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::fault::Fault;
use super::{Facts, balancer, pricer, rewriter};
use crate::values::clock::Timestamp;
use crate::values::exchange::ClientTransport;
use crate::values::hex::hex;

/// A request as policies may know it, for itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OwnFacts {
    /// The request's id. No policy sees it.
    pub request_id: String,
    user: String,
    session: String,
    model: String,
    service_tier: String,
    path: String,
    method: String,
    service: String,
    credential: String,
    transport: u32,
    attempt: u32,
    now_ms: u64,
    /// As the contract has it: below 2^53.
    seed: u64,
    sequence: u64,
}

impl OwnFacts {
    /// Those of `facts`.
    pub fn of(facts: &Facts<'_>) -> Self {
        Self {
            request_id: facts.request_id.to_owned(),
            user: facts.user.to_owned(),
            session: facts.session.to_owned(),
            model: facts.model.to_owned(),
            service_tier: facts.service_tier.to_owned(),
            path: facts.path.to_owned(),
            method: facts.method.to_owned(),
            service: facts.service.to_owned(),
            credential: facts.credential.to_owned(),
            transport: facts.transport.number(),
            attempt: facts.attempt,
            now_ms: facts.now.0,
            seed: facts.seed & SEED,
            sequence: facts.sequence,
        }
    }

    /// As a call takes them.
    pub fn facts(&self) -> Facts<'_> {
        Facts {
            request_id: &self.request_id,
            user: &self.user,
            session: &self.session,
            model: &self.model,
            service_tier: &self.service_tier,
            path: &self.path,
            method: &self.method,
            service: &self.service,
            credential: &self.credential,
            transport: if self.transport == ClientTransport::WebSocket.number() {
                ClientTransport::WebSocket
            } else {
                ClientTransport::Http
            },
            attempt: self.attempt,
            now: Timestamp(self.now_ms),
            seed: self.seed,
            sequence: self.sequence,
            trial: false,
        }
    }
}

/// The bits of a seed that a policy sees: an `f64` holds them exactly.
pub(super) const SEED: u64 = (1 << 53) - 1;

/// A call and what came of it. One line of a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// The policy's tag.
    pub policy: String,
    /// Which of its generations.
    pub generation: u64,
    /// The SHA-256 of the component.
    pub digest: String,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
    /// The request.
    pub request: OwnFacts,
    /// What was asked.
    #[serde(flatten)]
    pub asked: Asked,
    /// What was said.
    pub said: Said,
}

/// What a policy was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub enum Asked {
    /// Which member serves the request.
    Pick {
        /// The names of the table's columns.
        columns: Vec<String>,
        /// Tag and plan of each member.
        members: Vec<(String, String)>,
        /// A row a member.
        table: Vec<f64>,
        /// The member that the session lives on, or -1.
        home: i32,
    },
    /// How a request's header fields are edited.
    RewriteRequest {
        /// Those that the policy wanted to see.
        headers: Vec<(String, String)>,
    },
    /// How a response's are.
    RewriteResponse {
        /// The response's status.
        status: u32,
        /// Those that the policy wanted to see.
        headers: Vec<(String, String)>,
    },
    /// What usage costs.
    Price {
        /// The names of the counts.
        columns: Vec<String>,
        /// The counts.
        counts: Vec<f64>,
    },
}

/// What a policy said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "says", rename_all = "kebab-case")]
pub enum Said {
    /// That member.
    Member {
        /// Its index.
        index: usize,
        /// Whether the session lives there from now on.
        move_home: bool,
    },
    /// None of them.
    Nobody {
        /// Why.
        reason: String,
    },
    /// These edits.
    Edits {
        /// In order.
        edits: Vec<EditSaid>,
    },
    /// The request is refused.
    Refused {
        /// With that status.
        status: u32,
        /// And these words.
        message: String,
    },
    /// That price.
    Priced {
        /// In nano-dollars.
        nanousd: u64,
        /// The context window that it belongs to.
        context_window: u64,
    },
    /// No price.
    Unpriced {
        /// Why.
        reason: String,
    },
    /// It failed.
    Failed {
        /// How, as metrics name it.
        fault: String,
        /// In what words.
        detail: String,
    },
}

/// An edit of a header field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EditSaid {
    /// `set`, `append` or `remove`.
    pub edit: String,
    /// The field.
    pub name: String,
    /// A digest of the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_sha256: Option<String>,
}

impl EditSaid {
    pub(super) fn of(edit: &str, name: &str, value: Option<&[u8]>) -> Self {
        let digest = |value: &[u8]| hex(&Sha256::digest(value)[..8]);
        Self {
            edit: edit.to_owned(),
            name: name.to_owned(),
            value_sha256: value.map(digest),
        }
    }
}

impl Said {
    pub(super) fn failed(fault: &Fault) -> Self {
        Self::Failed {
            fault: fault.kind.as_str().to_owned(),
            detail: fault.detail.clone(),
        }
    }

    /// Whether both mean the same. Two failures of one kind do, whatever their words.
    pub fn agrees_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Failed { fault, .. }, Self::Failed { fault: other, .. }) => fault == other,
            _ => self == other,
        }
    }
}

/// A policy of any kind.
#[derive(Debug, Clone)]
pub enum Policy {
    /// It chooses credentials.
    Balancer(std::sync::Arc<balancer::Balancer>),
    /// It rewrites header fields.
    Rewriter(std::sync::Arc<rewriter::Rewriter>),
    /// It prices usage.
    Pricer(std::sync::Arc<pricer::Pricer>),
}

impl Policy {
    /// What it says to what another one was asked. None where that is of another kind.
    pub fn repeat(&self, call: &Call) -> Option<Said> {
        let facts = call.request.facts();
        match (self, &call.asked) {
            (
                Self::Balancer(balancer),
                Asked::Pick {
                    columns,
                    members,
                    table,
                    home,
                },
            ) => Some(balancer.repeat(&facts, columns, members, table, *home)),
            (Self::Rewriter(rewriter), Asked::RewriteRequest { headers }) => {
                Some(rewriter.repeat_request(&facts, headers))
            }
            (Self::Rewriter(rewriter), Asked::RewriteResponse { status, headers }) => {
                Some(rewriter.repeat_response(&facts, *status, headers))
            }
            (Self::Pricer(pricer), Asked::Price { columns, counts }) => {
                Some(pricer.repeat(&facts, columns, counts))
            }
            _ => None,
        }
    }
}
