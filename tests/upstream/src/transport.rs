//! Connections below HTTP: the bare socket, and the frames of HTTP/2 that hyper does not write.

pub(crate) mod http2;
pub(crate) mod http2_side;
pub(crate) mod wire;
