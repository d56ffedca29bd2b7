//! A scanner that reads a few values of a JSON object in place, while the object arrives in pieces.
//!
//! It stores only the key or value that is incomplete, up to [`FIELD_BYTES`], and skips all others:
//! its memory does not grow with the input, and it does not allocate. It does not validate: invalid
//! JSON yields fewer values, never a panic.

use memchr::memchr2;

use crate::values::limits::FIELD_BYTES;

/// How deep the wanted objects may be nested.
const DEPTH_MAX: usize = 6;

/// A key whose value is wanted.
#[derive(Debug)]
pub struct WantedKey {
    /// The key, without escapes.
    pub key: &'static str,
    /// The wanted part of its value.
    pub value: WantedValue,
}

/// The wanted part of a key's value.
#[derive(Debug)]
pub enum WantedValue {
    /// The value itself, if it is a string, number or literal. The sink receives it with this
    /// number.
    Scalar(u8),
    /// Values of these keys, if it is an object.
    Within(&'static [WantedKey]),
}

impl WantedKey {
    /// Wants the value of `key`, under the number `name`.
    pub const fn scalar(key: &'static str, name: u8) -> Self {
        Self {
            key,
            value: WantedValue::Scalar(name),
        }
    }

    /// Wants the values of `keys` in the object under `key`.
    pub const fn within(key: &'static str, keys: &'static [WantedKey]) -> Self {
        Self {
            key,
            value: WantedValue::Within(keys),
        }
    }
}

/// The value of a wanted key, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonScalar<'a> {
    /// The bytes between the quotes of a string, with its escapes.
    Text(&'a [u8]),
    /// A number, `true`, `false` or `null`, as it is written.
    Bare(&'a [u8]),
}

impl JsonScalar<'_> {
    /// Returns the string with its escapes resolved, if it is a valid one.
    pub fn text(&self) -> Option<String> {
        let Self::Text(raw) = *self else { return None };
        if !raw.contains(&b'\\') {
            return str::from_utf8(raw).ok().map(str::to_owned);
        }
        let quoted: Vec<u8> = [b"\"", raw, b"\""].concat();
        serde_json::from_slice(&quoted).ok()
    }

    /// Returns the number if it is an integer from 0 to 2^53. `12.0` counts as 12.
    pub fn count(&self) -> Option<u64> {
        let number = self.number()?;
        (number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&number))
            .then_some(number as u64)
    }

    /// Returns the number if it is finite.
    pub fn number(&self) -> Option<f64> {
        let Self::Bare(raw) = *self else { return None };
        let number: f64 = str::from_utf8(raw).ok()?.parse().ok()?;
        number.is_finite().then_some(number)
    }

    /// Whether the value is `true`.
    pub fn is_true(&self) -> bool {
        *self == Self::Bare(b"true")
    }
}

/// Whether a scan continues after a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanFlow {
    /// The scan looks for the next wanted value.
    Continue,
    /// The scan stops: the rest of the object is not wanted.
    Stop,
}

/// How far a scan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanProgress {
    /// The object is incomplete.
    Open,
    /// The object is complete.
    Done,
    /// The sink stopped the scan, or the input is not a JSON object. The scan reads nothing more.
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ScanState {
    Start,
    BeforeKey,
    Key,
    Colon,
    Value,
    Text,
    Bare,
    /// Inside an unwanted container or string, in which `nested` containers are open.
    Skip {
        nested: u32,
        within: SkippedPart,
    },
    Done,
    Stopped,
}

/// The part of an unwanted value that a scan is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SkippedPart {
    String,
    /// Between strings, where brackets open and close containers.
    Structure,
}

