//! Requests: what decides their answer, and what is remembered of them.

pub(crate) mod asked;
pub(crate) mod seen;
