//! Server-sent events (WHATWG HTML, section 9.2), read in place across whatever pieces they arrive in.
//!
//! Only `data` lines matter: the events of this protocol say their type in their JSON. Lines end in LF, CR or CRLF.

use memchr::memchr2;

use super::Signal;
use super::reading::{KEYS, Reading};
use crate::values::exchange::End;
use crate::values::json_scan::{JsonScan, Progress};

const DATA: &[u8] = b"data:";
/// The last event of a stream of chat completions.
const DONE: &[u8] = b"[DONE]";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// At the start of a line; so many bytes of `data:` came.
    Start(usize),
    /// In the value of a `data` field.
    Data,
    /// In a value that may be `[DONE]`; so many bytes of it came.
    Done(usize),
    /// In a line of no interest.
    Skip,
}

/// A scanner of events.
pub(super) struct Sse {
    line: Line,
    /// The last byte was a CR: an LF now ends nothing.
    after_cr: bool,
    /// The event under way has data.
    in_event: bool,
    /// The event under way was read to its end.
    event_read: bool,
    scan: JsonScan,
    reading: Reading,
}

impl Sse {
    pub(super) fn new() -> Self {
        Self {
            line: Line::Start(0),
            after_cr: false,
            in_event: false,
            event_read: false,
            scan: JsonScan::new(KEYS),
            reading: Reading::default(),
        }
    }

    pub(super) fn reading(&self) -> &Reading {
        &self.reading
    }

    pub(super) fn reading_mut(&mut self) -> &mut Reading {
        &mut self.reading
    }

    pub(super) fn feed(&mut self, mut piece: &[u8]) -> Signal {
        let mut signal = Signal::More;
        if self.after_cr && piece.first() == Some(&b'\n') {
            piece = &piece[1..];
        }
        if !piece.is_empty() {
            self.after_cr = false;
        }
        while !piece.is_empty() {
            let end = memchr2(b'\n', b'\r', piece);
            let content = &piece[..end.unwrap_or(piece.len())];
            if self.content(content) == Signal::Whole {
                signal = Signal::Whole;
            }
            let Some(end) = end else { break };
            self.line_end();
            let crlf = piece[end] == b'\r' && piece.get(end + 1) == Some(&b'\n');
            self.after_cr = piece[end] == b'\r' && end + 1 == piece.len();
            piece = &piece[end + 1 + usize::from(crlf)..];
        }
        signal
    }

    /// The stream is at its end. One that breaks off without its last event lost something.
    pub(super) fn finish(&mut self) -> End {
        match self.reading.ended {
            Some(end) => end,
            None if self.reading.error_seen => End::Failed,
            None => End::UpstreamGone,
        }
    }

    /// Reads a part of a line.
    fn content(&mut self, mut content: &[u8]) -> Signal {
        while !content.is_empty() {
            match self.line {
                Line::Skip => return Signal::More,
                Line::Start(matched) => {
                    let wanted = &DATA[matched..];
                    let length = wanted.len().min(content.len());
                    if content[..length] != wanted[..length] {
                        self.line = Line::Skip;
                        return Signal::More;
                    }
                    content = &content[length..];
                    self.line = if length == wanted.len() {
                        self.data_begins()
                    } else {
                        Line::Start(matched + length)
                    };
                }
                Line::Done(matched) => match self.done(matched, content) {
                    Some(read) => content = &content[read..],
                    None => return Signal::Whole,
                },
                Line::Data => return self.data(content),
            }
        }
        Signal::More
    }

    fn data_begins(&mut self) -> Line {
        let first = !self.in_event;
        self.in_event = true;
        match (first, self.event_read) {
            (_, true) => Line::Skip,
            (true, false) => Line::Done(0),
            (false, false) => Line::Data,
        }
    }

    /// Reads on in what may be `[DONE]`. None where it is.
    fn done(&mut self, matched: usize, content: &[u8]) -> Option<usize> {
        if matched == 0 && content[0] == b' ' {
            return Some(1);
        }
        if content[0] != DONE[matched] {
            self.line = if matched == 0 { Line::Data } else { Line::Skip };
            return Some(0);
        }
        if matched + 1 < DONE.len() {
            self.line = Line::Done(matched + 1);
            return Some(1);
        }
        self.line = Line::Skip;
        self.reading.ended.get_or_insert(End::Complete);
        None
    }

    fn data(&mut self, content: &[u8]) -> Signal {
        let reading = &mut self.reading;
        let progress = self
            .scan
            .feed(content, |name, scalar| reading.take(name, scalar));
        if progress == Progress::Open {
            return Signal::More;
        }
        self.line = Line::Skip;
        self.event_read = true;
        if progress == Progress::Done && self.reading.event_whole() {
            Signal::Whole
        } else {
            Signal::More
        }
    }

    fn line_end(&mut self) {
        let blank = self.line == Line::Start(0);
        self.line = Line::Start(0);
        if blank && self.in_event {
            self.in_event = false;
            self.event_read = false;
            self.scan.reset();
            self.reading.next_event();
        }
    }
}
