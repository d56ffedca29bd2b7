//! Floor 0: the values that the floors above share. They do not know sockets, files or policies.

pub mod clock;
pub mod credential;
pub mod exchange;
pub(crate) mod headers;
pub(crate) mod hex;
pub(crate) mod histogram;
pub mod json;
pub mod limits;
pub(crate) mod phase;
pub(crate) mod secret;
