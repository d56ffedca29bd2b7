//! Token refreshes beside other credentials, other holders of the lock and other writers of the
//! file; through links; and with a misbehaving token endpoint.

mod endpoint;
mod links;
mod others;
mod outliving;

use std::path::PathBuf;

use tollgate_tests::Rig;

/// Returns the path of the credential's file with `suffix` added.
fn beside(rig: &Rig, suffix: &str) -> PathBuf {
    rig.path(&format!("a.json{suffix}"))
}
