//! Checks a JSON value against a JSON Schema and reports every problem with its place. It does not
//! know what the schema describes: the configuration file and the configuration of a policy are
//! checked alike.

mod wording;

use std::fmt;

use jsonschema::error::ValidationErrorKind;
use jsonschema::paths::{Location, LocationSegment};
use jsonschema::{ValidationError, Validator};
use serde_json::Value;

use self::wording::{
    A_DURATION, A_SIZE, expected, found, found_choice, is_of_durations, is_of_sizes, number,
    options,
};
use super::path::ConfigPath;
use super::problem::ConfigProblem;
use crate::values::json::kind::json_kind;

/// A JSON Schema, ready to check values. Its sub-schemas must be inline, without `$ref`, so that an
/// unknown key can be compared with the known ones.
pub struct SchemaValidator {
    schema: Value,
    validator: Validator,
}

/// A schema that is not a JSON Schema.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct SchemaError {
    reason: String,
}

impl fmt::Debug for SchemaValidator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchemaValidator").finish_non_exhaustive()
    }
}

impl SchemaValidator {
    /// Prepares `schema`.
    ///
    /// # Errors
    /// `schema` is not a JSON Schema.
    pub fn new(schema: Value) -> Result<Self, SchemaError> {
        let validator = jsonschema::validator_for(&schema).map_err(|error| SchemaError {
            reason: error.to_string(),
        })?;
        Ok(Self { schema, validator })
    }

    /// Returns everything that is wrong with `value`, which is at `root` of its file.
    pub fn problems(&self, root: &ConfigPath, value: &Value) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        for error in self.validator.iter_errors(value) {
            self.report(root, &error, &mut problems);
        }
        problems
    }

    fn report(
        &self,
        root: &ConfigPath,
        error: &ValidationError<'_>,
        problems: &mut Vec<ConfigProblem>,
    ) {
        let path = path_below(root, error.instance_path());
        match error.kind() {
            ValidationErrorKind::AnyOf { context }
            | ValidationErrorKind::OneOfNotValid { context } => {
                self.report_likeliest(root, error, context, problems);
            }
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                let known = self.known_keys(error.schema_path());
                for key in unexpected {
                    problems.push(ConfigProblem::new(path.key(key), unknown_key(key, &known)));
                }
            }
            ValidationErrorKind::Required { property } => {
                let property = property.as_str().unwrap_or_default();
                problems.push(ConfigProblem::new(path.key(property), "missing"));
            }
            kind => {
                let expected = self.range(error).unwrap_or_else(|| expected(kind));
                let found = found(kind, error.instance());
                problems.push(mismatch(path, &expected, &found));
            }
        }
    }

    /// Reports an error about a value that may have several forms. If one form has the right JSON
    /// type and the right `type`, that one was meant and its errors are reported; otherwise the
    /// problem lists the forms that there are.
    fn report_likeliest(
        &self,
        root: &ConfigPath,
        error: &ValidationError<'_>,
        context: &[Vec<ValidationError<'static>>],
        problems: &mut Vec<ConfigProblem>,
    ) {
        let here = error.instance_path();
        let path = path_below(root, here);
        if let Some(choices) = choices(here, context) {
            let found = found_choice(error.instance());
            problems.push(mismatch(path, &format!("one of {choices}"), &found));
            return;
        }
        if let Some(expected) = json_types(here, context) {
            problems.push(mismatch(path, &expected, json_kind(error.instance())));
            return;
        }
        let mismatches = |errors: &[ValidationError<'_>]| {
            errors
                .iter()
                .filter(|error| rejects_form(here, error))
                .count()
        };
        let Some(likeliest) = context
            .iter()
            .min_by_key(|errors| (mismatches(errors), errors.len()))
        else {
            return;
        };
        let names = type_names(context);
        let found_type = error.instance().get("type");
        match found_type {
            Some(found) if mismatches(likeliest) > 0 && !names.is_empty() => {
                let expected = format!("one of {}", names.join(", "));
                problems.push(mismatch(path.key("type"), &expected, &found_choice(found)));
            }
            _ => {
                for error in likeliest {
                    self.report(root, error, problems);
                }
            }
        }
    }

    /// What a number or duration must be, if the schema says more than its type: `1 to 99`.
    fn range(&self, error: &ValidationError<'_>) -> Option<String> {
        let pointer = error.schema_path().as_str();
        let parent = ["/minimum", "/maximum", "/type"]
            .into_iter()
            .find_map(|end| pointer.strip_suffix(end))?;
        let schema = self.schema.pointer(parent)?;
        let pattern = schema.get("pattern").and_then(Value::as_str);
        if pattern.is_some_and(is_of_durations) {
            return Some(A_DURATION.to_owned());
        }
        if pattern.is_some_and(is_of_sizes) && pointer.ends_with("/type") {
            return Some(A_SIZE.to_owned());
        }
        Some(format!(
            "{} to {}",
            number(schema.get("minimum")?),
            number(schema.get("maximum")?)
        ))
    }

    fn known_keys(&self, schema_path: &Location) -> Vec<String> {
        let pointer = schema_path
            .as_str()
            .trim_end_matches("/additionalProperties");
        let properties = self
            .schema
            .pointer(&format!("{pointer}/properties"))
            .and_then(Value::as_object);
        properties
            .map(|properties| properties.keys().cloned().collect())
            .unwrap_or_default()
    }
}

