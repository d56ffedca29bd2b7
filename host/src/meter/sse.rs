//! The scanner of server-sent events (WHATWG HTML, section 9.2), which reads them in place, in any
//! pieces.
//!
//! Only `data` lines matter: the events of this protocol have their type in their JSON. Lines end
//! in LF, CR or CRLF.

use memchr::memchr2;

use super::reading::{BodyProgress, RESPONSE_KEYS, ResponseReading};
use crate::values::exchange::ExchangeEnd;
use crate::values::json::scan::{JsonScan, ScanProgress};

const DATA: &[u8] = b"data:";
/// The last event of a stream of chat completions.
const DONE: &[u8] = b"[DONE]";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineState {
    /// At the start of a line, of which so many bytes match `data:`.
    Start(usize),
    /// In the value of a `data` field.
    Data,
    /// In a value of which so many bytes match `[DONE]`.
    Done(usize),
    /// In a line that is skipped.
    Skip,
}

pub(super) struct SseScanner {
    line: LineState,
    /// The last byte was a CR: an LF that follows it belongs to the same line end.
    is_after_cr: bool,
    /// The current event has data.
    is_in_event: bool,
    /// The JSON of the current event was read to its end, or given up.
    is_event_read: bool,
    scan: JsonScan,
    reading: ResponseReading,
}

impl SseScanner {
    pub(super) fn new() -> Self {
        Self {
            line: LineState::Start(0),
            is_after_cr: false,
            is_in_event: false,
            is_event_read: false,
            scan: JsonScan::new(RESPONSE_KEYS),
            reading: ResponseReading::default(),
        }
    }

    pub(super) fn reading(&self) -> &ResponseReading {
        &self.reading
    }

    pub(super) fn reading_mut(&mut self) -> &mut ResponseReading {
        &mut self.reading
    }

    pub(super) fn feed(&mut self, mut piece: &[u8]) -> BodyProgress {
        let mut progress = BodyProgress::Open;
        if self.is_after_cr && piece.first() == Some(&b'\n') {
            piece = &piece[1..];
        }
        if !piece.is_empty() {
            self.is_after_cr = false;
        }
        while !piece.is_empty() {
            let end = memchr2(b'\n', b'\r', piece);
            let content = &piece[..end.unwrap_or(piece.len())];
            if self.read_content(content) == BodyProgress::Complete {
                progress = BodyProgress::Complete;
            }
            let Some(end) = end else { break };
            self.end_line();
            let crlf = piece[end] == b'\r' && piece.get(end + 1) == Some(&b'\n');
            self.is_after_cr = piece[end] == b'\r' && end + 1 == piece.len();
            piece = &piece[end + 1 + usize::from(crlf)..];
        }
        progress
    }

    /// Ends the stream. A stream without its last event is incomplete.
    pub(super) fn finish(&mut self) -> ExchangeEnd {
        match self.reading.ended {
            Some(end) => end,
            None if self.reading.has_error => ExchangeEnd::Failed,
            None => ExchangeEnd::UpstreamGone,
        }
    }

    /// Reads a part of a line.
    fn read_content(&mut self, mut content: &[u8]) -> BodyProgress {
        while !content.is_empty() {
            match self.line {
                LineState::Skip => return BodyProgress::Open,
                LineState::Start(matched) => {
                    let wanted = &DATA[matched..];
                    let length = wanted.len().min(content.len());
                    if content[..length] != wanted[..length] {
                        self.line = LineState::Skip;
                        return BodyProgress::Open;
                    }
                    content = &content[length..];
                    self.line = if length == wanted.len() {
                        self.begin_data()
                    } else {
                        LineState::Start(matched + length)
                    };
                }
                LineState::Done(matched) => match self.read_done(matched, content) {
                    Some(read) => content = &content[read..],
                    None => return BodyProgress::Complete,
                },
                LineState::Data => return self.read_data(content),
            }
        }
        BodyProgress::Open
    }

    fn begin_data(&mut self) -> LineState {
        let first = !self.is_in_event;
        self.is_in_event = true;
        match (first, self.is_event_read) {
            (_, true) => LineState::Skip,
            (true, false) => LineState::Done(0),
            (false, false) => LineState::Data,
        }
    }

    /// Reads a byte of a value that may be `[DONE]`. Returns how many bytes it took, and `None`
    /// once it is `[DONE]`.
    fn read_done(&mut self, matched: usize, content: &[u8]) -> Option<usize> {
        if matched == 0 && content[0] == b' ' {
            return Some(1);
        }
        if content[0] != DONE[matched] {
            self.line = if matched == 0 {
                LineState::Data
            } else {
                LineState::Skip
            };
            return Some(0);
        }
        if matched + 1 < DONE.len() {
            self.line = LineState::Done(matched + 1);
            return Some(1);
        }
        self.line = LineState::Skip;
        self.reading.ended.get_or_insert(ExchangeEnd::Complete);
        None
    }

    fn read_data(&mut self, content: &[u8]) -> BodyProgress {
        let reading = &mut self.reading;
        let progress = self
            .scan
            .feed(content, |name, scalar| reading.record(name, scalar));
        if progress == ScanProgress::Open {
            return BodyProgress::Open;
        }
        self.line = LineState::Skip;
        self.is_event_read = true;
        match progress {
            ScanProgress::Done => self.reading.end_event(),
            ScanProgress::Stopped | ScanProgress::Open => BodyProgress::Open,
        }
    }

    fn end_line(&mut self) {
        let is_blank = self.line == LineState::Start(0);
        self.line = LineState::Start(0);
        if is_blank && self.is_in_event {
            self.is_in_event = false;
            self.is_event_read = false;
            self.scan.reset();
            self.reading.begin_event();
        }
    }
}
