//! Reads a few named values out of a JSON object that arrives in pieces, in place.
//!
//! It keeps no text but the value that it is in the middle of, so its memory does not grow with the input, and it
//! allocates nothing. What it is not asked for it skips. It is no validator: what is not JSON yields fewer values,
//! never a wrong place in memory and never a panic.

use memchr::memchr2;

use super::limits::FIELD_BYTES;

/// How deep objects that are asked for may lie in each other.
const DEPTH_MAX: usize = 6;

/// A key that is asked for.
#[derive(Debug)]
pub struct Wanted {
    /// The key, without escapes.
    pub key: &'static str,
    /// What is wanted of its value.
    pub what: What,
}

/// What is wanted of a key's value.
#[derive(Debug)]
pub enum What {
    /// The value itself, where it is a string, number or literal; the number names it to the sink.
    Scalar(u8),
    /// Keys of the object that it is.
    Within(&'static [Wanted]),
}

impl Wanted {
    /// Asks for the value of `key`, to be told as `name`.
    pub const fn scalar(key: &'static str, name: u8) -> Self {
        Self {
            key,
            what: What::Scalar(name),
        }
    }

    /// Asks for `keys` of the object under `key`.
    pub const fn within(key: &'static str, keys: &'static [Wanted]) -> Self {
        Self {
            key,
            what: What::Within(keys),
        }
    }
}

/// A value that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar<'a> {
    /// What stands between a string's quotes, escapes and all.
    Text(&'a [u8]),
    /// A number, `true`, `false` or `null`, as it stands there.
    Bare(&'a [u8]),
}

impl Scalar<'_> {
    /// The string, with its escapes resolved; none where it is not a valid string.
    pub fn text(&self) -> Option<String> {
        let Self::Text(raw) = *self else { return None };
        if !raw.contains(&b'\\') {
            return str::from_utf8(raw).ok().map(str::to_owned);
        }
        let quoted: Vec<u8> = [b"\"", raw, b"\""].concat();
        serde_json::from_slice(&quoted).ok()
    }

    /// The number, where it is a whole one from 0 to 2^53; `12.0` counts as 12.
    pub fn count(&self) -> Option<u64> {
        let number = self.number()?;
        (number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&number))
            .then_some(number as u64)
    }

    /// The number, where it is a finite one.
    pub fn number(&self) -> Option<f64> {
        let Self::Bare(raw) = *self else { return None };
        let number: f64 = str::from_utf8(raw).ok()?.parse().ok()?;
        number.is_finite().then_some(number)
    }

    /// Whether it is `true`.
    pub fn is_true(&self) -> bool {
        *self == Self::Bare(b"true")
    }
}

/// What a sink says to a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// The rest of this object is of no interest.
    Stop,
}

/// Where a scan stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The object is not at its end.
    Open,
    /// The object is at its end.
    Done,
    /// The sink stopped it, or the input is not a JSON object. It reads nothing more.
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    BeforeKey,
    Key,
    Colon,
    Value,
    Text,
    Bare,
    /// Inside a container or string that nobody asked for; `nested` containers are open in it.
    Skip {
        nested: u32,
        in_string: bool,
    },
    Done,
    Stopped,
}

/// A scan of one JSON object.
#[derive(Debug)]
pub struct JsonScan {
    state: State,
    /// A backslash was the last byte of a string so far.
    escaped: bool,
    /// The keys asked for in each open object, the outermost first.
    open: [&'static [Wanted]; DEPTH_MAX],
    depth: usize,
    /// What is wanted of the value that comes next or is under way.
    current: Option<&'static What>,
    held: [u8; FIELD_BYTES],
    held_len: usize,
    overflow: bool,
}

impl JsonScan {
    /// A scan for `keys` of an object.
    pub fn new(keys: &'static [Wanted]) -> Self {
        Self {
            state: State::Start,
            escaped: false,
            open: [keys; DEPTH_MAX],
            depth: 0,
            current: None,
            held: [0; FIELD_BYTES],
            held_len: 0,
            overflow: false,
        }
    }

    /// Begins anew, with the same keys.
    pub fn reset(&mut self) {
        self.state = State::Start;
        self.escaped = false;
        self.depth = 0;
        self.current = None;
        self.clear_held();
    }

