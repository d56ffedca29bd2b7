//! Responses over HTTP: their description (`reply`), their bytes and steps (`answer`, `body`), the
//! events of a turn, and how both are encoded. The description knows nothing of the bytes.

pub(crate) mod answer;
pub(crate) mod body;
pub(crate) mod encoding;
pub(crate) mod events;
pub(crate) mod reply;
pub(crate) mod sse;
pub(crate) mod standing;