fn mismatch(path: ConfigPath, expected: &str, found: &str) -> ConfigProblem {
    ConfigProblem::new(path, format!("expected {expected}, found {found}"))
}

fn path_below(root: &ConfigPath, location: &Location) -> ConfigPath {
    location
        .into_iter()
        .fold(root.clone(), |path, segment| match segment {
            LocationSegment::Property(name) => path.key(&name),
            LocationSegment::Index(index) => path.index(index),
        })
}

/// Returns whether `error` says that the value at `here` does not have this form at all.
fn rejects_form(here: &Location, error: &ValidationError<'_>) -> bool {
    let at = error.instance_path();
    match error.kind() {
        ValidationErrorKind::Type { .. } => depth(at) == depth(here) || is_type_key(here, at),
        ValidationErrorKind::Required { property } => {
            property == "type" && depth(at) == depth(here)
        }
        ValidationErrorKind::Enum { .. }
        | ValidationErrorKind::Constant { .. }
        | ValidationErrorKind::Not { .. } => is_type_key(here, at),
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
            let has_other_form = |errors: &Vec<ValidationError<'_>>| {
                errors.iter().any(|error| rejects_form(here, error))
            };
            is_type_key(here, at)
                || (depth(at) == depth(here) && context.iter().all(has_other_form))
        }
        _ => false,
    }
}

fn depth(location: &Location) -> usize {
    location.into_iter().count()
}

/// Returns whether `at` is the `type` of the object at `here`.
fn is_type_key(here: &Location, at: &Location) -> bool {
    depth(at) == depth(here) + 1 && at.as_str().ends_with("/type")
}

/// The values that a text at `here` may have, if that is all that its forms say.
fn choices(here: &Location, context: &[Vec<ValidationError<'static>>]) -> Option<String> {
    let mut names = Vec::new();
    for error in context.iter().flatten() {
        match error.kind() {
            _ if depth(error.instance_path()) != depth(here) => return None,
            ValidationErrorKind::Type { .. } => {}
            kind => names.extend(options(kind)?),
        }
    }
    names.dedup();
    (!names.is_empty()).then(|| names.join(", "))
}

/// The JSON types that a value at `here` may have, if it has none of them.
fn json_types(here: &Location, context: &[Vec<ValidationError<'static>>]) -> Option<String> {
    let mut names: Vec<String> = Vec::new();
    for errors in context {
        let of_type = errors.iter().find(|error| {
            matches!(error.kind(), ValidationErrorKind::Type { .. })
                && depth(error.instance_path()) == depth(here)
        })?;
        let name = expected(of_type.kind());
        if name != "a null" && !names.contains(&name) {
            names.push(name);
        }
    }
    names.sort_by_key(|name| name == "an array");
    Some(names.join(" or "))
}

/// The values that `type` may have, over all forms.
fn type_names(context: &[Vec<ValidationError<'static>>]) -> Vec<String> {
    let mut names = Vec::new();
    for error in context.iter().flatten() {
        collect_type_names(error, &mut names);
    }
    names.dedup();
    names
}

fn collect_type_names(error: &ValidationError<'_>, names: &mut Vec<String>) {
    if !error.instance_path().as_str().ends_with("/type") {
        return;
    }
    match error.kind() {
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
            for error in context.iter().flatten() {
                collect_type_names(error, names);
            }
        }
        kind => names.extend(options(kind).unwrap_or_default()),
    }
}

/// `unknown key; did you mean "listen_port"?`
fn unknown_key(key: &str, known: &[String]) -> String {
    let nearest = known
        .iter()
        .map(|name| (strsim::jaro_winkler(key, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity > 0.75);
    match nearest {
        Some((_, name)) => format!("unknown key; did you mean {name:?}?"),
        None => "unknown key".to_owned(),
    }
}