    /// Where the scan stands.
    pub fn progress(&self) -> Progress {
        match self.state {
            State::Done => Progress::Done,
            State::Stopped => Progress::Stopped,
            _ => Progress::Open,
        }
    }

    /// Reads on. Values that were asked for go to `sink` with their names, each once it is whole.
    pub fn feed(
        &mut self,
        mut input: &[u8],
        mut sink: impl FnMut(u8, Scalar<'_>) -> Flow,
    ) -> Progress {
        while !input.is_empty() {
            let read = match self.state {
                State::Done | State::Stopped => break,
                State::Key | State::Text => self.string(input, &mut sink),
                State::Bare => self.bare(input, &mut sink),
                State::Skip { nested, in_string } => self.skip(input, nested, in_string),
                State::Start | State::BeforeKey | State::Colon | State::Value => {
                    self.structure(input)
                }
            };
            input = &input[read..];
        }
        self.progress()
    }

    /// Reads one byte between keys and values. Answers how many bytes it took.
    fn structure(&mut self, input: &[u8]) -> usize {
        let byte = input[0];
        if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            return 1;
        }
        self.state = match (self.state, byte) {
            (State::Start, b'{') => {
                self.depth = 1;
                State::BeforeKey
            }
            (State::BeforeKey, b'"') => {
                self.clear_held();
                State::Key
            }
            (State::BeforeKey, b',') => State::BeforeKey,
            (State::BeforeKey, b'}') => self.close_object(),
            (State::Colon, b':') => State::Value,
            (State::Value, b'{') => self.open_object(),
            (State::Value, b'[') => State::Skip {
                nested: 1,
                in_string: false,
            },
            (State::Value, b'"') => self.open_string(),
            (State::Value, _) => {
                self.clear_held();
                self.state = State::Bare;
                return 0;
            }
            _ => State::Stopped,
        };
        1
    }

    fn open_object(&mut self) -> State {
        match self.current {
            Some(What::Within(keys)) if self.depth < DEPTH_MAX => {
                self.open[self.depth] = keys;
                self.depth += 1;
                State::BeforeKey
            }
            _ => State::Skip {
                nested: 1,
                in_string: false,
            },
        }
    }

    fn close_object(&mut self) -> State {
        self.depth -= 1;
        if self.depth == 0 {
            State::Done
        } else {
            State::BeforeKey
        }
    }

    fn open_string(&mut self) -> State {
        match self.current {
            Some(What::Scalar(_)) => {
                self.clear_held();
                State::Text
            }
            _ => State::Skip {
                nested: 0,
                in_string: true,
            },
        }
    }

