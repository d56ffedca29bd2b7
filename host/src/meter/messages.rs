//! Messages of a WebSocket, read while they pass.
//!
//! A message that cannot contain anything of interest is read up to its `type` and no further.

mod client;
mod upstream;

pub use client::{ClientMessageScan, ResponseCreate};
pub use upstream::{UpstreamMessage, UpstreamMessageScan};

#[cfg(test)]
mod tests;
