//! Reading JSON beside `serde_json`: a scanner for objects that arrive in pieces, and words for
//! kinds of values.

pub(crate) mod kind;
pub mod scan;