    /// Reads on within a key or a string that was asked for.
    fn string(&mut self, input: &[u8], sink: &mut impl FnMut(u8, Scalar<'_>) -> Flow) -> usize {
        let (length, ended) = self.string_end(input);
        self.hold(&input[..length]);
        if !ended {
            return length;
        }
        if self.state == State::Key {
            self.current = self.find_key();
            self.state = State::Colon;
        } else {
            self.tell(sink, Scalar::Text);
        }
        length + 1
    }

    /// How many bytes of `input` belong to the string under way, and whether its closing quote follows them.
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

    /// Reads on within a number or literal.
    fn bare(&mut self, input: &[u8], sink: &mut impl FnMut(u8, Scalar<'_>) -> Flow) -> usize {
        let end = input
            .iter()
            .position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r'));
        self.hold(&input[..end.unwrap_or(input.len())]);
        let Some(end) = end else {
            return input.len();
        };
        if end == 0 && self.held_len == 0 {
            self.state = State::Stopped;
            return 0;
        }
        self.tell(sink, Scalar::Bare);
        end
    }

    /// Reads on within what nobody asked for.
    fn skip(&mut self, input: &[u8], mut nested: u32, mut in_string: bool) -> usize {
        let mut at = 0;
        while at < input.len() {
            if in_string {
                let (length, ended) = self.string_end(&input[at..]);
                at += length;
                if !ended {
                    break;
                }
                in_string = false;
                at += 1;
                if nested == 0 {
                    self.state = State::BeforeKey;
                    return at;
                }
                continue;
            }
            match input[at] {
                b'"' => in_string = true,
                b'{' | b'[' => nested = nested.saturating_add(1),
                b'}' | b']' => nested -= 1,
                _ => {}
            }
            at += 1;
            if nested == 0 {
                self.state = State::BeforeKey;
                return at;
            }
        }
        self.state = State::Skip { nested, in_string };
        at
    }

    fn tell<'a>(
        &'a mut self,
        sink: &mut impl FnMut(u8, Scalar<'_>) -> Flow,
        scalar: impl FnOnce(&'a [u8]) -> Scalar<'a>,
    ) {
        self.state = State::BeforeKey;
        let Some(What::Scalar(name)) = self.current else {
            return;
        };
        if !self.overflow && sink(*name, scalar(&self.held[..self.held_len])) == Flow::Stop {
            self.state = State::Stopped;
        }
    }

    fn find_key(&self) -> Option<&'static What> {
        if self.overflow {
            return None;
        }
        let key = &self.held[..self.held_len];
        self.open[self.depth - 1]
            .iter()
            .find(|wanted| wanted.key.as_bytes() == key)
            .map(|wanted| &wanted.what)
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

    const KEYS: &[Wanted] = &[
        Wanted::scalar("a", 1),
        Wanted::within(
            "b",
            &[
                Wanted::scalar("c", 2),
                Wanted::within("d", &[Wanted::scalar("e", 3)]),
            ],
        ),
    ];

    fn values(json: &[u8], piece: usize) -> (Vec<(u8, String)>, Progress) {
        let mut scan = JsonScan::new(KEYS);
        let mut found = Vec::new();
        for piece in json.chunks(piece) {
            scan.feed(piece, |name, scalar| {
                let (Scalar::Text(raw) | Scalar::Bare(raw)) = scalar;
                found.push((name, String::from_utf8_lossy(raw).into_owned()));
                Flow::Continue
            });
        }
        (found, scan.progress())
    }

    #[track_caller]
    fn check(json: &str, expected: &[(u8, &str)], progress: Progress) {
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
    fn values_are_found_wherever_the_input_is_cut() {
        check(
            r#" { "x": [1, {"a": 2}, "]"], "a" : "one\"two", "b": {"c": -1.5e3, "y": null, "d": {"e": true}}} "#,
            &[(1, r#"one\"two"#), (2, "-1.5e3"), (3, "true")],
            Progress::Done,
        );
    }

    #[test]
    fn a_key_at_another_depth_is_another_key() {
        check(
            r#"{"c": 1, "b": {"a": 2}, "z": {"b": {"c": 3}}}"#,
            &[],
            Progress::Done,
        );
    }

    #[test]
    fn a_value_of_another_kind_is_skipped() {
        check(
            r#"{"a": {"x": "}"}, "b": "text", "a": [[]]}"#,
            &[],
            Progress::Done,
        );
    }

    #[test]
    fn what_is_no_object_stops_the_scan() {
        check("[1, 2]", &[], Progress::Stopped);
        check("hello", &[], Progress::Stopped);
        check(r#"{"a" 1}"#, &[], Progress::Stopped);
        check(r#"{"a": }"#, &[], Progress::Stopped);
        check("", &[], Progress::Open);
    }

    #[test]
    fn a_string_past_the_bound_counts_as_missing() {
        let at = "x".repeat(FIELD_BYTES);
        check(
            &format!(r#"{{"a": "{at}"}}"#),
            &[(1, at.as_str())],
            Progress::Done,
        );
        check(
            &format!(r#"{{"a": "{at}x", "b": {{"c": 1}}}}"#),
            &[(2, "1")],
            Progress::Done,
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
    fn escapes_are_resolved_where_a_text_is_wanted() {
        assert_eq!(Scalar::Text(br"a\u0062\n").text().as_deref(), Some("ab\n"));
        assert_eq!(Scalar::Text(b"\xff").text(), None);
        assert_eq!(Scalar::Bare(b"12.0").count(), Some(12));
        assert_eq!(Scalar::Bare(b"-1").count(), None);
        assert_eq!(Scalar::Bare(b"1e400").number(), None);
    }
}
