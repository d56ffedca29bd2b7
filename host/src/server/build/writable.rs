//! What a gateway could not write, as far as that can be known without writing: its data folder, the
//! logins that it refreshes, and usage files.

use std::path::Path;
use std::sync::Arc;

use crate::config::{ConfigPath, ConfigProblem, CredentialSource, ServiceConfig};
use crate::credentials::{Credential, CredentialKind};
use crate::files::{check_not_fixed, parent_folder};
use crate::platform::is_writable_folder;

/// Returns a warning if the data folder cannot be created or written.
pub(super) fn unwritable_data_dir(data_dir: &Path) -> Option<ConfigProblem> {
    // A relative path ends with the working directory.
    let mut folders = data_dir.ancestors().map(or_working_directory);
    let existing = folders.find(|folder| folder.exists())?;
    let reason = unwritable(existing)?;
    let message = format!("the gateway cannot start: {reason}");
    Some(ConfigProblem::new(
        ConfigPath::root().key("data_dir"),
        message,
    ))
}

/// Returns a warning for each login and each usage file of a service that cannot be replaced.
pub(super) fn unwritable_files(
    service: &ServiceConfig,
    credentials: &[Arc<Credential>],
) -> Vec<ConfigProblem> {
    let mut warnings = Vec::new();
    for (config, credential) in service.credentials.iter().zip(credentials) {
        let mut warn = |message: String| {
            let (service, tag) = (&service.tag, &config.tag);
            let message = format!("service {service:?}, credential {tag:?}: {message}");
            warnings.push(ConfigProblem::without_path(message));
        };
        let is_refreshed = credential
            .identity()
            .is_some_and(|identity| identity.kind() == CredentialKind::OAuth);
        if let CredentialSource::File(file) = &config.source
            && is_refreshed
            && let Some(reason) = irreplaceable(file)
        {
            warn(format!("its tokens cannot be refreshed: {reason}"));
        }
        if let Some(file) = &config.usages_path
            && let Some(reason) = unwritable(or_working_directory(parent_folder(file)))
        {
            warn(format!("{} cannot be written: {reason}", file.display()));
        }
    }
    warnings
}

/// Returns why an existing file, or the target of a link, cannot be replaced.
fn irreplaceable(file: &Path) -> Option<String> {
    let target = file.canonicalize().ok()?;
    if let Some(reason) = unwritable(parent_folder(&target)) {
        return Some(reason);
    }
    let fixed = check_not_fixed(&target).err()?;
    Some(fixed.to_string())
}

/// Returns why no file can be created in `folder`.
fn unwritable(folder: &Path) -> Option<String> {
    let place = folder.display();
    if !folder.exists() {
        Some(format!("there is no folder {place}"))
    } else if !folder.is_dir() {
        Some(format!("{place} is not a folder"))
    } else if !is_writable_folder(folder) {
        Some(format!("the folder {place} is not writable"))
    } else {
        None
    }
}

fn or_working_directory(folder: &Path) -> &Path {
    if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    }
}
