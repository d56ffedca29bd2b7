//! Texts that guests return, bounded.

use crate::values::limits::FIELD_BYTES;

/// Cuts a guest's text to the length that a log line or a ledger column may have.
pub(super) fn truncated(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(FIELD_BYTES));
    text
}
