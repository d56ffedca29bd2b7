//! What happens to a request: routing, failover, affinity, metering, and peers that misbehave.

mod bad_peers;
mod choosing;
mod connections;
mod failover;
mod faults;
mod inputs;
mod journey;
mod listen;
mod metering;
mod outbounds;
mod requests;
mod sessions;
mod upgrade;
