//! The numbers that are known of a credential. They hold no secret.

pub mod candidate;
pub mod windows;
