//! Edits of header fields that a rewriter returns: checked, then applied.
//!
//! Invariant: no edit touches a reserved field. A component can neither see nor set a field that is
//! named like a secret; a shipped rewriter may set one, since it sets what the operator configured.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::guest_text::truncated;
use crate::policy::call::recorded::{CallOutcome, RecordedEdit};
use crate::policy::contract::bindings::types::{Edit, Header};
use crate::policy::engine::fault::CallFailure;
use crate::values::headers::{is_reserved, is_secret_shaped};

/// The most edits of one call.
const EDITS_MAX: usize = 128;

/// The most bytes that the edits of one call may set.
const EDIT_BYTES_MAX: usize = 32 * 1024;

/// In a manifest's list of header fields: all of them.
const ALL_HEADERS: &str = "*";

/// Who decides the values that a rewriter sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EditAuthority {
    /// The operator, through the configuration of a shipped rewriter.
    Operator,
    /// The code of the component.
    Component,
}

/// An edit that can be applied.
pub(super) enum CheckedEdit {
    Set(HeaderName, HeaderValue),
    Append(HeaderName, HeaderValue),
    Remove(HeaderName),
}

/// An edit that cannot be applied.
#[derive(Debug, thiserror::Error)]
enum EditError {
    #[error("expected at most {EDITS_MAX} edits, found {0}")]
    TooMany(usize),
    #[error("expected edits of at most {EDIT_BYTES_MAX} bytes, found {0}")]
    TooLarge(usize),
    #[error("invalid header name {0:?}")]
    InvalidName(String),
    #[error("header {0}: invalid character in its value")]
    InvalidValue(HeaderName),
    #[error("header {0} is reserved")]
    Reserved(HeaderName),
    #[error("header {0} is named like a secret")]
    SecretShaped(HeaderName),
}

/// Checks the edits of one call. All of them can be applied, or none is.
pub(super) fn check(
    edits: Vec<Edit>,
    authority: EditAuthority,
) -> Result<Vec<CheckedEdit>, CallFailure> {
    check_all(edits, authority).map_err(CallFailure::bad_output)
}

fn check_all(edits: Vec<Edit>, authority: EditAuthority) -> Result<Vec<CheckedEdit>, EditError> {
    if edits.len() > EDITS_MAX {
        return Err(EditError::TooMany(edits.len()));
    }
    let mut checked = Vec::with_capacity(edits.len());
    for edit in edits {
        checked.push(check_one(edit, authority)?);
    }
    let bytes: usize = checked.iter().map(CheckedEdit::bytes).sum();
    if bytes > EDIT_BYTES_MAX {
        return Err(EditError::TooLarge(bytes));
    }
    Ok(checked)
}

fn check_one(edit: Edit, authority: EditAuthority) -> Result<CheckedEdit, EditError> {
    Ok(match edit {
        Edit::Set(header) => {
            let (name, value) = check_field(&header, authority)?;
            CheckedEdit::Set(name, value)
        }
        Edit::Append(header) => {
            let (name, value) = check_field(&header, authority)?;
            CheckedEdit::Append(name, value)
        }
        Edit::Remove(name) => CheckedEdit::Remove(check_name(&name, authority)?),
    })
}

fn check_field(
    header: &Header,
    authority: EditAuthority,
) -> Result<(HeaderName, HeaderValue), EditError> {
    let name = check_name(&header.name, authority)?;
    let value = match authority {
        EditAuthority::Component => HeaderValue::from_str(&header.value),
        // Bytes beyond ASCII are the operator's own risk (RFC 9110, section 5.5).
        EditAuthority::Operator => HeaderValue::from_bytes(header.value.as_bytes()),
    };
    match value {
        Ok(value) => Ok((name, value)),
        Err(_) => Err(EditError::InvalidValue(name)),
    }
}

fn check_name(name: &str, authority: EditAuthority) -> Result<HeaderName, EditError> {
    let Ok(parsed) = name.parse::<HeaderName>() else {
        return Err(EditError::InvalidName(truncated(name.to_owned())));
    };
    if is_reserved(parsed.as_str()) {
        return Err(EditError::Reserved(parsed));
    }
    match authority {
        EditAuthority::Component if is_secret_shaped(parsed.as_str()) => {
            Err(EditError::SecretShaped(parsed))
        }
        EditAuthority::Component | EditAuthority::Operator => Ok(parsed),
    }
}

/// Applies edits. Values that the operator configured may be secrets: they are marked, so that no
/// policy sees them from then on.
pub(super) fn apply(edits: Vec<CheckedEdit>, authority: EditAuthority, headers: &mut HeaderMap) {
    for edit in edits {
        match edit {
            CheckedEdit::Set(name, value) => {
                headers.insert(name, marked(value, authority));
            }
            CheckedEdit::Append(name, value) => {
                headers.append(name, marked(value, authority));
            }
            CheckedEdit::Remove(name) => {
                headers.remove(name);
            }
        }
    }
}

fn marked(mut value: HeaderValue, authority: EditAuthority) -> HeaderValue {
    value.set_sensitive(authority == EditAuthority::Operator);
    value
}

/// Returns the fields that a policy wants to see, without those that no policy may see.
pub(super) fn visible(headers: &HeaderMap, wanted: &[String]) -> Vec<Header> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let wants_all = wanted.iter().any(|name| name == ALL_HEADERS);
    let mut visible = Vec::new();
    for (name, value) in headers {
        let is_wanted = wants_all || wanted.iter().any(|wanted| wanted == name.as_str());
        if !is_wanted || is_hidden(name, value) {
            continue;
        }
        if let Ok(value) = value.to_str() {
            visible.push(Header {
                name: name.as_str().to_owned(),
                value: value.to_owned(),
            });
        }
    }
    visible
}

fn is_hidden(name: &HeaderName, value: &HeaderValue) -> bool {
    value.is_sensitive() || is_reserved(name.as_str()) || is_secret_shaped(name.as_str())
}

/// Returns edits as the outcome of a recorded call.
pub(super) fn outcome(edits: &[CheckedEdit]) -> CallOutcome {
    CallOutcome::Edits {
        edits: edits.iter().map(CheckedEdit::recorded).collect(),
    }
}

impl CheckedEdit {
    fn bytes(&self) -> usize {
        match self {
            Self::Set(name, value) | Self::Append(name, value) => name.as_str().len() + value.len(),
            Self::Remove(_) => 0,
        }
    }

    fn recorded(&self) -> RecordedEdit {
        match self {
            Self::Set(name, value) => {
                RecordedEdit::new("set", name.as_str(), Some(value.as_bytes()))
            }
            Self::Append(name, value) => {
                RecordedEdit::new("append", name.as_str(), Some(value.as_bytes()))
            }
            Self::Remove(name) => RecordedEdit::new("remove", name.as_str(), None),
        }
    }
}
