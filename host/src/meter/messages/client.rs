//! Messages from the client: what a `response.create` asks for.

use crate::meter::request::{self, RequestFields};
use crate::values::json::scan::{JsonScalar, JsonScan, ScanFlow, WantedKey};

const TYPE: u8 = request::FIRST_FREE;
const GENERATE: u8 = TYPE + 1;

const CREATE_KEYS: &[WantedKey] = &[
    WantedKey::scalar("type", TYPE),
    WantedKey::scalar("generate", GENERATE),
    WantedKey::scalar("model", request::MODEL),
    WantedKey::scalar("service_tier", request::TIER),
    WantedKey::scalar("prompt_cache_key", request::CACHE_KEY),
    WantedKey::scalar("previous_response_id", request::PREVIOUS),
];

/// A message that asks for a response.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResponseCreate {
    /// The fields that a request's body has, too.
    pub fields: RequestFields,
    /// Whether nothing should be generated: Codex warms up a connection in this way.
    pub prewarm: bool,
}

/// Reads the messages from the client, one after another.
#[derive(Debug)]
pub struct ClientMessageScan {
    scan: JsonScan,
    create: ResponseCreate,
    is_create: bool,
}

impl Default for ClientMessageScan {
    fn default() -> Self {
        Self {
            scan: JsonScan::new(CREATE_KEYS),
            create: ResponseCreate::default(),
            is_create: false,
        }
    }
}

impl ClientMessageScan {
    /// Begins a message, and forgets the one before it.
    pub fn begin(&mut self) {
        self.scan.reset();
        self.create = ResponseCreate::default();
        self.is_create = false;
    }

    /// Reads a piece of the message.
    pub fn feed(&mut self, piece: &[u8]) {
        let (create, is_create) = (&mut self.create, &mut self.is_create);
        self.scan.feed(piece, |name, scalar| match name {
            TYPE => {
                *is_create = scalar == JsonScalar::Text(b"response.create");
                if *is_create {
                    ScanFlow::Continue
                } else {
                    ScanFlow::Stop
                }
            }
            GENERATE => {
                create.prewarm = scalar == JsonScalar::Bare(b"false");
                ScanFlow::Continue
            }
            _ => create.fields.record(name, scalar),
        });
    }

    /// Ends the message and returns it if it is a `response.create`.
    pub fn end(&mut self) -> Option<ResponseCreate> {
        let create = std::mem::take(&mut self.create);
        self.is_create.then_some(create)
    }
}
