//! What happens to a request: routing, failover, affinity, metering, and peers that misbehave.

mod bad_peers;
mod choosing;
mod drain;
mod failover;
mod faults;
mod http2_upstream;
mod journey;
mod listen;
mod metering;
mod parsers;
mod properties;
mod requests;
mod sessions;
mod tls;