/// A scan of one JSON object.
#[derive(Debug)]
pub struct JsonScan {
    state: ScanState,
    /// The last byte was a backslash within a string.
    escaped: bool,
    /// The wanted keys of each open object, the outermost first.
    open: [&'static [WantedKey]; DEPTH_MAX],
    depth: usize,
    /// The wanted part of the current or next value.
    current: Option<&'static WantedValue>,
    /// The first `held_len` bytes are those of the incomplete key or value.
    held: [u8; FIELD_BYTES],
    held_len: usize,
    /// The key or value is longer than [`FIELD_BYTES`].
    overflow: bool,
}

impl JsonScan {
    /// Creates a scan for the values of `keys`.
    pub fn new(keys: &'static [WantedKey]) -> Self {
        Self {
            state: ScanState::Start,
            escaped: false,
            open: [keys; DEPTH_MAX],
            depth: 0,
            current: None,
            held: [0; FIELD_BYTES],
            held_len: 0,
            overflow: false,
        }
    }

    /// Starts over with the next object, for the same keys.
    pub fn reset(&mut self) {
        self.state = ScanState::Start;
        self.escaped = false;
        self.depth = 0;
        self.current = None;
        self.clear_held();
    }

    /// Returns how far the scan is.
    pub fn progress(&self) -> ScanProgress {
        match self.state {
            ScanState::Done => ScanProgress::Done,
            ScanState::Stopped => ScanProgress::Stopped,
            ScanState::Start
            | ScanState::BeforeKey
            | ScanState::Key
            | ScanState::Colon
            | ScanState::Value
            | ScanState::Text
            | ScanState::Bare
            | ScanState::Skip { .. } => ScanProgress::Open,
        }
    }

    /// Reads a piece, and passes each wanted value to `sink` with its number once it is complete.
    pub fn feed(
        &mut self,
        mut input: &[u8],
        mut sink: impl FnMut(u8, JsonScalar<'_>) -> ScanFlow,
    ) -> ScanProgress {
        while !input.is_empty() {
            let read = match self.state {
                ScanState::Done | ScanState::Stopped => break,
                ScanState::Key | ScanState::Text => self.string(input, &mut sink),
                ScanState::Bare => self.bare(input, &mut sink),
                ScanState::Skip { nested, within } => self.skip(input, nested, within),
                ScanState::Start | ScanState::BeforeKey | ScanState::Colon | ScanState::Value => {
                    self.structure(input)
                }
            };
            input = &input[read..];
        }
        self.progress()
    }

    /// Reads one byte between keys and values. Returns how many bytes it took.
    fn structure(&mut self, input: &[u8]) -> usize {
        let byte = input[0];
        if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            return 1;
        }
        self.state = match (self.state, byte) {
            (ScanState::Start, b'{') => {
                self.depth = 1;
                ScanState::BeforeKey
            }
            (ScanState::BeforeKey, b'"') => {
                self.clear_held();
                ScanState::Key
            }
            (ScanState::BeforeKey, b',') => ScanState::BeforeKey,
            (ScanState::BeforeKey, b'}') => self.close_object(),
            (ScanState::Colon, b':') => ScanState::Value,
            (ScanState::Value, b'{') => self.open_object(),
            (ScanState::Value, b'[') => ScanState::Skip {
                nested: 1,
                within: SkippedPart::Structure,
            },
            (ScanState::Value, b'"') => self.open_string(),
            (ScanState::Value, _) => {
                self.clear_held();
                self.state = ScanState::Bare;
                return 0;
            }
            _ => ScanState::Stopped,
        };
        1
    }

    fn open_object(&mut self) -> ScanState {
        match self.current {
            Some(WantedValue::Within(keys)) if self.depth < DEPTH_MAX => {
                self.open[self.depth] = keys;
                self.depth += 1;
                ScanState::BeforeKey
            }
            _ => ScanState::Skip {
                nested: 1,
                within: SkippedPart::Structure,
            },
        }
    }

    fn close_object(&mut self) -> ScanState {
        self.depth -= 1;
        if self.depth == 0 {
            ScanState::Done
        } else {
            ScanState::BeforeKey
        }
    }

