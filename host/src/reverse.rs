//! Reverse connections between gateways: a gateway that cannot be reached connects to another one,
//! and requests flow over that connection in the other direction.
//!
//! Owns the upgrade by which such a connection begins, and the session that it becomes: a
//! multiplexer of streams, each of which is one HTTP/1.1 connection. Does not know how a connection
//! is made, or what a request is. Invariant: a peer can hold only bounded memory, however it
//! behaves.

mod mux;
mod pause;
mod slot;
mod upgrade;

use http::Uri;

pub use mux::{
    MuxEnd, MuxLimits, MuxOpenError, MuxSession, MuxSide, MuxStream, StreamRefused, multiplex,
};
pub use pause::{ConnectorOutcome, ReconnectPause, ReconnectPauses};
pub use slot::{ReverseError, ReverseSlot};
pub use upgrade::{REVERSE_PATH, REVERSE_PROTOCOL, ReverseUpgradeError, ask_to_reverse};

/// The scheme of a URI whose request is sent over a reverse connection. No configuration can name
/// it.
const SCHEME: &str = "reverse";

/// Returns the base of the URIs that are sent over a reverse connection. Its host is that of the
/// field `Host`, by the protocol.
pub fn reverse_base() -> Uri {
    Uri::from_static("reverse://reverse-proxy")
}

/// Returns whether the request for `uri` is sent over a reverse connection.
pub fn is_over_reverse(uri: &Uri) -> bool {
    uri.scheme_str() == Some(SCHEME)
}
