//! Writes new tokens into the text of an auth.json. Everything else in it stays as it is, byte for
//! byte.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::new_tokens::NewTokens;

/// Returns `text` with the tokens of `new` and with `last_refresh` (RFC 3339), the time when they
/// were issued. Returns `None` if `text` is not an auth.json with tokens.
pub(super) fn with_tokens(
    text: &str,
    new: &NewTokens,
    last_refresh: &str,
) -> Option<Zeroizing<String>> {
    let object: ObjectMembers<'_> = serde_json::from_str(text).ok()?;
    // As parsers do: of duplicate names, the last counts.
    let tokens = object.named("tokens").last()?;
    let inner: ObjectMembers<'_> = serde_json::from_str(tokens.get()).ok()?;
    let mut edits = TextEdits::default();
    for (name, value) in new.members() {
        edits.set(text, &inner, tokens, name, value)?;
    }
    let whole: &RawValue = serde_json::from_str(text).ok()?;
    edits.set(text, &object, whole, "last_refresh", last_refresh)?;
    Some(edits.apply(text))
}

/// The members of an object, in their order and as they are written.
struct ObjectMembers<'a>(Vec<(String, &'a RawValue)>);

impl<'a> ObjectMembers<'a> {
    fn named(&self, name: &str) -> impl Iterator<Item = &'a RawValue> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| *value)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for ObjectMembers<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MemberVisitor;
        impl<'de> Visitor<'de> for MemberVisitor {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }
        deserializer
            .deserialize_map(MemberVisitor)
            .map(ObjectMembers)
    }
}

/// Replacements, by the position where each begins.
#[derive(Default)]
struct TextEdits(BTreeMap<usize, (Range<usize>, Zeroizing<String>)>);

impl TextEdits {
    /// Sets the member `name` of `object`, whose members are `members`, to the string `value`.
    fn set(
        &mut self,
        text: &str,
        members: &ObjectMembers<'_>,
        object: &RawValue,
        name: &str,
        value: &str,
    ) -> Option<()> {
        let value = Zeroizing::new(serde_json::to_string(value).ok()?);
        let mut found = false;
        for known in members.named(name) {
            found = true;
            self.insert(range_in(text, known)?, &value);
        }
        if !found {
            // Before the object's first member. An object without members has no tokens to replace.
            members.0.first()?;
            let begin = range_in(text, object)?.start + 1;
            self.insert(begin..begin, &format!("\"{name}\": {}, ", value.as_str()));
        }
        Some(())
    }

    fn insert(&mut self, range: Range<usize>, value: &str) {
        let (_, text) = self
            .0
            .entry(range.start)
            .or_insert_with(|| (range, Zeroizing::default()));
        text.push_str(value);
    }

    fn apply(&self, text: &str) -> Zeroizing<String> {
        let room = text.len() + self.0.values().map(|(_, value)| value.len()).sum::<usize>();
        // Allocated once: a string that moves while it grows leaves copies of the tokens behind.
        let mut edited = Zeroizing::new(String::with_capacity(room));
        let mut from = 0;
        for (range, value) in self.0.values() {
            edited.push_str(&text[from..range.start]);
            edited.push_str(value);
            from = range.end;
        }
        edited.push_str(&text[from..]);
        edited
    }
}

/// Returns the range of `value` in `text`, from which it was borrowed.
fn range_in(text: &str, value: &RawValue) -> Option<Range<usize>> {
    let start = (value.get().as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
    let range = start..start + value.get().len();
    (text.get(range.clone())? == value.get()).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let new = NewTokens::new(Some("i2"), "a2", Some("r2"));
        let edited = with_tokens(text, &new, "now").expect("an auth.json");
        assert_eq!(edited.as_str(), expected);
        serde_json::from_str::<serde_json::Value>(&edited).expect("still JSON");
    }

    #[test]
    fn only_the_tokens_change() {
        check(
            "{\n  \"x\": 1.50,\"OPENAI_API_KEY\":null,\n\t\"tokens\": {\"id_token\": \"i\", \"access_token\": \"a\\u0041\",\
             \"refresh_token\": \"r\",  \"account_id\": \"acc\", \"z\": [1,  2]}, \"last_refresh\": \"then\",\n\"é\": {} }\n",
            "{\n  \"x\": 1.50,\"OPENAI_API_KEY\":null,\n\t\"tokens\": {\"id_token\": \"i2\", \"access_token\": \"a2\",\
             \"refresh_token\": \"r2\",  \"account_id\": \"acc\", \"z\": [1,  2]}, \"last_refresh\": \"now\",\n\"é\": {} }\n",
        );
    }

    #[test]
    fn missing_members_are_added() {
        check(
            r#"{"tokens": {"access_token": "a"}}"#,
            r#"{"last_refresh": "now", "tokens": {"id_token": "i2", "refresh_token": "r2", "access_token": "a2"}}"#,
        );
    }

    #[test]
    fn duplicate_names_are_all_replaced() {
        check(
            r#"{"last_refresh": 1, "tokens": {"access_token": "a", "access_token": "b", "refresh_token": null, "id_token": ""}, "last_refresh": 2}"#,
            r#"{"last_refresh": "now", "tokens": {"access_token": "a2", "access_token": "a2", "refresh_token": "r2", "id_token": "i2"}, "last_refresh": "now"}"#,
        );
    }

    #[test]
    fn text_without_tokens_is_rejected() {
        let new = NewTokens::new(None, "a2", None);
        for text in [
            "",
            "[]",
            "{}",
            r#"{"tokens": null}"#,
            r#"{"tokens": 5}"#,
            r#"{"tokens": {}}"#,
        ] {
            assert!(with_tokens(text, &new, "now").is_none(), "{text}");
        }
    }
}