    fn open_string(&mut self) -> ScanState {
        match self.current {
            Some(WantedValue::Scalar(_)) => {
                self.clear_held();
                ScanState::Text
            }
            _ => ScanState::Skip {
                nested: 0,
                within: SkippedPart::String,
            },
        }
    }

    /// Reads within a key or a wanted string. Returns how many bytes it took.
    fn string(
        &mut self,
        input: &[u8],
        sink: &mut impl FnMut(u8, JsonScalar<'_>) -> ScanFlow,
    ) -> usize {
        let (length, ended) = self.string_end(input);
        self.hold(&input[..length]);
        if !ended {
            return length;
        }
        if self.state == ScanState::Key {
            self.current = self.find_key();
            self.state = ScanState::Colon;
        } else {
            self.emit(sink, JsonScalar::Text);
        }
        length + 1
    }

    /// Returns how many bytes of `input` belong to the current string, and whether its closing
    /// quote follows them.
    fn string_end(&mut self, input: &[u8]) -> (usize, bool) {
        let mut at = 0;
        loop {
            if self.escaped {
                if at == input.len() {
                    return (at, false);
                }
                self.escaped = false;
                at += 1;
            }
            let Some(found) = memchr2(b'"', b'\\', &input[at..]) else {
                return (input.len(), false);
            };
            at += found;
            if input[at] == b'"' {
                return (at, true);
            }
            self.escaped = true;
            at += 1;
        }
    }

    /// Reads within a number or literal. Returns how many bytes it took.
    fn bare(
        &mut self,
        input: &[u8],
        sink: &mut impl FnMut(u8, JsonScalar<'_>) -> ScanFlow,
    ) -> usize {
        let end = input
            .iter()
            .position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r'));
        self.hold(&input[..end.unwrap_or(input.len())]);
        let Some(end) = end else {
            return input.len();
        };
        if end == 0 && self.held_len == 0 {
            self.state = ScanState::Stopped;
            return 0;
        }
        self.emit(sink, JsonScalar::Bare);
        end
    }

    /// Reads within an unwanted value. Returns how many bytes it took.
    fn skip(&mut self, input: &[u8], mut nested: u32, mut within: SkippedPart) -> usize {
        let mut at = 0;
        while at < input.len() {
            if within == SkippedPart::String {
                let (length, ended) = self.string_end(&input[at..]);
                at += length;
                if !ended {
                    break;
                }
                within = SkippedPart::Structure;
                at += 1;
                if nested == 0 {
                    self.state = ScanState::BeforeKey;
                    return at;
                }
                continue;
            }
            match input[at] {
                b'"' => within = SkippedPart::String,
                b'{' | b'[' => nested = nested.saturating_add(1),
                b'}' | b']' => nested -= 1,
                _ => {}
            }
            at += 1;
            if nested == 0 {
                self.state = ScanState::BeforeKey;
                return at;
            }
        }
        self.state = ScanState::Skip { nested, within };
        at
    }

    fn emit<'a>(
        &'a mut self,
        sink: &mut impl FnMut(u8, JsonScalar<'_>) -> ScanFlow,
        scalar: impl FnOnce(&'a [u8]) -> JsonScalar<'a>,
    ) {
        self.state = ScanState::BeforeKey;
        let Some(WantedValue::Scalar(name)) = self.current else {
            return;
        };
        if !self.overflow && sink(*name, scalar(&self.held[..self.held_len])) == ScanFlow::Stop {
            self.state = ScanState::Stopped;
        }
    }

    fn find_key(&self) -> Option<&'static WantedValue> {
        if self.overflow {
            return None;
        }
        let key = &self.held[..self.held_len];
        self.open[self.depth - 1]
            .iter()
            .find(|wanted| wanted.key.as_bytes() == key)
            .map(|wanted| &wanted.value)
    }

    fn clear_held(&mut self) {
        self.held_len = 0;
        self.overflow = false;
    }

    fn hold(&mut self, bytes: &[u8]) {
        let room = FIELD_BYTES - self.held_len;
        if bytes.len() > room {
            self.overflow = true;
            return;
        }
        self.held[self.held_len..][..bytes.len()].copy_from_slice(bytes);
        self.held_len += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &[WantedKey] = &[
        WantedKey::scalar("a", 1),
        WantedKey::within(
            "b",
            &[
                WantedKey::scalar("c", 2),
                WantedKey::within("d", &[WantedKey::scalar("e", 3)]),
            ],
        ),
    ];

    fn values(json: &[u8], piece: usize) -> (Vec<(u8, String)>, ScanProgress) {
        let mut scan = JsonScan::new(KEYS);
        let mut found = Vec::new();
        for piece in json.chunks(piece) {
            scan.feed(piece, |name, scalar| {
                let (JsonScalar::Text(raw) | JsonScalar::Bare(raw)) = scalar;
                found.push((name, String::from_utf8_lossy(raw).into_owned()));
                ScanFlow::Continue
            });
        }
        (found, scan.progress())
    }

    #[track_caller]
    fn check(json: &str, expected: &[(u8, &str)], progress: ScanProgress) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        for piece in [1, 2, 3, 7, 1024] {
            assert_eq!(
                values(json.as_bytes(), piece),
                (expected.clone(), progress),
                "in pieces of {piece}"
            );
        }
    }

    #[test]
    fn values_are_found_in_any_pieces() {
        check(
            r#" { "x": [1, {"a": 2}, "]"], "a" : "one\"two", "b": {"c": -1.5e3, "y": null, "d": {"e": true}}} "#,
            &[(1, r#"one\"two"#), (2, "-1.5e3"), (3, "true")],
            ScanProgress::Done,
        );
    }

    #[test]
    fn a_key_at_another_depth_is_another_key() {
        check(
            r#"{"c": 1, "b": {"a": 2}, "z": {"b": {"c": 3}}}"#,
            &[],
            ScanProgress::Done,
        );
    }

    #[test]
    fn a_value_of_another_kind_is_skipped() {
        check(
            r#"{"a": {"x": "}"}, "b": "text", "a": [[]]}"#,
            &[],
            ScanProgress::Done,
        );
    }

    #[test]
    fn an_input_that_is_no_object_stops_the_scan() {
        check("[1, 2]", &[], ScanProgress::Stopped);
        check("hello", &[], ScanProgress::Stopped);
        check(r#"{"a" 1}"#, &[], ScanProgress::Stopped);
        check(r#"{"a": }"#, &[], ScanProgress::Stopped);
        check("", &[], ScanProgress::Open);
    }

    #[test]
    fn a_string_past_the_limit_counts_as_missing() {
        let at = "x".repeat(FIELD_BYTES);
        check(
            &format!(r#"{{"a": "{at}"}}"#),
            &[(1, at.as_str())],
            ScanProgress::Done,
        );
        check(
            &format!(r#"{{"a": "{at}x", "b": {{"c": 1}}}}"#),
            &[(2, "1")],
            ScanProgress::Done,
        );
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        const ALPHABET: &[u8] = b"{}[]\",:\\abc 1\xff";
        let mut state = 1_u32;
        for _ in 0..2000 {
            let bytes: Vec<u8> = (0..64)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    ALPHABET[(state >> 24) as usize % ALPHABET.len()]
                })
                .collect();
            let object = [b"{\"b\":{".as_slice(), &bytes].concat();
            values(&object, 5);
        }
    }

    #[test]
    fn escapes_are_resolved_if_the_text_is_wanted() {
        assert_eq!(
            JsonScalar::Text(br"a\u0062\n").text().as_deref(),
            Some("ab\n")
        );
        assert_eq!(JsonScalar::Text(b"\xff").text(), None);
        assert_eq!(JsonScalar::Bare(b"12.0").count(), Some(12));
        assert_eq!(JsonScalar::Bare(b"-1").count(), None);
        assert_eq!(JsonScalar::Bare(b"1e400").number(), None);
    }
}
