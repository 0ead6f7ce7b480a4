//! Constraints of parameters and properties.

use std::sync::{Arc, OnceLock};

use super::parameters::{boolean, boolean_like, number};
use super::regex_cache::{self, CompiledPattern};
use super::version::Version;
use super::{Error, Result};
use crate::value::{Map, Text, Value};

/// A rule for a value, with the message its author gave.
#[derive(Debug, Clone)]
pub struct Constraint {
    pub(super) rule: Rule,
    pub(super) description: String,
}

/// What a value must fulfil.
#[derive(Debug, Clone)]
pub enum Rule {
    /// Least and greatest length of text, list or map.
    Length(Option<f64>, Option<f64>),
    /// Least and greatest number.
    Range(Option<f64>, Option<f64>),
    /// What a division by `step` leaves.
    Modulo {
        /// The divisor.
        step: f64,
        /// What it leaves.
        offset: f64,
    },
    /// One of these; every item of a list.
    Allowed(Vec<Value>),
    /// The whole text matches.
    Pattern(Pattern),
    /// Needs a cloud to check: names are taken as they are.
    Custom(String),
}

impl Rule {
    pub(super) fn holds(&self, value: &Value) -> bool {
        let within = |size: f64, min: Option<f64>, max: Option<f64>| {
            min.is_none_or(|min| size >= min) && max.is_none_or(|max| size <= max)
        };
        match self {
            Self::Length(min, max) => {
                let length = match value {
                    Value::String(text) => text.chars().count(),
                    Value::Array(items) => items.len(),
                    Value::Object(map) => map.len(),
                    _ => return true,
                };
                #[allow(clippy::cast_precision_loss, reason = "lengths are small")]
                within(length as f64, *min, *max)
            }
            Self::Range(min, max) => value.as_f64().is_some_and(|n| within(n, *min, *max)),
            Self::Modulo { step, offset } => value.as_f64().is_some_and(|n| {
                (n.rem_euclid(*step) - offset.rem_euclid(*step)).abs() < f64::EPSILON
            }),
            Self::Allowed(allowed) => match value {
                Value::Array(items) => items
                    .iter()
                    .all(|item| allowed.iter().any(|a| loosely(a, item))),
                one => allowed.iter().any(|a| loosely(a, one)),
            },
            Self::Pattern(pattern) => value.as_str().is_none_or(|text| pattern.matches(text)),
            Self::Custom(_) => true,
        }
    }

    pub(super) fn explain(&self) -> String {
        let bounds = |min: &Option<f64>, max: &Option<f64>| match (min, max) {
            (Some(min), Some(max)) => format!("between {min} and {max}"),
            (Some(min), None) => format!("at least {min}"),
            (None, Some(max)) => format!("at most {max}"),
            (None, None) => "any".into(),
        };
        match self {
            Self::Length(min, max) => format!("its length must be {}", bounds(min, max)),
            Self::Range(min, max) => format!("must be {}", bounds(min, max)),
            Self::Modulo { step, offset } => format!("must leave {offset} when divided by {step}"),
            Self::Allowed(values) => format!("must be one of {}", Value::from(values.clone())),
            Self::Pattern(pattern) => format!("must match `{}`", pattern.text),
            Self::Custom(name) => format!("must be a {name}"),
        }
    }
}

/// For allowed values `1` and `"1"` are the same.
fn loosely(a: &Value, b: &Value) -> bool {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string().into(),
    };
    a == b
        || (boolean_like(a) && boolean(a) == boolean(b))
        || text(a) == text(b)
        || (a.is_number() || b.is_number()) && numeric(a).is_some() && numeric(a) == numeric(b)
}

/// The keys of constraints in the order in which Heat searches for them: of several keys the first one
/// is used.
const HOT: [&str; 6] = [
    "modulo",
    "range",
    "length",
    "allowed_values",
    "allowed_pattern",
    "custom_constraint",
];

/// One constraint as HOT writes it.
pub(super) fn hot_constraint(value: &Value, version: Version) -> Result<Constraint> {
    let Value::Object(map) = value else {
        return Err(Error::new("a constraint is a map"));
    };
    let description = map.get("description").and_then(Value::as_str);
    let unknown = |key: &&Text| *key != "description" && !HOT.contains(&key.as_str());
    if let Some(key) = map.keys().find(unknown) {
        return Err(Error::new(format!(
            "no constraint `{key}`; there are length, range, modulo, allowed_values, allowed_pattern and custom_constraint"
        )));
    }
    let known = |key: &&&str| **key != "modulo" || version >= Version::Ocata;
    let mut named = HOT.iter().filter(known);
    let found = named.find_map(|key| Some((*key, map.get(key)?)));
    let Some((name, value)) = found else {
        return Err(Error::new("no constraint expressed"));
    };
    let rule = rule(name, value).map_err(|error| error.below(name))?;
    Ok(Constraint {
        rule,
        description: description.unwrap_or("").to_owned(),
    })
}

