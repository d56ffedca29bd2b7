//! The files that credentials read or write, over all services. Credentials may share an auth.json,
//! or a usage file, but no file is both, however it is spelled.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Component, Path, PathBuf};

use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;

#[derive(Default)]
pub(super) struct ClaimedFiles {
    /// The first claim of each file, by the file's canonical path.
    claims: HashMap<PathBuf, FileClaim>,
}

struct FileClaim {
    field: ConfigPath,
    content: FileContent,
    /// The path as the field spells it.
    path: PathBuf,
}

/// What a file contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileContent {
    /// Tokens or a key: an auth.json.
    Credential,
    /// Sums of usage, in sing-box's form.
    Usages,
}

impl ClaimedFiles {
    /// Claims `file` for `field`. Reports a warning if another field has claimed it for the same
    /// content, and a problem if it is for another one. Returns the path by which the first field
    /// names the file: all that share it find each other by that.
    pub(super) fn claim(
        &mut self,
        file: PathBuf,
        content: FileContent,
        field: ConfigPath,
        report: &mut ProblemReport,
    ) -> PathBuf {
        let first = match self.claims.entry(canonical(&file)) {
            Entry::Occupied(first) => first.into_mut(),
            Entry::Vacant(free) => {
                let path = file.clone();
                free.insert(FileClaim {
                    field,
                    content,
                    path,
                });
                return file;
            }
        };
        let same = format!("the same file as {}", first.field);
        match (first.content, content) {
            (FileContent::Credential, FileContent::Credential) => {
                report.warning(field, format!("{same}: they share one account"));
            }
            (FileContent::Usages, FileContent::Usages) => {
                report.warning(field, format!("{same}: it holds the sums of both"));
            }
            (FileContent::Credential, FileContent::Usages)
            | (FileContent::Usages, FileContent::Credential) => report.problem(field, same),
        }
        first.path.clone()
    }
}

/// Returns the path of the existing file with links resolved, or else the absolute path without dot
/// segments.
fn canonical(file: &Path) -> PathBuf {
    if let Ok(found) = file.canonicalize() {
        return found;
    }
    // The file may come later; its folder may be spelled in several ways already now.
    if let (Some(folder), Some(name)) = (file.parent(), file.file_name())
        && let Ok(folder) = folder.canonicalize()
    {
        return folder.join(name);
    }
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let mut plain = PathBuf::new();
    for component in absolute.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}
