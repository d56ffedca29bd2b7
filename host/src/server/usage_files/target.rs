//! Which usage files there are, and whose rows each holds.

use std::path::PathBuf;

use crate::config::ServiceConfig;

/// A usage file, and whose rows it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UsageFileTarget {
    pub(super) path: PathBuf,
    /// Credentials may share a file, which then holds the sums of all of them.
    pub(super) owners: Vec<UsageFileOwner>,
}

/// A credential with a usage file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UsageFileOwner {
    pub(super) service: String,
    pub(super) credential: String,
}

/// Returns the usage files that `services` name.
pub(super) fn targets<'a>(
    services: impl IntoIterator<Item = &'a ServiceConfig>,
) -> Vec<UsageFileTarget> {
    let mut targets: Vec<UsageFileTarget> = Vec::new();
    for service in services {
        for credential in &service.credentials {
            let Some(path) = &credential.usages_path else {
                continue;
            };
            let owner = UsageFileOwner {
                service: service.tag.clone(),
                credential: credential.tag.clone(),
            };
            match targets.iter_mut().find(|target| target.path == *path) {
                Some(shared) => shared.owners.push(owner),
                None => targets.push(UsageFileTarget {
                    path: path.clone(),
                    owners: vec![owner],
                }),
            }
        }
    }
    targets
}
