//! Metrics as Prometheus parses them (text format 0.0.4). A text that Prometheus would reject fails
//! the test.

use std::collections::{BTreeMap, BTreeSet};

/// The labels of a sample.
type Labels = BTreeMap<String, String>;

/// The samples of one scrape.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// The families and their types, by name.
    families: BTreeMap<String, String>,
    samples: Vec<(String, Labels, f64)>,
}

impl Metrics {
    /// Parses `text`.
    ///
    /// # Panics
    /// Panics if a line is malformed, a family is declared twice or not at all, a sample appears
    /// twice or outside its family, or a histogram's buckets do not add up.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has no end");
        let mut metrics = Self {
            families: BTreeMap::new(),
            samples: Vec::new(),
        };
        let mut helped = BTreeSet::new();
        let mut family = String::new();
        let mut known = BTreeSet::new();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, words) = help
                    .split_once(' ')
                    .unwrap_or_else(|| panic!("no help: {line:?}"));
                assert!(
                    !words.trim().is_empty() && helped.insert(name.to_owned()),
                    "helped twice: {line:?}"
                );
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind
                    .split_once(' ')
                    .unwrap_or_else(|| panic!("no type: {line:?}"));
                assert!(
                    ["counter", "gauge", "histogram"].contains(&kind),
                    "{line:?}"
                );
                assert!(helped.contains(name), "no help before {line:?}");
                let before = metrics.families.insert(name.to_owned(), kind.to_owned());
                assert_eq!(before, None, "typed twice: {line:?}");
                family = name.to_owned();
            } else {
                let (name, labels, value) = sample(line);
                assert!(
                    is_of(&name, &family, &metrics.families[&family]),
                    "{line:?} stands under {family}"
                );
                assert!(
                    known.insert((name.clone(), labels.clone())),
                    "there twice: {line:?}"
                );
                metrics.samples.push((name, labels, value));
            }
        }
        metrics.check_histograms();
        metrics
    }

    #[track_caller]
    fn check_histograms(&self) {
        for (family, _) in self
            .families
            .iter()
            .filter(|(_, kind)| *kind == "histogram")
        {
            let mut last: BTreeMap<Labels, (f64, f64)> = BTreeMap::new();
            for (name, labels, value) in &self.samples {
                let mut labels = labels.clone();
                if *name == format!("{family}_bucket") {
                    let bound = labels.remove("le").expect("a bucket has a bound");
                    let bound = if bound == "+Inf" {
                        f64::INFINITY
                    } else {
                        bound.parse().expect("a number")
                    };
                    let (before, count) = last
                        .insert(labels, (bound, *value))
                        .unwrap_or((f64::NEG_INFINITY, 0.0));
                    assert!(
                        before < bound && count <= *value,
                        "{name} goes down at {bound}"
                    );
                } else if *name == format!("{family}_count") {
                    let of = last.get(&labels);
                    assert!(
                        of.is_none_or(|of| *of == (f64::INFINITY, *value)),
                        "{name}: {value}, and {of:?}"
                    );
                }
            }
        }
    }

    /// Returns the families: name and type of each.
    pub fn families(&self) -> impl Iterator<Item = (&str, &str)> {
        self.families
            .iter()
            .map(|(name, kind)| (name.as_str(), kind.as_str()))
    }

    /// Returns the values of `name` with these labels, whatever other labels there are.
    pub fn values(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let has = |found: &Labels| {
            labels
                .iter()
                .all(|(key, value)| found.get(*key).is_some_and(|of| of == value))
        };
        let found = self
            .samples
            .iter()
            .filter(|(sample, found, _)| sample == name && has(found));
        found.map(|(_, _, value)| *value).collect()
    }

    /// Returns the only value of `name` with these labels.
    ///
    /// # Panics
    /// Panics if there is none, or several.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        match self.values(name, labels)[..] {
            [value] => value,
            ref values => panic!("{} values of {name} {labels:?}: {self:#?}", values.len()),
        }
    }

    /// Returns the values of `label` of `name`.
    pub fn labels(&self, name: &str, label: &str) -> BTreeSet<&str> {
        let of = self.samples.iter().filter(|(sample, ..)| sample == name);
        of.filter_map(|(_, labels, _)| labels.get(label).map(String::as_str))
            .collect()
    }
}

fn is_of(name: &str, family: &str, kind: &str) -> bool {
    let rest = name.strip_prefix(family);
    match kind {
        "histogram" => rest.is_some_and(|rest| ["_bucket", "_sum", "_count"].contains(&rest)),
        _ => rest == Some(""),
    }
}

/// Parses a line such as `name{label="value",…} 1.5`.
#[track_caller]
fn sample(line: &str) -> (String, Labels, f64) {
    let is_name = |name: &str| {
        let mut letters = name.chars();
        letters
            .next()
            .is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
            && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    };
    let (head, value) = line
        .rsplit_once(' ')
        .unwrap_or_else(|| panic!("no value: {line:?}"));
    let value = value
        .parse::<f64>()
        .unwrap_or_else(|error| panic!("{error}: {line:?}"));
    let (name, rest) = head.split_once('{').unwrap_or((head, ""));
    assert!(is_name(name), "no name: {line:?}");
    let mut labels = Labels::new();
    let mut rest = match rest {
        "" => "",
        rest => rest
            .strip_suffix('}')
            .unwrap_or_else(|| panic!("no end of its labels: {line:?}")),
    };
    while !rest.is_empty() {
        let (key, quoted) = rest
            .split_once("=\"")
            .unwrap_or_else(|| panic!("no label: {line:?}"));
        let (value, length) =
            unquoted(quoted).unwrap_or_else(|| panic!("no end of a label: {line:?}"));
        assert!(
            is_name(key) && labels.insert(key.to_owned(), value).is_none(),
            "a label: {line:?}"
        );
        rest = &quoted[length..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    (name.to_owned(), labels, value)
}

/// Returns the text up to the quote that ends it, and its length with the quote.
fn unquoted(quoted: &str) -> Option<(String, usize)> {
    let mut text = String::new();
    let mut letters = quoted.char_indices();
    while let Some((place, letter)) = letters.next() {
        match letter {
            '"' => return Some((text, place + 1)),
            '\\' => match letters.next()?.1 {
                'n' => text.push('\n'),
                escaped @ ('\\' | '"') => text.push(escaped),
                _ => return None,
            },
            '\n' => return None,
            letter => text.push(letter),
        }
    }
    None
}
