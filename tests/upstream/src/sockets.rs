//! WebSockets: what upstream answers to a handshake, what it does on a socket, and what it saw.

pub(crate) mod handshake;
pub(crate) mod seen_socket;
pub(crate) mod socket;
pub(crate) mod socket_reply;
