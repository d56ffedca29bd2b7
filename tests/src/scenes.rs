//! Arrangements that several scenarios share: a rig, its running gateway, and checks of both.

pub(crate) mod bad_peer;
pub mod canary;
pub(crate) mod echo;
pub(crate) mod login;
pub mod reverse;
pub(crate) mod team;
pub(crate) mod tls;
pub(crate) mod upgrade;
pub(crate) mod watched_file;
