//! The section `certificate`: what verifies the certificates of upstream.

use std::path::PathBuf;

use super::field;
use crate::config::model::{PemContent, PemSource, TrustConfig, TrustStore};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::{OneOrMany, RawTrust};
use crate::values::secret::SecretString;

/// Resolves the section `certificate`.
pub(super) fn trust(raw: &RawTrust, report: &mut ProblemReport) -> TrustConfig {
    let path = ConfigPath::root().key("certificate");
    let inline = raw.certificate.as_slice().join("\n");
    let inline = (!inline.is_empty()).then(|| PemSource {
        field: path.key("certificate"),
        content: PemContent::Inline(SecretString::new(inline)),
    });
    let files =
        named(&path, "certificate_path", &raw.certificate_path).map(|(field, file)| PemSource {
            field,
            content: PemContent::File(file),
        });
    let folders: Vec<_> = named(
        &path,
        "certificate_directory_path",
        &raw.certificate_directory_path,
    )
    .collect();
    for (field, folder) in &folders {
        if !folder.try_exists().unwrap_or(true) {
            report.warning(field.clone(), "without effect: there is no such folder");
        }
    }
    TrustConfig {
        store: store(&path.key("store"), raw.store.as_deref(), report),
        certificates: inline.into_iter().chain(files).collect(),
        folders,
    }
}

fn named<'a>(
    path: &ConfigPath,
    name: &str,
    list: &'a OneOrMany<String>,
) -> impl Iterator<Item = (ConfigPath, PathBuf)> + 'a {
    let field = path.key(name);
    list.as_slice()
        .iter()
        .enumerate()
        .filter_map(move |(index, text)| Some((field.index(index), field::file(Some(text))?)))
}

fn store(field: &ConfigPath, name: Option<&str>, report: &mut ProblemReport) -> TrustStore {
    match field::non_empty(name) {
        None | Some("system") => TrustStore::System,
        Some("none") => TrustStore::Empty,
        Some(included @ ("mozilla" | "chrome")) => {
            let message = format!("{included} is not included: the system's certificates are used");
            report.warning(field.clone(), message);
            TrustStore::System
        }
        Some(other) => {
            let message = format!(
                "expected \"system\", \"mozilla\", \"chrome\" or \"none\", found {other:?}"
            );
            report.problem(field.clone(), message);
            TrustStore::System
        }
    }
}
