//! Checks a JSON value against a JSON Schema and says everything that is wrong with it, each thing at its place.
//!
//! Messages name what was expected and what was found, and never quote a text that may be a secret.

use std::fmt;

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::paths::{Location, LocationSegment};
use jsonschema::{ValidationError, Validator};
use serde_json::Value;

/// One thing wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where: `services[0].credentials[2].reserve_5h`. Empty for the whole.
    pub path: String,
    /// What was expected and what was found.
    pub message: String,
}

impl Problem {
    /// A problem at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

/// A schema, ready to check values. Its sub-schemas must be in place, without `$ref`, for unknown keys to be matched
/// with known ones.
pub struct Shape {
    schema: Value,
    validator: Validator,
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shape").finish_non_exhaustive()
    }
}

impl Shape {
    /// # Errors
    /// `schema` is no JSON Schema; the text says why.
    pub fn new(schema: Value) -> Result<Self, String> {
        let validator = jsonschema::validator_for(&schema).map_err(|error| error.to_string())?;
        Ok(Self { schema, validator })
    }

    /// Everything that is wrong with `value`, which stands at `root` of its file.
    pub fn problems(&self, root: &str, value: &Value) -> Vec<Problem> {
        let mut problems = Vec::new();
        for error in self.validator.iter_errors(value) {
            self.report(root, &error, &mut problems);
        }
        problems
    }

    fn report(&self, root: &str, error: &ValidationError<'_>, problems: &mut Vec<Problem>) {
        let path = join(root, &path(error.instance_path()));
        match error.kind() {
            ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
                self.report_likeliest(root, error, context, problems);
            }
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                let known = self.known_keys(error.schema_path());
                for key in unexpected {
                    problems.push(Problem::new(join(&path, key), unknown_key(key, &known)));
                }
            }
            ValidationErrorKind::Required { property } => {
                let property = property.as_str().unwrap_or_default();
                problems.push(Problem::new(join(&path, property), "missing"));
            }
            kind => {
                let expected = self.range(error).unwrap_or_else(|| expected(kind));
                problems
                    .push(Problem::new(path, format!("expected {expected}, found {}", found(kind, error.instance()))));
            }
        }
    }

    /// Of several forms that a value may have, reports what is wrong with the one that was meant: of the right JSON
    /// type and with the right `type`.
    fn report_likeliest(
        &self,
        root: &str,
        error: &ValidationError<'_>,
        context: &[Vec<ValidationError<'static>>],
        problems: &mut Vec<Problem>,
    ) {
        let here = error.instance_path();
        let likeliest = context.iter().min_by_key(|errors| {
            let misses = errors.iter().filter(|error| is_of_another_form(here, error)).count();
            (misses, errors.len())
        });
        let Some(likeliest) = likeliest else { return };
        let meant = likeliest.iter().filter(|error| !is_of_another_form(here, error)).count() > 0;
        if meant || context.len() == 1 || !has_type_key(error.instance()) {
            for error in likeliest {
                self.report(root, error, problems);
            }
            return;
        }
        let path = join(&join(root, &path(here)), "type");
        let found = error.instance().get("type").map_or("nothing".to_owned(), Value::to_string);
        let types = type_names(context);
        problems.push(Problem::new(path, format!("expected {types}, found {found}")));
    }

    /// `1 to 99`, where a number is out of a range that has two ends.
    fn range(&self, error: &ValidationError<'_>) -> Option<String> {
        let pointer = error.schema_path().as_str();
        let parent = pointer.strip_suffix("/minimum").or_else(|| pointer.strip_suffix("/maximum"))?;
        let schema = self.schema.pointer(parent)?;
        Some(format!("{} to {}", number(schema.get("minimum")?), number(schema.get("maximum")?)))
    }

    fn known_keys(&self, schema_path: &Location) -> Vec<String> {
        let pointer = schema_path.as_str().trim_end_matches("/additionalProperties");
        let properties = self.schema.pointer(&format!("{pointer}/properties")).and_then(Value::as_object);
        properties.map(|properties| properties.keys().cloned().collect()).unwrap_or_default()
    }
}

/// Whether `error` says that the value at `here` is not of this form at all.
fn is_of_another_form(here: &Location, error: &ValidationError<'_>) -> bool {
    let depth = |location: &Location| location.into_iter().count();
    match error.kind() {
        ValidationErrorKind::Type { .. } => depth(error.instance_path()) == depth(here),
        ValidationErrorKind::Required { property } => property == "type" && depth(error.instance_path()) == depth(here),
        ValidationErrorKind::Enum { .. } | ValidationErrorKind::Constant { .. } => {
            let below = depth(error.instance_path()) == depth(here) + 1;
            below && error.instance_path().as_str().ends_with("/type")
        }
        ValidationErrorKind::AnyOf { context } => {
            context.iter().all(|errors| errors.iter().any(|error| is_of_another_form(here, error)))
                || error.instance_path().as_str().ends_with("/type")
        }
        _ => false,
    }
}

