//! WebSockets: what upstream answers to a handshake, what it is to do on a socket, and what
//! it saw.

pub(crate) mod handshake;
pub(crate) mod seen_socket;
pub(crate) mod socket_reply;
