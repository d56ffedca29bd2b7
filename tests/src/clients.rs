//! What speaks to the gateway: a well-behaved client, its sockets, a peer that sends any bytes, and
//! the certificates that clients trust.

pub(crate) mod authority;
pub(crate) mod client;
pub mod frames;
pub mod peer;
pub(crate) mod socket;