fn has_type_key(value: &Value) -> bool {
    value.get("type").is_some()
}

fn type_names(context: &[Vec<ValidationError<'static>>]) -> String {
    let mut names = Vec::new();
    for error in context.iter().flatten() {
        collect_type_names(error, &mut names);
    }
    names.dedup();
    format!("one of {}", names.join(", "))
}

fn collect_type_names(error: &ValidationError<'_>, names: &mut Vec<String>) {
    match error.kind() {
        ValidationErrorKind::Enum { options } if error.instance_path().as_str().ends_with("/type") => {
            let options = options.as_array().into_iter().flatten();
            names.extend(options.filter(|option| !option.is_null()).map(Value::to_string));
        }
        ValidationErrorKind::Constant { expected_value } if error.instance_path().as_str().ends_with("/type") => {
            names.push(expected_value.to_string());
        }
        ValidationErrorKind::AnyOf { context } => {
            for error in context.iter().flatten() {
                collect_type_names(error, names);
            }
        }
        _ => {}
    }
}

/// `unknown key; did you mean "listen_port"?`
pub fn unknown_key(key: &str, known: &[String]) -> String {
    let near = known.iter().map(|name| (strsim::jaro_winkler(key, name), name));
    let nearest = near.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(likeness, _)| *likeness > 0.75);
    match nearest {
        Some((_, name)) => format!("unknown key; did you mean {name:?}?"),
        None => "unknown key".to_owned(),
    }
}

fn expected(kind: &ValidationErrorKind) -> String {
    match kind {
        ValidationErrorKind::Type { kind: TypeKind::Single(single) } => with_article(&single.to_string()),
        ValidationErrorKind::Type { kind: TypeKind::Multiple(several) } => {
            let names: Vec<String> =
                several.iter().map(|name| name.to_string()).filter(|name| name != "null").collect();
            names.iter().map(|name| with_article(name)).collect::<Vec<_>>().join(" or ")
        }
        ValidationErrorKind::Enum { options } => {
            let options = options.as_array().into_iter().flatten().filter(|option| !option.is_null());
            format!("one of {}", options.map(Value::to_string).collect::<Vec<_>>().join(", "))
        }
        ValidationErrorKind::Constant { expected_value } => expected_value.to_string(),
        ValidationErrorKind::Minimum { limit } => format!("{} or more", number(limit)),
        ValidationErrorKind::Maximum { limit } => format!("{} or less", number(limit)),
        ValidationErrorKind::ExclusiveMinimum { limit } => format!("more than {}", number(limit)),
        ValidationErrorKind::ExclusiveMaximum { limit } => format!("less than {}", number(limit)),
        ValidationErrorKind::Pattern { pattern } if pattern.contains("ns|us") => {
            "a duration such as \"60s\" or \"1h30m\"".to_owned()
        }
        _ => {
            let keyword = kind.keyword();
            format!("what the schema says of {keyword:?}")
        }
    }
}

fn number(limit: &Value) -> String {
    match limit.as_f64() {
        Some(limit) if limit.fract() == 0.0 && limit.abs() < 1e15 => format!("{limit:.0}"),
        _ => limit.to_string(),
    }
}

/// What stands there: numbers and what has a closed list of values in full, other texts only as "a string".
fn found(kind: &ValidationErrorKind, value: &Value) -> String {
    let closed = matches!(
        kind,
        ValidationErrorKind::Enum { .. } | ValidationErrorKind::Constant { .. } | ValidationErrorKind::Pattern { .. }
    );
    match value {
        Value::String(text) if closed && text.len() <= 40 => format!("{text:?}"),
        Value::Number(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::Null => "null".to_owned(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn with_article(name: &str) -> String {
    let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {name}")
}

fn path(location: &Location) -> String {
    let mut path = String::new();
    for segment in location {
        match segment {
            LocationSegment::Property(name) => path = join(&path, &name),
            LocationSegment::Index(index) => path.push_str(&format!("[{index}]")),
        }
    }
    path
}

/// `root.key`, or either where the other is empty.
pub fn join(root: &str, key: &str) -> String {
    match (root.is_empty(), key.is_empty()) {
        (true, _) => key.to_owned(),
        (_, true) => root.to_owned(),
        _ if key.starts_with('[') => format!("{root}{key}"),
        _ => format!("{root}.{key}"),
    }
}
