//! How server-sent events are written: the plain form, and the unusual forms that occur and must
//! work.

/// The spelling of a stream of events.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spelling {
    pub(crate) crlf: bool,
    pub(crate) comments: bool,
    pub(crate) no_space: bool,
    pub(crate) no_final_newline: bool,
}

impl Spelling {
    /// Appends one event. `name` is left out where the API names none (chat completions).
    pub(crate) fn write(self, out: &mut Vec<u8>, name: Option<&str>, data: &str) {
        let end = if self.crlf { "\r\n" } else { "\n" };
        let space = if self.no_space { "" } else { " " };
        let mut line = |field: &str, space: &str, value: &str| {
            for piece in [field, space, value, end] {
                out.extend_from_slice(piece.as_bytes());
            }
        };
        if self.comments {
            line(":", space, "a comment");
        }
        if let Some(name) = name {
            line("event:", space, name);
        }
        line("data:", space, data);
        line("", "", "");
    }

    /// Returns the bytes of the last event, without its line end if the spelling says so.
    pub(crate) fn trim_last(self, last: &[u8]) -> &[u8] {
        if !self.no_final_newline {
            return last;
        }
        let text = last
            .iter()
            .rposition(|byte| !matches!(byte, b'\r' | b'\n'))
            .map_or(0, |index| index + 1);
        &last[..text]
    }
}
