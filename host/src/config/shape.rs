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
pub struct ConfigProblem {
    /// Where: `services[0].credentials[2].reserve_5h`. Empty for the whole.
    pub path: String,
    /// What was expected and what was found.
    pub message: String,
}

impl ConfigProblem {
    /// A problem at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// A schema, ready to check values. Its sub-schemas must be in place, without `$ref`, for unknown keys to be matched
/// with known ones.
pub struct SchemaValidator {
    schema: Value,
    validator: Validator,
}

impl fmt::Debug for SchemaValidator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shape").finish_non_exhaustive()
    }
}

impl SchemaValidator {
    /// # Errors
    /// `schema` is no JSON Schema; the text says why.
    pub fn new(schema: Value) -> Result<Self, String> {
        let validator = jsonschema::validator_for(&schema).map_err(|error| error.to_string())?;
        Ok(Self { schema, validator })
    }

    /// Everything that is wrong with `value`, which stands at `root` of its file.
    pub fn problems(&self, root: &str, value: &Value) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        for error in self.validator.iter_errors(value) {
            self.report(root, &error, &mut problems);
        }
        problems
    }

    fn report(&self, root: &str, error: &ValidationError<'_>, problems: &mut Vec<ConfigProblem>) {
        let path = join(root, &path(error.instance_path()));
        match error.kind() {
            ValidationErrorKind::AnyOf { context }
            | ValidationErrorKind::OneOfNotValid { context } => {
                self.report_likeliest(root, error, context, problems);
            }
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                let known = self.known_keys(error.schema_path());
                for key in unexpected {
                    problems.push(ConfigProblem::new(
                        join(&path, key),
                        unknown_key(key, &known),
                    ));
                }
            }
            ValidationErrorKind::Required { property } => {
                let property = property.as_str().unwrap_or_default();
                problems.push(ConfigProblem::new(join(&path, property), "missing"));
            }
            kind => {
                let expected = self.range(error).unwrap_or_else(|| expected(kind));
                problems.push(ConfigProblem::new(
                    path,
                    format!(
                        "expected {expected}, found {}",
                        found(kind, error.instance())
                    ),
                ));
            }
        }
    }

    /// Of several forms that a value may have, reports what is wrong with the one that was meant: of the right JSON
    /// type and with the right `type`. Where none was, says which there are.
    fn report_likeliest(
        &self,
        root: &str,
        error: &ValidationError<'_>,
        context: &[Vec<ValidationError<'static>>],
        problems: &mut Vec<ConfigProblem>,
    ) {
        let here = error.instance_path();
        let place = join(root, &path(here));
        if let Some(expected) = choices(here, context) {
            let found = found_choice(error.instance());
            problems.push(ConfigProblem::new(
                place,
                format!("expected one of {expected}, found {found}"),
            ));
            return;
        }
        if let Some(expected) = json_types(here, context) {
            let found = kind_of(error.instance());
            problems.push(ConfigProblem::new(
                place,
                format!("expected {expected}, found {found}"),
            ));
            return;
        }
        let misses = |errors: &[ValidationError<'_>]| {
            errors
                .iter()
                .filter(|error| is_of_another_form(here, error))
                .count()
        };
        let Some(likeliest) = context
            .iter()
            .min_by_key(|errors| (misses(errors), errors.len()))
        else {
            return;
        };
        let names = type_names(context);
        if misses(likeliest) == 0 || names.is_empty() || error.instance().get("type").is_none() {
            for error in likeliest {
                self.report(root, error, problems);
            }
            return;
        }
        let found = error
            .instance()
            .get("type")
            .map_or("nothing".to_owned(), found_choice);
        let expected = names.join(", ");
        problems.push(ConfigProblem::new(
            join(&place, "type"),
            format!("expected one of {expected}, found {found}"),
        ));
    }

    /// What a number or duration must be, where the schema says more than its type: `1 to 99`.
    fn range(&self, error: &ValidationError<'_>) -> Option<String> {
        let pointer = error.schema_path().as_str();
        let parent = ["/minimum", "/maximum", "/type"]
            .into_iter()
            .find_map(|end| pointer.strip_suffix(end))?;
        let schema = self.schema.pointer(parent)?;
        if schema
            .get("pattern")
            .and_then(Value::as_str)
            .is_some_and(is_of_durations)
        {
            return Some(A_DURATION.to_owned());
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

/// Whether `error` says that the value at `here` is not of this form at all.
fn is_of_another_form(here: &Location, error: &ValidationError<'_>) -> bool {
    let at = error.instance_path();
    match error.kind() {
        ValidationErrorKind::Type { .. } => depth(at) == depth(here) || is_type_key(here, at),
        ValidationErrorKind::Required { property } => {
            property == "type" && depth(at) == depth(here)
        }
        ValidationErrorKind::Enum { .. } | ValidationErrorKind::Constant { .. } => {
            is_type_key(here, at)
        }
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
            let nowhere = |errors: &Vec<ValidationError<'_>>| {
                errors.iter().any(|error| is_of_another_form(here, error))
            };
            is_type_key(here, at) || (depth(at) == depth(here) && context.iter().all(nowhere))
        }
        _ => false,
    }
}

fn depth(location: &Location) -> usize {
    location.into_iter().count()
}

/// Whether `at` is the `type` of the object at `here`.
fn is_type_key(here: &Location, at: &Location) -> bool {
    depth(at) == depth(here) + 1 && at.as_str().ends_with("/type")
}

/// The values that a text at `here` may have, where that is all that its forms say.
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

/// The JSON types that a value at `here` may have, where it has none of them.
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

/// The values of an enum or constant, as they are written.
fn options(kind: &ValidationErrorKind) -> Option<Vec<String>> {
    match kind {
        ValidationErrorKind::Enum { options } => {
            let options = options
                .as_array()
                .into_iter()
                .flatten()
                .filter(|option| !option.is_null());
            Some(options.map(Value::to_string).collect())
        }
        ValidationErrorKind::Constant { expected_value } => Some(vec![expected_value.to_string()]),
        _ => None,
    }
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
            context
                .iter()
                .flatten()
                .for_each(|error| collect_type_names(error, names));
        }
        kind => names.extend(options(kind).unwrap_or_default()),
    }
}

