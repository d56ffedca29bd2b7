//! Texts in PEM: in the configuration itself, or in a file that it names.

use crate::config::model::{PemContent, PemSource};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::OneOrMany;
use crate::config::resolve::field;
use crate::values::secret::SecretString;

/// Returns the source of a text in PEM: the field `name`, or the file in `name` with `_path`.
pub(super) fn pem(
    path: &ConfigPath,
    name: &str,
    inline: &OneOrMany<String>,
    file: Option<&str>,
    report: &mut ProblemReport,
) -> Option<PemSource> {
    let file = field::file(file);
    let file_field = path.key(&format!("{name}_path"));
    if let Some(text) = inline_pem(path.key(name), inline) {
        if file.is_some() {
            report.warning(file_field, format!("without effect: {name:?} is set"));
        }
        return Some(text);
    }
    let Some(file) = file else {
        report.problem(file_field, "missing: required because TLS is enabled");
        return None;
    };
    Some(PemSource {
        field: file_field,
        content: PemContent::File(file),
    })
}

/// Returns the text in PEM of `field`, if it has one: its lines, or the text as a whole.
pub(super) fn inline_pem(field: ConfigPath, lines: &OneOrMany<String>) -> Option<PemSource> {
    let text = lines.as_slice().join("\n");
    (!text.is_empty()).then(|| PemSource {
        field,
        content: PemContent::Inline(SecretString::new(text)),
    })
}
