//! The section `limits`: every limit that is set, read as its declaration says.

use serde_json::Value;

use super::field;
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::{RawDuration, RawLimits};
use crate::config::size;
use crate::values::limits::{LedgerFull, LimitDeclaration, LimitRange, LimitValue, Limits};

pub(super) fn limits(raw: &RawLimits, report: &mut ProblemReport) -> Limits {
    let root = ConfigPath::root().key("limits");
    let mut limits = Limits::default();
    for limit in Limits::declarations() {
        let (group, name) = limit.group_and_name();
        let (path, object) = match group {
            None => (root.clone(), Some(&raw.0)),
            Some(group) => (root.key(group), raw.0.get(group).and_then(Value::as_object)),
        };
        let set = object.and_then(|object| object.get(name));
        let value = set
            .filter(|value| !value.is_null())
            .and_then(|value| read(&limit, value, path.key(name), report));
        if let Some(value) = value {
            limits.set(limit.name, value);
        }
    }
    limits
}

/// Reads `value`, whose form the schema has checked, and the range of a number.
fn read(
    limit: &LimitDeclaration,
    value: &Value,
    field: ConfigPath,
    report: &mut ProblemReport,
) -> Option<LimitValue> {
    match limit.default {
        LimitValue::Number(_) => {
            let number = match value {
                Value::String(text) => size::parse(text),
                value => whole_number(value),
            };
            let LimitRange { min, max } = limit.range;
            match number {
                Some(number) if (min..=max).contains(&number) => {}
                Some(number) if max == u64::MAX => {
                    report.problem(field, format!("expected {min} or more, found {number}"));
                }
                Some(number) => {
                    report.problem(field, format!("expected {min} to {max}, found {number}"));
                }
                None => report.problem(field, format!("expected at most {max}, found {value}")),
            }
            number.map(LimitValue::Number)
        }
        LimitValue::Duration(_) => {
            let raw = RawDuration(value.as_str()?.to_owned());
            field::positive_duration(&raw, field, report).map(LimitValue::Duration)
        }
        LimitValue::Switch(_) => value.as_bool().map(LimitValue::Switch),
        LimitValue::LedgerFull(_) => {
            let mut choices = LedgerFull::ALL.into_iter();
            let choice = choices.find(|choice| value.as_str() == Some(choice.as_str()));
            choice.map(LimitValue::LedgerFull)
        }
    }
}

/// Reads a number as the schema's `integer` allows it: `64.0` and `6.4e1` are whole, too.
fn whole_number(value: &Value) -> Option<u64> {
    let float = || {
        let number = value.as_f64()?;
        (number.fract() == 0.0 && (0.0..u64::MAX as f64).contains(&number)).then_some(number as u64)
    };
    value.as_u64().or_else(float)
}
