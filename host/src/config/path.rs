//! Where a value is in the configuration file. A path is a list of keys and indices and becomes
//! text only when a person reads it: a key may contain dots, so the text cannot be taken apart
//! again.

use std::fmt;

use serde_json::Value;

/// A step into an object or a list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum PathSegment {
    Key(String),
    Index(usize),
}

/// The place of a value: `services[0].credentials[2].reserve_5h`. The root is the file as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ConfigPath {
    segments: Vec<PathSegment>,
}

impl ConfigPath {
    /// The file as a whole.
    pub fn root() -> Self {
        Self::default()
    }

    /// Returns the path of `name` in the object at this path.
    pub fn key(&self, name: &str) -> Self {
        self.with(PathSegment::Key(name.to_owned()))
    }

    /// Returns the path of an item of the list at this path.
    pub fn index(&self, index: usize) -> Self {
        self.with(PathSegment::Index(index))
    }

    /// Returns the path that `pointer` (RFC 6901) names below this one. A number is taken for an
    /// index.
    pub fn pointer(&self, pointer: &str) -> Self {
        let steps = pointer.split('/').filter(|step| !step.is_empty());
        steps.fold(self.clone(), |path, step| match step.parse() {
            Ok(index) => path.index(index),
            Err(_) => path.key(&step.replace("~1", "/").replace("~0", "~")),
        })
    }

    /// Returns the path of what is at `below`, seen from this path.
    pub fn join(&self, below: &Self) -> Self {
        let segments = self.segments.iter().chain(&below.segments);
        Self {
            segments: segments.cloned().collect(),
        }
    }

    /// Returns the path as a JSON pointer (RFC 6901).
    pub fn to_pointer(&self) -> String {
        let step = |segment: &PathSegment| match segment {
            PathSegment::Key(name) => format!("/{}", name.replace('~', "~0").replace('/', "~1")),
            PathSegment::Index(index) => format!("/{index}"),
        };
        self.segments.iter().map(step).collect()
    }

    /// Returns whether this is the file as a whole.
    pub fn is_root(&self) -> bool {
        self.segments.is_empty()
    }

    /// Returns whether one of the two contains the other, or they are the same.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.segments.starts_with(&other.segments) || other.segments.starts_with(&self.segments)
    }

    /// Removes the key at this path from `value`. An item of a list stays: the paths of the items
    /// after it would no longer be right.
    pub(super) fn remove_from(&self, value: &mut Value) {
        let Some((PathSegment::Key(last), parents)) = self.segments.split_last() else {
            return;
        };
        let parent = parents
            .iter()
            .try_fold(value, |value, segment| match segment {
                PathSegment::Key(name) => value.get_mut(name),
                PathSegment::Index(index) => value.get_mut(index),
            });
        if let Some(object) = parent.and_then(Value::as_object_mut) {
            object.shift_remove(last);
        }
    }

    fn with(&self, segment: PathSegment) -> Self {
        let mut segments = self.segments.clone();
        segments.push(segment);
        Self { segments }
    }
}

impl fmt::Display for ConfigPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.segments.iter().enumerate() {
            match segment {
                PathSegment::Index(index) => write!(f, "[{index}]")?,
                PathSegment::Key(name) if !is_plain(name) => write!(f, "[{name:?}]")?,
                PathSegment::Key(name) if position == 0 => f.write_str(name)?,
                PathSegment::Key(name) => write!(f, ".{name}")?,
            }
        }
        Ok(())
    }
}

/// Returns whether a key can be written after a dot.
fn is_plain(name: &str) -> bool {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '$');
    !name.is_empty() && name.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn headers() -> ConfigPath {
        ConfigPath::root().key("services").index(0).key("headers")
    }

    #[test]
    fn a_path_is_written_with_dots_and_brackets() {
        assert_eq!(ConfigPath::root().to_string(), "");
        assert_eq!(headers().key("x-a").to_string(), "services[0].headers.x-a");
        assert_eq!(
            headers().key("x.y").to_string(),
            "services[0].headers[\"x.y\"]"
        );
        assert_eq!(headers().key("").to_string(), "services[0].headers[\"\"]");
        assert_eq!(ConfigPath::root().index(1).to_string(), "[1]");
    }

    #[test]
    fn a_pointer_is_read_and_written_with_its_escapes() {
        let path = ConfigPath::root().key("config");
        assert_eq!(path.pointer(""), path);
        let below = ConfigPath::root().key("a/b").index(0).key("c~d");
        assert_eq!(below.to_pointer(), "/a~1b/0/c~0d");
        assert_eq!(path.pointer("/a~1b/0/c~0d"), path.join(&below));
    }

    #[test]
    fn a_key_with_a_dot_is_removed() {
        let mut value = json!({ "services": [{ "headers": { "x.y": 1, "x": { "y": 2 } } }] });
        headers().key("x.y").remove_from(&mut value);
        assert_eq!(
            value,
            json!({ "services": [{ "headers": { "x": { "y": 2 } } }] })
        );
    }

    #[test]
    fn what_is_not_there_and_an_item_of_a_list_are_not_removed() {
        let value = json!({ "services": [1] });
        for path in [
            ConfigPath::root(),
            ConfigPath::root().key("other"),
            ConfigPath::root().key("services").index(0),
            ConfigPath::root().key("services").index(0).key("tag"),
        ] {
            let mut removed = value.clone();
            path.remove_from(&mut removed);
            assert_eq!(removed, value, "{path}");
        }
    }

    #[test]
    fn paths_overlap_when_one_contains_the_other() {
        assert!(headers().overlaps(&headers().key("x")));
        assert!(headers().key("x").overlaps(&headers()));
        assert!(!headers().key("x").overlaps(&headers().key("x.y")));
    }
}
