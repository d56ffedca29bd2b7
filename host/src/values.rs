//! Floor 0: the values that the floors above share. They do not know sockets, files or policies.

pub mod clock;
pub mod credential;
pub mod exchange;
pub mod headers;
pub mod hex;
pub mod histogram;
pub mod json;
pub mod limits;
pub mod phase;
pub mod secret;
