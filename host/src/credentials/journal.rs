//! The journal of a refresh: a file beside auth.json that says which refresh token is being spent, and then what the
//! token endpoint gave for it. A process that is killed at any instant in between leaves what the next one needs.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::auth_file::Fingerprint;
use crate::files::{beside, read_regular, remove, replace_private};
use crate::values::limits::AUTH_FILE_BYTES;

/// What the journal's name has more than that of its file.
const SUFFIX: &str = ".refresh-journal";

/// Tokens that the token endpoint gave.
#[derive(Serialize, Deserialize)]
pub(super) struct NewTokens {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id_token: Option<Zeroizing<String>>,
    access_token: Zeroizing<String>,
    /// None where the one that was shown stays in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_token: Option<Zeroizing<String>>,
}

impl NewTokens {
    /// Reads the token endpoint's answer (RFC 6749, section 5.1). None where it has no access token.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let tokens: Self = serde_json::from_slice(body).ok()?;
        (!tokens.access_token.is_empty()).then_some(tokens)
    }

    /// Which access token it is, as it is known of one that a file has.
    pub(super) fn access(&self) -> Fingerprint {
        Fingerprint::of(Zeroizing::new(format!("Bearer {}", self.access_token.as_str())).as_bytes())
    }

    /// The members of `tokens` in an auth.json that change.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("id_token", self.id_token.as_ref()),
            ("access_token", Some(&self.access_token)),
            ("refresh_token", self.refresh_token.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, token)| Some((name, token?.as_str())))
        .filter(|(_, token)| !token.is_empty())
    }

    #[cfg(test)]
    pub(super) fn of(id: Option<&str>, access: &str, refresh: Option<&str>) -> Self {
        let secret = |text: &str| Zeroizing::new(text.to_owned());
        Self {
            id_token: id.map(secret),
            access_token: secret(access),
            refresh_token: refresh.map(secret),
        }
    }
}

/// What a journal says.
#[derive(Serialize, Deserialize)]
pub(super) struct Entry {
    /// The refresh token that was shown, or is about to be.
    pub(super) spent: Fingerprint,
    /// When its successors were given, RFC 3339.
    pub(super) at: String,
    /// What was given for it; none where no answer came yet.
    pub(super) tokens: Option<NewTokens>,
}

/// The journal of one auth.json. Whoever writes it holds the file's lock.
pub(super) struct Journal {
    path: PathBuf,
}

impl Journal {
    /// The journal of the auth.json at `file`.
    pub(super) fn of(file: &Path) -> Self {
        Self {
            path: beside(file, SUFFIX),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What it says; none where there is no journal, or one that says nothing that can be read: it is replaced as a
    /// whole, so that was never ours.
    pub(super) fn read(&self) -> Option<Entry> {
        let bytes = read_regular(&self.path, AUTH_FILE_BYTES)
            .map(Zeroizing::new)
            .ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    pub(super) fn exists(&self) -> bool {
        self.path.symlink_metadata().is_ok()
    }

    /// # Errors
    /// It cannot be written.
    pub(super) fn write(&self, entry: &Entry) -> io::Result<()> {
        let text = Zeroizing::new(serde_json::to_vec(entry).map_err(io::Error::other)?);
        replace_private(&self.path, &text)
    }

    /// # Errors
    /// It is still there.
    pub(super) fn remove(&self) -> io::Result<()> {
        remove(&self.path)
    }
}
