//! The stages at the gateway's entry: receive, route and authenticate, admit, inspect.
//!
//! They look at what the client sends and never at a credential. Invariant: only an authenticated
//! request is admitted.

pub(super) mod admit;
pub(super) mod body;
mod forwarded;
pub(super) mod inspect;
pub(super) mod receive;
