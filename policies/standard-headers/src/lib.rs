//! The shipped rewriter: sets the fields of a service's `headers` setting on every request to
//! upstream.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use tollgate_policy::{Edit, Headers, Refusal, Request, Rewriter};

/// The configuration of `standard-headers`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "tollgate_policy::schemars")]
struct Config {
    /// The fields to set, each with its values in order. They replace all fields of the same name.
    /// An empty list removes the field.
    #[serde(default)]
    set: BTreeMap<String, Vec<String>>,
}

struct StandardHeaders {
    edits: Vec<Edit>,
}

impl Rewriter for StandardHeaders {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        let edits = config
            .set
            .into_iter()
            .flat_map(|(name, values)| replace(&name, values))
            .collect();
        Ok(Self { edits })
    }

    fn request(&self, _: &Request, _: &Headers) -> Result<Vec<Edit>, Refusal> {
        Ok(self.edits.clone())
    }
}

fn replace(name: &str, values: Vec<String>) -> Vec<Edit> {
    let name = name.to_ascii_lowercase();
    let mut values = values.into_iter();
    let Some(first) = values.next() else {
        return vec![Edit::drop(name)];
    };
    let rest = values.map(|value| Edit::add(name.clone(), value));
    std::iter::once(Edit::set_to(name.clone(), first))
        .chain(rest)
        .collect()
}

tollgate_policy::export_rewriter!(StandardHeaders);

#[cfg(test)]
mod tests {
    use tollgate_policy::testing::request;

    use super::*;

    #[track_caller]
    fn check(set: &[(&str, &[&str])], expected: &[Edit]) {
        let set = set.iter().map(|(name, values)| {
            (
                (*name).to_owned(),
                values.iter().map(|value| (*value).to_owned()).collect(),
            )
        });
        let policy = StandardHeaders::new(Config { set: set.collect() })
            .expect("any configuration is accepted");
        let edits = policy
            .request(&request(), &Headers::default())
            .expect("nothing is refused");
        assert_eq!(format!("{edits:?}"), format!("{expected:?}"));
    }

    #[test]
    fn a_field_is_set_under_its_lower_case_name() {
        check(
            &[("OpenAI-Beta", &["x"])],
            &[Edit::set_to("openai-beta", "x")],
        );
    }

    #[test]
    fn further_values_are_appended_in_order() {
        check(
            &[("a", &["1", "2", "3"])],
            &[
                Edit::set_to("a", "1"),
                Edit::add("a", "2"),
                Edit::add("a", "3"),
            ],
        );
    }

    #[test]
    fn an_empty_list_removes_the_field() {
        check(&[("a", &[])], &[Edit::drop("a")]);
    }
}
