//! Tollgate: a gateway in front of several OpenAI Codex credentials and API keys.
//!
//! WebAssembly policies choose a credential for each request, edit its header fields and price its
//! usage. A ledger records what each user spent.
//!
//! Modules stand on floors, and each imports only from lower ones: `ARCHITECTURE.md` has the
//! picture. The library exists for the `tollgate` command, the tests, the benchmark and the fuzz
//! targets; its interface is not stable.

// Floor 0
pub(crate) mod platform;
pub mod values;
// Floor 1
pub(crate) mod files;
// Floor 2
pub mod config;
pub mod reverse;
// Floor 3
pub(crate) mod acme;
pub(crate) mod authenticate;
pub mod credentials;
pub mod frames;
pub(crate) mod ledger;
pub(crate) mod listener;
pub mod meter;
pub(crate) mod metrics;
pub mod policy;
pub(crate) mod sessions;
pub(crate) mod tls;
pub mod upstream;
pub(crate) mod usage_file;
pub(crate) mod watch;
// Floor 4
mod pipeline;
// Floor 5
pub mod server;
// Floor 6
pub mod cli;
