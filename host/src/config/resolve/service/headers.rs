//! The header fields that a service sets on requests to upstream.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};

use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::OneOrMany;
use crate::values::headers::is_reserved;

/// Returns the values to set by field name, in the form of the configuration of `standard-headers`.
pub(super) fn headers(
    path: &ConfigPath,
    raw: &BTreeMap<String, OneOrMany<String>>,
    report: &mut ProblemReport,
) -> BTreeMap<String, Vec<String>> {
    let mut headers = BTreeMap::new();
    for (name, values) in raw {
        let field = path.key(name);
        let values = values.as_slice();
        let Ok(name) = name.parse::<HeaderName>() else {
            report.warning(field, "ignored: expected the name of a header field");
            continue;
        };
        if is_reserved(name.as_str()) {
            let message = "ignored: the gateway sets or removes this header field itself";
            report.warning(field, message);
        } else if values.iter().all(|value| is_text(value)) {
            headers.insert(name.as_str().to_owned(), values.to_vec());
        } else {
            let message = "ignored: expected text without control characters, found others";
            report.warning(field, message);
        }
    }
    headers
}

fn is_text(value: &str) -> bool {
    HeaderValue::from_bytes(value.as_bytes()).is_ok()
}
