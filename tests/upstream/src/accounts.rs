//! Accounts: their scripted replies, and how many requests they received.

pub(crate) mod account;
pub(crate) mod script;
