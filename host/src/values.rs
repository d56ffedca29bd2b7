//! Floor 0: the values that the floors above share. They do not know sockets, files or policies.

pub mod candidate;
pub mod clock;
pub mod counts;
pub mod exchange;
pub mod headers;
pub mod hex;
pub mod histogram;
pub mod json_kind;
pub mod json_scan;
pub mod limits;
pub mod money;
pub mod phase;
pub mod secret;
pub mod windows;