fn rule(name: &str, value: &Value) -> Result<Rule> {
    let fields = |allowed: [&str; 2]| {
        let Value::Object(map) = value else {
            return Err(Error::new("must be a map"));
        };
        match map.keys().find(|key| !allowed.contains(&key.as_str())) {
            Some(key) => Err(Error::new(format!(
                "no key `{key}`; there are {} and {}",
                allowed[0], allowed[1]
            ))),
            None => Ok((map, bounds(map, allowed)?)),
        }
    };
    Ok(match name {
        "length" => {
            let keys = ["min", "max"];
            let (map, bounds) = fields(keys)?;
            length(map, keys, bounds)?
        }
        "range" => {
            let (_, (min, max)) = fields(["min", "max"])?;
            Rule::Range(min, max)
        }
        "modulo" => {
            let (_, (step, offset)) = fields(["step", "offset"])?;
            let (Some(step), Some(offset)) = (step, offset) else {
                return Err(Error::new("needs step and offset"));
            };
            if step == 0.0
                || step.fract() != 0.0
                || offset.fract() != 0.0
                || offset.abs() >= step.abs()
                || (offset != 0.0 && (step < 0.0) != (offset < 0.0))
            {
                return Err(Error::new(
                    "whole numbers: step must not be 0, and offset be smaller, of the same sign",
                ));
            }
            Rule::Modulo { step, offset }
        }
        "allowed_values" => match value {
            Value::Array(values) => Rule::Allowed(values.to_vec()),
            _ => return Err(Error::new("must be a list")),
        },
        "allowed_pattern" => match value {
            Value::String(text) => pattern(text)?,
            _ => return Err(Error::new("must be a string")),
        },
        _ => Rule::Custom(value.as_str().unwrap_or_default().to_owned()),
    })
}

/// Two bounds of which one may be left out.
pub(super) fn bounds(map: &Map, keys: [&str; 2]) -> Result<(Option<f64>, Option<f64>)> {
    let get = |key: &str| {
        let value = map.get(key).filter(|value| !value.is_null());
        let number = value.map(|value| match value {
            Value::Bool(flag) => Ok(f64::from(u8::from(*flag))),
            value => numeric(value).ok_or_else(|| Error::new("must be numbers")),
        });
        number.transpose()
    };
    match (get(keys[0])?, get(keys[1])?) {
        (None, None) => Err(Error::new(format!("needs {} or {}", keys[0], keys[1]))),
        found => Ok(found),
    }
}

/// The rule of a length between bounds, which are whole numbers: `1.0` is none.
pub(super) fn length(
    map: &Map,
    keys: [&str; 2],
    (min, max): (Option<f64>, Option<f64>),
) -> Result<Rule> {
    let is_whole = |key| match map.get(key) {
        Some(Value::Number(number)) => !number.is_f64(),
        Some(Value::String(text)) => number(text).is_some_and(|number| !number.is_f64()),
        _ => true,
    };
    if !keys.into_iter().all(is_whole) {
        return Err(Error::new("a length is a whole number"));
    }
    Ok(Rule::Length(min, max))
}

/// A number, or a text that is one.
pub(super) fn numeric(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => number(text)?.as_f64(),
        other => other.as_f64(),
    }
}

/// A pattern as written, and what matches by it once that is asked for.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    /// For values of ASCII alone, which most are: it takes a tenth of the room and time.
    narrow: OnceLock<Option<Arc<CompiledPattern>>>,
    whole: OnceLock<Option<Arc<CompiledPattern>>>,
}

impl Pattern {
    /// A pattern that is known to be one.
    pub(super) fn known(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            narrow: OnceLock::new(),
            whole: OnceLock::new(),
        }
    }

    /// What matches values that are ASCII, or all; nothing when this is no pattern.
    fn made(&self, ascii: bool) -> Option<&CompiledPattern> {
        let text = || format!("^(?:{})", self.text);
        let made = if ascii {
            (self.narrow)
                .get_or_init(|| regex_cache::compiled(&regex_cache::restricted_to_ascii(&text())))
        } else {
            self.whole.get_or_init(|| regex_cache::compiled(&text()))
        };
        made.as_deref()
    }

    /// Whether a large expression was compiled for it.
    pub(super) fn is_large(&self) -> bool {
        let made = [&self.narrow, &self.whole].into_iter().map(OnceLock::get);
        made.flatten().flatten().any(|made| made.large)
    }

    fn matches(&self, text: &str) -> bool {
        self.made(text.is_ascii())
            // What is found first must be the whole text: `a|ab` does not match `ab`.
            .and_then(|made| made.regex.find(text).ok().flatten())
            .is_some_and(|found| found.end() == text.len())
    }
}

/// The rule that a value matches `text`.
pub(super) fn pattern(text: &str) -> Result<Rule> {
    let pattern = Pattern::known(text);
    if pattern.made(true).is_none() {
        return Err(Error::new(format!(
            "`{text}` is no pattern that is understood here"
        )));
    }
    Ok(Rule::Pattern(pattern))
}
