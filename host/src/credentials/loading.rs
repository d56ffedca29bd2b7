//! Loads a credential from its source, and again when its file changes. Blocks on the disk.
//!
//! Does not know when a file changed. Invariant: a file that may be half-written does not replace a
//! usable one.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::time::timeout_at;

use super::auth_file;
use super::credential::Credential;
use super::identity::UpstreamIdentity;
use super::state::{CredentialLoadError, LoadedSource, StateChange};
use crate::config::CredentialSource;
use crate::values::clock::Timestamp;

/// What a file that exists and cannot be used means for a credential that is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokenFile {
    /// Nothing yet: another process may still be writing it.
    Ignore,
    /// The credential is unavailable.
    Accept,
}

/// What a check of a credential's file found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileCheck {
    /// What is known already.
    Unchanged,
    /// Something else, which was loaded.
    Loaded(Result<(), CredentialLoadError>),
    /// A file that cannot be used, perhaps because another process is writing it: the known
    /// identity stays.
    Incomplete,
}

impl Credential {
    /// Loads it.
    ///
    /// # Errors
    /// It is unavailable.
    pub fn load(&self, now: Timestamp) -> Result<(), CredentialLoadError> {
        if self.is_external() {
            let (result, change) = self.load_external(now);
            self.announce_load(change);
            result
        } else {
            self.apply_load(self.read_source(), now)
        }
    }

    /// Notes that its reverse connection was made, replaced or closed.
    pub fn reverse_changed(&self, now: Timestamp) {
        self.state().poll_again();
        // Requests in flight are left alone: they end with their connection, which may let them
        // finish first.
        let (_, change) = self.load_external(now);
        self.publish(StateChange {
            became_unusable: Vec::new(),
            ..change
        });
        self.login().request_polls();
    }

    /// Whether it could be used if its reverse connection were there.
    pub fn is_disconnected(&self) -> bool {
        self.load_error() == Some(CredentialLoadError::NotConnected)
    }

    /// Waits for its reverse connection, if that ended shortly before: the other gateway may be
    /// connecting again right now. Returns whether there is one.
    pub async fn until_reconnected(&self) -> bool {
        let Some(slot) = self.reverse_slot() else {
            return false;
        };
        let mut changes = self.changes();
        let connected =
            async { while self.is_disconnected() && changes.changed().await.is_ok() {} };
        let deadline = slot.return_deadline().into();
        timeout_at(deadline, connected).await.is_ok()
    }

    /// Loads it again if its file changed.
    pub fn check_file(&self, broken: BrokenFile, now: Timestamp) -> FileCheck {
        let loaded = self.read_source();
        let state = self.state();
        let is_current = state.is_current(&loaded);
        let is_known_usable = state.identity().is_ok();
        drop(state);
        if is_current {
            return FileCheck::Unchanged;
        }
        let is_broken = loaded.identity.is_err() && loaded.digest.is_some();
        if is_broken && is_known_usable && broken == BrokenFile::Ignore {
            return FileCheck::Incomplete;
        }
        FileCheck::Loaded(self.apply_load(loaded, now))
    }

    fn apply_load(&self, loaded: LoadedSource, now: Timestamp) -> Result<(), CredentialLoadError> {
        let result = result_of(&loaded);
        let change = self.state().apply_load(loaded, now);
        self.announce_load(change);
        result
    }

    /// Loads another gateway. Nothing is read from the disk: the lock is held, so that what is
    /// applied last is what its reverse connection is.
    fn load_external(&self, now: Timestamp) -> (Result<(), CredentialLoadError>, StateChange) {
        let mut state = self.state();
        let loaded = self.read_source();
        (result_of(&loaded), state.apply_load(loaded, now))
    }

    fn announce_load(&self, change: StateChange) {
        self.publish(change);
        self.login().request_refreshes();
        self.login().request_polls();
    }

    /// Returns `true` to one caller per interval if the file should be read again for requests: the
    /// credential is unavailable or upstream rejected its token. That caller reads the file.
    pub fn claim_reload(&self, now: Timestamp) -> bool {
        self.state().claim_reload(now)
    }

    /// Returns what it presents to upstream, if it is loaded.
    pub fn identity(&self) -> Option<Arc<UpstreamIdentity>> {
        self.state().identity().ok().cloned()
    }

    /// Returns why it is not loaded, if it is not.
    pub fn load_error(&self) -> Option<CredentialLoadError> {
        self.state().identity().err().cloned()
    }
}

impl Credential {
    fn read_source(&self) -> LoadedSource {
        let is_connected = self.reverse_slot().is_some_and(|slot| slot.is_connected());
        match self.source() {
            CredentialSource::External { url: None, .. } if !is_connected => LoadedSource {
                identity: Err(CredentialLoadError::NotConnected),
                digest: None,
            },
            source => read_source(source),
        }
    }
}

fn result_of(loaded: &LoadedSource) -> Result<(), CredentialLoadError> {
    loaded.identity.as_ref().map(drop).map_err(Clone::clone)
}

fn read_source(source: &CredentialSource) -> LoadedSource {
    match source {
        CredentialSource::File(path) => match auth_file::read(path) {
            Ok(text) => LoadedSource {
                identity: auth_file::parse(&text)
                    .map(Arc::new)
                    .map_err(CredentialLoadError::from),
                digest: Some(Sha256::digest(&*text).into()),
            },
            Err(error) => LoadedSource {
                identity: Err(error.into()),
                digest: None,
            },
        },
        CredentialSource::External { token, .. } => LoadedSource {
            identity: UpstreamIdentity::external(token)
                .map(Arc::new)
                .ok_or(CredentialLoadError::ExternalToken),
            digest: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::io::duplex;

    use super::*;
    use crate::config;
    use crate::reverse::{MuxLimits, MuxSession, MuxSide, multiplex};

    const ROUNDS: usize = 2_000;

    fn receive_only() -> Credential {
        let text = r#"{
            "services": [{
                "type": "ocm",
                "credentials": [{ "tag": "x", "type": "external", "token": "t" }],
                "users": [{ "name": "a", "token": "a", "credential": "x" }]
            }]
        }"#;
        let loaded = config::parse(text).expect("no problem");
        let services = loaded.config.services;
        Credential::new(services[0].credentials[0].clone())
    }

    fn session() -> (MuxSession, impl Send) {
        let (io, peer) = duplex(64);
        let limits = MuxLimits {
            streams: 1,
            keep_alive: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
        };
        let (session, driver) = multiplex(io, Bytes::new(), MuxSide::Opener, limits);
        (session, (driver, peer))
    }

    /// One connection ends while the next one is made, again and again.
    #[test]
    fn the_last_change_of_a_connection_is_known() {
        let credential = receive_only();
        let slot = credential.reverse_slot().expect("a slot");
        for round in 0..ROUNDS {
            let (older, _older_io) = session();
            let (newer, _newer_io) = session();
            slot.install(older.clone());
            credential.reverse_changed(Timestamp::now());
            let barrier = Barrier::new(2);
            thread::scope(|scope| {
                scope.spawn(|| {
                    barrier.wait();
                    slot.remove(&older);
                    credential.reverse_changed(Timestamp::now());
                });
                barrier.wait();
                slot.install(newer.clone());
                credential.reverse_changed(Timestamp::now());
            });
            assert!(
                slot.is_connected() && !credential.is_disconnected(),
                "{round}"
            );
            slot.remove(&newer);
        }
    }
}
