//! Tollgate: a gateway for several OpenAI Codex credentials and API keys, whose choices (which credential, which
//! header fields, which price) are made by WebAssembly policies.
//!
//! Modules stand on floors; each imports only from lower ones. `ARCHITECTURE.md` has the picture.

// Floor 0
pub mod files;
pub mod values;
// Floor 1
pub mod config;
// Floor 2
pub mod authenticate;
pub mod credentials;
pub mod frames;
pub mod ledger;
pub mod listener;
pub mod meter;
pub mod metrics;
pub mod policy;
pub mod sessions;
pub mod tls;
pub mod upstream;
pub mod usage_file;
pub mod watch;
// Floor 3
pub mod pipeline;
// Floor 4
pub mod server;
// Floor 5
pub mod cli;
