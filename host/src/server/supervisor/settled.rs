//! Loads components from files that another process may still be writing.

use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::config::PolicyConfig;
use crate::files::FileSettling;
use crate::policy::{ComponentBytes, PolicyLoadError};

/// What a component's file holds.
pub(crate) enum LoadedComponent<T> {
    /// The component that is known already.
    Unchanged,
    New(T),
}

/// Loads the component of `policy` with `load`, again and again while it may be half written.
///
/// All reading, hashing and loading happens on a blocking thread. A component whose digest is
/// `known` is not loaded.
///
/// # Errors
/// The component cannot be used, and its file no longer changes.
pub(crate) async fn load_settled<T: Send + 'static>(
    policy: &PolicyConfig,
    known: Option<String>,
    load: impl Fn(&ComponentBytes) -> Result<T, PolicyLoadError> + Clone + Send + 'static,
) -> Result<LoadedComponent<T>, PolicyLoadError> {
    let mut settling = FileSettling::new();
    loop {
        let attempt = {
            let (policy, known, load) = (policy.clone(), known.clone(), load.clone());
            move || load_once(&policy, known.as_deref(), load)
        };
        let (digest, loaded) = spawn_blocking(attempt)
            .await
            .unwrap_or_else(|_| (None, Err(PolicyLoadError::panicked(&policy.tag))));
        let Err(error) = loaded else { return loaded };
        let Some(pause) = pause_before_retry(&error, &mut settling, digest) else {
            return Err(error);
        };
        sleep(pause).await;
    }
}

fn pause_before_retry(
    error: &PolicyLoadError,
    settling: &mut FileSettling<Option<String>>,
    digest: Option<String>,
) -> Option<Duration> {
    if !error.may_be_half_written() {
        return None;
    }
    settling.pause_after(digest)
}

/// Reads and loads once. Returns the digest of what was read, too.
fn load_once<T>(
    policy: &PolicyConfig,
    known: Option<&str>,
    load: impl Fn(&ComponentBytes) -> Result<T, PolicyLoadError>,
) -> (Option<String>, Result<LoadedComponent<T>, PolicyLoadError>) {
    let source = match ComponentBytes::read(policy) {
        Ok(source) => source,
        Err(error) => return (None, Err(error)),
    };
    let digest = source.digest_hex();
    let loaded = if known == Some(&*digest) {
        Ok(LoadedComponent::Unchanged)
    } else {
        load(&source).map(LoadedComponent::New)
    };
    (Some(digest), loaded)
}
