//! Calls that can be repeated: the arguments of a call and its outcome, to the bit and without
//! secrets.
//!
//! A policy sees no secret, so its arguments contain none. What a rewriter writes may be a secret
//! of the operator: of a value only a digest is recorded, which distinguishes two values.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::policy::contract::facts::{CallPurpose, RequestFacts};
use crate::policy::engine::fault::PolicyFault;
use crate::values::clock::Timestamp;
use crate::values::exchange::ClientTransport;
use crate::values::hex::hex;

/// The bytes of a value's digest that are recorded.
const VALUE_DIGEST_BYTES: usize = 8;

/// [`RequestFacts`] that own their strings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OwnedRequestFacts {
    /// The request's id. It is not passed to policies.
    pub request_id: String,
    user: String,
    session: String,
    model: String,
    service_tier: String,
    path: String,
    method: String,
    service: String,
    credential: String,
    /// The number of the transport in the contract.
    transport: u32,
    attempt: u32,
    now_ms: u64,
    /// The seed as policies see it: below 2^53.
    seed: u64,
    sequence: u64,
}

impl OwnedRequestFacts {
    pub(crate) fn of(facts: &RequestFacts<'_>) -> Self {
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
            seed: facts.visible_seed(),
            sequence: facts.sequence,
        }
    }

    /// Borrows the facts for a call.
    pub(crate) fn facts(&self) -> RequestFacts<'_> {
        RequestFacts {
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
            purpose: CallPurpose::Request,
        }
    }
}

/// A call and its outcome: one line of a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedCall {
    /// The tag of the policy that was called.
    pub policy: String,
    /// The number of the policy's generation.
    pub generation: u64,
    /// The SHA-256 of the component.
    pub digest: String,
    /// The duration in nanoseconds.
    pub took_ns: u64,
    /// The facts about the request.
    pub request: OwnedRequestFacts,
    /// The arguments besides these facts.
    #[serde(flatten)]
    pub arguments: CallArguments,
    /// The result after the host's checks.
    #[serde(rename = "said")]
    pub outcome: CallOutcome,
}

/// The arguments of a call, besides the facts about the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub enum CallArguments {
    /// Choose a pool's member.
    Pick {
        /// The names of the table's columns.
        columns: Vec<String>,
        /// Tag and plan of each member.
        members: Vec<(String, String)>,
        /// The table, one row per member.
        table: Vec<f64>,
        /// The index of the member that is the session's home, or -1.
        home: i32,
    },
    /// Edit the header fields of a request.
    RewriteRequest {
        /// The fields that the policy wants to see.
        headers: Vec<(String, String)>,
    },
    /// Edit the header fields of a response.
    RewriteResponse {
        /// An HTTP status code.
        status: u32,
        /// The fields that the policy wants to see.
        headers: Vec<(String, String)>,
    },
    /// Price the token counts of a response.
    Price {
        /// The names of the counts.
        columns: Vec<String>,
        /// The counts, in the order of the columns.
        counts: Vec<f64>,
    },
}

/// What a call returned, or why it failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "says", rename_all = "kebab-case")]
pub enum CallOutcome {
    /// A balancer chose a member.
    Member {
        /// The member's index in the pool.
        index: usize,
        /// Whether the member becomes the session's home.
        move_home: bool,
    },
    /// A balancer chose none of the members.
    #[serde(rename = "nobody")]
    NoMember {
        /// The reason that the policy gives, shortened.
        reason: String,
    },
    /// A rewriter edited header fields.
    Edits {
        /// The edits, in order.
        edits: Vec<RecordedEdit>,
    },
    /// A rewriter refused the request.
    Refused {
        /// An HTTP status code.
        status: u32,
        /// The message to the client.
        message: String,
    },
    /// A pricer returned a price.
    Priced {
        /// The price in nano-dollars.
        nanousd: u64,
        /// The context window that the price is for.
        context_window: u64,
    },
    /// A pricer returned no price.
    Unpriced {
        /// The reason that the policy gives, shortened.
        reason: String,
    },
    /// The call failed, or its result was rejected by the host.
    Failed {
        /// The kind of the fault, as metrics name it.
        fault: String,
        /// The reason, as the log names it.
        detail: String,
    },
}

/// A recorded edit of a header field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedEdit {
    /// `set`, `append` or `remove`.
    pub edit: String,
    /// The field's name in lower case.
    pub name: String,
    /// The first bytes of the value's SHA-256, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_sha256: Option<String>,
}

impl RecordedEdit {
    pub(crate) fn new(edit: &str, name: &str, value: Option<&[u8]>) -> Self {
        Self {
            edit: edit.to_owned(),
            name: name.to_owned(),
            value_sha256: value.map(value_digest),
        }
    }
}

fn value_digest(value: &[u8]) -> String {
    hex(&Sha256::digest(value)[..VALUE_DIGEST_BYTES])
}

impl CallOutcome {
    pub(crate) fn failed(fault: &PolicyFault) -> Self {
        Self::Failed {
            fault: fault.kind().as_str().to_owned(),
            detail: fault.detail().to_owned(),
        }
    }

    /// Returns whether both outcomes mean the same. Two failures of one kind do, even if their
    /// details differ.
    pub(crate) fn agrees_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Failed { fault, .. }, Self::Failed { fault: other, .. }) => fault == other,
            _ => self == other,
        }
    }
}
