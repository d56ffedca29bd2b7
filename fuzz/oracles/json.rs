//! What the JSON scanner must find in an object, according to serde_json. The fuzz target and the
//! tests share this file.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use tollgate::values::json::scan::{
    JsonScalar, JsonScan, ScanFlow, ScanProgress, WantedKey, WantedValue,
};
use tollgate::values::limits::FIELD_BYTES;

/// The keys that are looked for: at three levels, and one name at two of them.
const KEYS: &[WantedKey] = &[
    WantedKey::scalar("a", 1),
    WantedKey::scalar("bb", 2),
    WantedKey::within(
        "c",
        &[
            WantedKey::scalar("a", 3),
            WantedKey::within("d", &[WantedKey::scalar("e", 4)]),
        ],
    ),
];

/// A value that was found: its number, its bytes, and the string or the short integer that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FoundValue {
    name: u8,
    raw: Vec<u8>,
    text: Option<String>,
    integer: Option<u64>,
}

/// Checks that the scanner finds what serde_json finds in `input`, and the same in pieces of
/// `size`.
///
/// # Panics
/// Panics if it does not.
pub(crate) fn check(input: &[u8], size: usize) {
    let whole = scan(input, usize::MAX);
    assert_eq!(scan(input, size), whole, "in pieces of {size}");
    // An input that serde_json rejects may yield anything, as the scanner does not validate.
    if let Ok(members) = serde_json::from_slice::<Members<'_>>(input) {
        let mut expected = Vec::new();
        collect(&members, KEYS, &mut expected);
        assert_eq!(whole, (expected, ScanProgress::Done));
    }
}

fn scan(input: &[u8], size: usize) -> (Vec<FoundValue>, ScanProgress) {
    let mut scan = JsonScan::new(KEYS);
    let mut found = Vec::new();
    for piece in input.chunks(size.max(1)) {
        scan.feed(piece, |name, scalar| {
            let (JsonScalar::Text(raw) | JsonScalar::Bare(raw)) = scalar;
            found.push(FoundValue {
                name,
                raw: raw.to_vec(),
                text: scalar.text(),
                integer: scalar.count().filter(|_| is_short_integer(raw)),
            });
            ScanFlow::Continue
        });
    }
    (found, scan.progress())
}

/// The members of an object in their order, with duplicates. A key with escapes is `None`: the
/// scanner does not resolve them in keys.
struct Members<'a>(Vec<(Option<&'a str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        let mut members = Vec::new();
        while let Some((PlainKey(key), value)) = map.next_entry()? {
            members.push((key, value));
        }
        Ok(Members(members))
    }
}

struct PlainKey<'a>(Option<&'a str>);

impl<'de> Deserialize<'de> for PlainKey<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(PlainKeyVisitor)
    }
}

struct PlainKeyVisitor;

impl<'de> Visitor<'de> for PlainKeyVisitor {
    type Value = PlainKey<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    // serde_json lends a key from its input only if the key has no escapes.
    fn visit_borrowed_str<E>(self, key: &'de str) -> Result<PlainKey<'de>, E> {
        Ok(PlainKey(Some(key)))
    }

    fn visit_str<E>(self, _: &str) -> Result<PlainKey<'de>, E> {
        Ok(PlainKey(None))
    }
}

fn collect(members: &Members<'_>, keys: &[WantedKey], found: &mut Vec<FoundValue>) {
    for (key, value) in &members.0 {
        let wanted = keys.iter().find(|wanted| Some(wanted.key) == *key);
        let raw = value.get();
        match wanted.map(|wanted| &wanted.value) {
            Some(WantedValue::Scalar(name)) => found.extend(scalar(*name, raw)),
            Some(WantedValue::Within(keys)) => {
                if let Ok(members) = serde_json::from_str(raw) {
                    collect(&members, keys, found);
                }
            }
            None => {}
        }
    }
}

/// Returns the value `raw`, if it is a scalar that is not too long.
fn scalar(name: u8, raw: &str) -> Option<FoundValue> {
    let inner = match raw.as_bytes() {
        [b'{' | b'[', ..] => return None,
        [b'"', inner @ .., b'"'] => inner,
        bare => bare,
    };
    (inner.len() <= FIELD_BYTES).then(|| FoundValue {
        name,
        raw: inner.to_vec(),
        text: serde_json::from_str(raw).ok(),
        integer: serde_json::from_str(raw)
            .ok()
            .filter(|_: &u64| is_short_integer(inner)),
    })
}

/// Whether `raw` is an integer that every kind of number represents exactly.
fn is_short_integer(raw: &[u8]) -> bool {
    raw.len() <= 15 && raw.iter().all(u8::is_ascii_digit)
}
