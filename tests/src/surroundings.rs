//! What surrounds a scenario: file systems, addresses without a listener, the protocol of upstream,
//! and repeatable chance.

pub(crate) mod acme;
pub(crate) mod chance;
#[cfg(target_os = "linux")]
pub(crate) mod mount;
pub(crate) mod nowhere;
pub(crate) mod protocol;
pub(crate) mod proxy;
