//! The bytes of a component and their digest.

use sha2::{Digest, Sha256};

use super::load_error::{LoadStage, PolicyLoadError};
use super::shipped;
use crate::config::{PolicyConfig, PolicySource};
use crate::files::read_regular;
use crate::policy::engine::compile::ComponentDigest;
use crate::values::hex::hex;
use crate::values::limits::COMPONENT_BYTES;

/// A component as it was read. Reading and hashing it blocks for as long as a file of up to
/// [`COMPONENT_BYTES`] takes.
pub(crate) struct ComponentBytes {
    bytes: Vec<u8>,
    digest: ComponentDigest,
}

impl std::fmt::Debug for ComponentBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ComponentBytes")
            .field("digest", &self.digest_hex())
            .finish_non_exhaustive()
    }
}

impl ComponentBytes {
    /// Reads the component of `policy`.
    ///
    /// # Errors
    /// The component's file cannot be read.
    pub(crate) fn read(policy: &PolicyConfig) -> Result<Self, PolicyLoadError> {
        let bytes = match &policy.source {
            PolicySource::Shipped(shipped) => shipped::component(*shipped).to_vec(),
            PolicySource::File(path) => read_regular(path, COMPONENT_BYTES).map_err(|reason| {
                let reason = format!("{}: {reason}", path.display());
                PolicyLoadError::rejected(&policy.tag, LoadStage::Read, reason)
            })?,
        };
        let digest = Sha256::digest(&*bytes).into();
        Ok(Self { bytes, digest })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn digest(&self) -> ComponentDigest {
        self.digest
    }

    /// Returns the component's length in bytes.
    pub(crate) fn length(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the SHA-256 in hexadecimal.
    pub(crate) fn digest_hex(&self) -> String {
        hex(&self.digest)
    }
}