/// `unknown key; did you mean "listen_port"?`
pub fn unknown_key(key: &str, known: &[String]) -> String {
    let near = known
        .iter()
        .map(|name| (strsim::jaro_winkler(key, name), name));
    let nearest = near
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.75);
    match nearest {
        Some((_, name)) => format!("unknown key; did you mean {name:?}?"),
        None => "unknown key".to_owned(),
    }
}

const A_DURATION: &str = "a duration such as \"60s\" or \"1h30m\"";

fn is_of_durations(pattern: &str) -> bool {
    pattern.contains("ns|us")
}

fn expected(kind: &ValidationErrorKind) -> String {
    match kind {
        ValidationErrorKind::Type {
            kind: TypeKind::Single(single),
        } => with_article(&single.to_string()),
        ValidationErrorKind::Type {
            kind: TypeKind::Multiple(several),
        } => {
            let names: Vec<String> = several
                .iter()
                .map(|name| name.to_string())
                .filter(|name| name != "null")
                .collect();
            names
                .iter()
                .map(|name| with_article(name))
                .collect::<Vec<_>>()
                .join(" or ")
        }
        ValidationErrorKind::Minimum { limit } => format!("{} or more", number(limit)),
        ValidationErrorKind::Maximum { limit } => format!("{} or less", number(limit)),
        ValidationErrorKind::ExclusiveMinimum { limit } => format!("more than {}", number(limit)),
        ValidationErrorKind::ExclusiveMaximum { limit } => format!("less than {}", number(limit)),
        ValidationErrorKind::Pattern { pattern } if is_of_durations(pattern) => {
            A_DURATION.to_owned()
        }
        kind => match options(kind) {
            Some(options) => format!("one of {}", options.join(", ")),
            None => format!("what the schema says of {:?}", kind.keyword()),
        },
    }
}

fn number(limit: &Value) -> String {
    match limit.as_f64() {
        Some(limit) if limit.fract() == 0.0 && limit.abs() < 1e15 => format!("{limit:.0}"),
        _ => limit.to_string(),
    }
}

/// What stands there. A text may be a secret, and a number that stands where a text belongs, too: they are named by
/// their kind, but for texts out of a closed list and numbers out of a range.
fn found(kind: &ValidationErrorKind, value: &Value) -> String {
    match kind {
        ValidationErrorKind::Enum { .. }
        | ValidationErrorKind::Constant { .. }
        | ValidationErrorKind::Pattern { .. } => found_choice(value),
        ValidationErrorKind::Type {
            kind: TypeKind::Single(single),
        } if single.to_string() == "string" => kind_of(value).to_owned(),
        ValidationErrorKind::Type {
            kind: TypeKind::Multiple(several),
        } if several.iter().any(|name| name.to_string() == "string") => kind_of(value).to_owned(),
        ValidationErrorKind::Type { .. }
        | ValidationErrorKind::Minimum { .. }
        | ValidationErrorKind::Maximum { .. } => match value {
            Value::Number(number) => number.to_string(),
            other => kind_of(other).to_owned(),
        },
        _ => kind_of(value).to_owned(),
    }
}

/// A text that should have been out of a closed list.
fn found_choice(value: &Value) -> String {
    match value {
        Value::String(text) if text.len() <= 40 => format!("{text:?}"),
        other => kind_of(other).to_owned(),
    }
}

/// What kind of value stands there, in words: for messages that must not quote it.
pub fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn with_article(name: &str) -> String {
    let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
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
