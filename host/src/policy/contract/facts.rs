//! The facts about a request that a policy may see.
//!
//! Invariant: none of them is a secret. A component gets only the strings that its manifest names.

use crate::values::clock::Timestamp;
use crate::values::exchange::ClientTransport;

/// The bits of a seed that a policy sees: an `f64` represents them exactly.
const SEED_BITS: u64 = (1 << 53) - 1;

/// The facts about a request that policies may see. Strings that the request lacks are empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestFacts<'a> {
    /// The request's id. It is not passed to policies: it identifies the call in records.
    pub request_id: &'a str,
    /// The user's name; empty if the service has no users.
    pub user: &'a str,
    /// The key that the client identifies its session by.
    pub session: &'a str,
    /// The model that the request names.
    pub model: &'a str,
    /// The requested service tier.
    pub service_tier: &'a str,
    /// The path, without the query.
    pub path: &'a str,
    /// The HTTP method; that of the handshake on a WebSocket.
    pub method: &'a str,
    /// The tag of the service that received the request.
    pub service: &'a str,
    /// The selected credential's tag.
    pub credential: &'a str,
    /// The transport between client and gateway.
    pub transport: ClientTransport,
    /// The number of attempts before this one.
    pub attempt: u32,
    /// The time of the call.
    pub now: Timestamp,
    /// A random number; policies see its lower 53 bits.
    pub seed: u64,
    /// The request's sequence number in its pool or service.
    pub sequence: u64,
    /// What the call is for.
    pub purpose: CallPurpose,
}

/// Whether a call is for a request or tests a component.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CallPurpose {
    /// The call is for a request. It is counted, and its faults count against the component.
    #[default]
    Request,
    /// The call tests a component while it is loaded. It is not counted.
    SelfTest,
}

impl<'a> RequestFacts<'a> {
    /// Returns the facts that a component is tested with.
    pub(crate) fn self_test() -> RequestFacts<'static> {
        RequestFacts {
            model: "gpt-5.4",
            path: "/v1/responses",
            method: "POST",
            now: Timestamp::now(),
            purpose: CallPurpose::SelfTest,
            ..RequestFacts::default()
        }
    }

    /// Returns the string that `field` names.
    pub(crate) fn string(&self, field: RequestField) -> &'a str {
        match field {
            RequestField::User => self.user,
            RequestField::Session => self.session,
            RequestField::Model => self.model,
            RequestField::ServiceTier => self.service_tier,
            RequestField::Path => self.path,
            RequestField::Method => self.method,
            RequestField::Service => self.service,
            RequestField::Credential => self.credential,
        }
    }

    /// Returns the seed as policies see it: an integer that an `f64` represents exactly.
    pub(crate) fn visible_seed(&self) -> u64 {
        self.seed & SEED_BITS
    }
}

/// A string of a request that a policy may ask for in its manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestField {
    User,
    Session,
    Model,
    ServiceTier,
    Path,
    Method,
    Service,
    Credential,
}

impl RequestField {
    /// Returns the field that a manifest calls `name`.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "user" => Self::User,
            "session" => Self::Session,
            "model" => Self::Model,
            "service-tier" => Self::ServiceTier,
            "path" => Self::Path,
            "method" => Self::Method,
            "service" => Self::Service,
            "credential" => Self::Credential,
            _ => return None,
        })
    }
}
