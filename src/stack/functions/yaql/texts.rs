//! Functions of text and numbers.

use serde_json::{Number, Value};

use super::eval::{compare, operate, wrong};
use super::regexes;
use crate::stack::{Error, Result};

/// `str()`.
pub(super) fn str_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "null".into(),
        Value::Array(_) | Value::Object(_) => crate::stack::functions::python_json(value, false),
        other => other.to_string(),
    }
}

fn usize_of(value: Option<&Value>) -> Option<i64> {
    value.and_then(Value::as_i64)
}

/// Functions whose first argument is text; nothing when `name` is none of them.
pub(super) fn of_text(name: &str, text: &str, rest: &[Value]) -> Option<Result<Value>> {
    let string = |at: usize| rest.get(at).and_then(Value::as_str);
    let ok = |value: Value| Some(Ok(value));
    let matching = |test: &dyn Fn(&str) -> bool| rest.iter().filter_map(Value::as_str).any(test);
    match name {
        "toUpper" => ok(Value::from(text.to_uppercase())),
        "toLower" => ok(Value::from(text.to_lowercase())),
        "len" => ok(Value::from(text.chars().count())),
        "startsWith" => ok(Value::Bool(matching(&|part| text.starts_with(part)))),
        "endsWith" => ok(Value::Bool(matching(&|part| text.ends_with(part)))),
        "toCharArray" => ok(text.chars().map(String::from).collect()),
        "isEmpty" => ok(Value::Bool(text.trim().is_empty())),
        "trim" | "trimLeft" | "trimRight" | "norm" => {
            let chars = string(0);
            let outer = |c: char| chars.map_or(c.is_whitespace(), |chars| chars.contains(c));
            let trimmed = match name {
                "trimLeft" => text.trim_start_matches(outer),
                "trimRight" => text.trim_end_matches(outer),
                _ => text.trim_matches(outer),
            };
            ok(if name == "norm" && trimmed.is_empty() {
                Value::Null
            } else {
                Value::from(trimmed)
            })
        }
        "split" if rest.first().is_some_and(regexes::is) => {
            Some(regexes::split(&rest[0], &Value::from(text)))
        }
        "split" | "rightSplit" => Some(split(text, rest, name == "rightSplit")),
        "replace" => Some(replace(text, rest)),
        "substring" => Some(substring(text, rest)),
        "matches" => rest
            .first()
            .map(|by| regexes::matches(by, &Value::from(text)).map(Value::Bool)),
        "indexOf" | "lastIndexOf" => {
            let part = string(0)?;
            let found = if name == "indexOf" {
                text.find(part)
            } else {
                text.rfind(part)
            };
            ok(found.map_or(Value::from(-1), |at| {
                Value::from(text[..at].chars().count())
            }))
        }
        _ => None,
    }
}

fn split(text: &str, rest: &[Value], from_right: bool) -> Result<Value> {
    let limit = usize_of(rest.get(1)).and_then(|n| usize::try_from(n).ok());
    match (rest.first(), limit) {
        (None | Some(Value::Null), _) => Ok(text.split_whitespace().map(Value::from).collect()),
        (Some(Value::String(by)), _) if by.is_empty() => {
            Err(Error::new("the separator must not be empty"))
        }
        (Some(Value::String(by)), None) => Ok(text.split(by.as_str()).map(Value::from).collect()),
        (Some(Value::String(by)), Some(limit)) if from_right => {
            let parts = text.rsplitn(limit.saturating_add(1), by.as_str());
            let mut parts: Vec<Value> = parts.map(Value::from).collect();
            parts.reverse();
            Ok(Value::Array(parts))
        }
        (Some(Value::String(by)), Some(limit)) => Ok(text
            .splitn(limit.saturating_add(1), by.as_str())
            .map(Value::from)
            .collect()),
        (Some(other), _) => Err(wrong("a separator", other)),
    }
}

fn replace(text: &str, rest: &[Value]) -> Result<Value> {
    let count = |at: usize| {
        usize_of(rest.get(at))
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(usize::MAX)
    };
    match rest {
        [Value::String(old), Value::String(new), ..] => {
            if old.is_empty() || new.len().saturating_mul(text.len()) > 50_000_000 {
                return Err(Error::new("replaces too much"));
            }
            Ok(Value::from(text.replacen(old, new, count(2))))
        }
        [by, new, ..] if regexes::is(by) => regexes::replace(by, &Value::from(text), new),
        [Value::Object(map), ..] => {
            let mut result = text.to_owned();
            for (old, new) in map {
                let new = str_of(new);
                if old.is_empty() || new.len().saturating_mul(result.len()) > 50_000_000 {
                    return Err(Error::new("replaces too much"));
                }
                result = result.replacen(old, &new, count(1));
            }
            Ok(Value::from(result))
        }
        _ => Err(Error::new("takes what is replaced and what by")),
    }
}

fn substring(text: &str, rest: &[Value]) -> Result<Value> {
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let start = usize_of(rest.first()).ok_or_else(|| Error::new("takes a start"))?;
    let start = if start < 0 {
        (length + start).max(0)
    } else {
        start
    };
    let take = usize_of(rest.get(1)).filter(|n| *n >= 0).unwrap_or(length);
    let count = |n: i64| usize::try_from(n).unwrap_or(0);
    let part: String = text.chars().skip(count(start)).take(count(take)).collect();
    Ok(Value::from(part))
}

/// `int()`: text is parsed, a fraction cut off, nothing is 0.
fn int(value: &Value) -> Result<Value> {
    if value.is_null() {
        return Ok(Value::from(0));
    }
    crate::stack::typed::integer(value)
        .map(Value::Number)
        // The value itself is left out here and below: it may be hidden.
        .ok_or_else(|| Error::new("what int() is given is no whole number"))
}

fn float(value: &Value) -> Result<Value> {
    let number = match value {
        Value::Null => Some(0.0),
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_f64(),
    };
    number
        .and_then(Number::from_f64)
        .map(Value::Number)
        .ok_or_else(|| Error::new("what float() is given is no number"))
}

fn round(number: &Number, digits: i64) -> Option<Value> {
    if let Some(whole) = number.as_i64() {
        return Some(Value::from(whole));
    }
    let factor = 10f64.powi(i32::try_from(digits.clamp(-300, 300)).unwrap_or(0));
    let scaled = number.as_f64()? * factor;
    // Python rounds halves to the even number.
    Number::from_f64(scaled.round_ties_even() / factor).map(Value::Number)
}

/// Functions of plain values; nothing when `name` is none of them.
pub(super) fn of_values(name: &str, values: &[Value]) -> Option<Result<Value>> {
    let first = values.first()?;
    let result = match (name, values) {
        ("str", [value]) => Ok(Value::from(str_of(value))),
        ("int", [value]) => int(value),
        ("float", [value]) => float(value),
        ("bool", [value]) => Ok(Value::Bool(super::eval::truthy(value))),
        ("isString", [value]) => Ok(Value::Bool(value.is_string())),
        ("isInteger", [value]) => Ok(Value::Bool(value.is_i64() || value.is_u64())),
        ("isNumber", [value]) => Ok(Value::Bool(value.is_number())),
        ("isBoolean", [value]) => Ok(Value::Bool(value.is_boolean())),
        ("isList" | "isIterable", [value]) => Ok(Value::Bool(value.is_array())),
        ("isDict", [value]) => Ok(Value::Bool(value.is_object() && !regexes::is(value))),
        ("isRegex", [value]) => Ok(Value::Bool(regexes::is(value))),
        ("regex", [value, rest @ ..]) => {
            regexes::make(value, rest.first() == Some(&Value::Bool(true)))
        }
        ("matches", [by, value]) => regexes::matches(by, value).map(Value::Bool),
        ("search", [by, value]) if regexes::is(by) => regexes::search(by, value),
        ("searchAll", [by, value]) => regexes::search_all(by, value),
        ("replace", [by, value, new]) if regexes::is(by) => regexes::replace(by, value, new),
        ("split", [by, value]) if regexes::is(by) => regexes::split(by, value),
        ("max", [a, b]) if !a.is_array() => {
            compare(a, b).map(|order| if order.is_lt() { b } else { a }.clone())
        }
        ("min", [a, b]) if !a.is_array() => {
            compare(a, b).map(|order| if order.is_gt() { b } else { a }.clone())
        }
        ("abs", [Value::Number(_)])
            if compare(first, &Value::from(0)).is_ok_and(std::cmp::Ordering::is_lt) =>
        {
            operate("-", &Value::from(0), first)
        }
        ("abs", [Value::Number(_)]) => Ok(first.clone()),
        ("sign", [Value::Number(n)]) => {
            let n = n.as_f64().unwrap_or(0.0);
            Ok(Value::from(i32::from(n > 0.0) - i32::from(n < 0.0)))
        }
        ("round", [Value::Number(n), rest @ ..]) => {
            let digits = usize_of(rest.first()).unwrap_or(0);
            round(n, digits).ok_or_else(|| Error::new("a number too large"))
        }
        ("pow", [Value::Number(a), Value::Number(b)]) => pow(a, b),
        ("hex", [Value::Number(n)]) => Ok(Value::from(format!("{:#x}", n.as_i64().unwrap_or(0)))),
        (
            "bitwiseAnd" | "bitwiseOr" | "bitwiseXor" | "shiftBitsLeft" | "shiftBitsRight",
            [a, b],
        ) => bits(name, a, b),
        _ => return None,
    };
    Some(result)
}

fn pow(a: &Number, b: &Number) -> Result<Value> {
    let value = if let Some((a, b)) = a.as_i64().zip(b.as_u64()) {
        let power = u32::try_from(b).ok().and_then(|b| a.checked_pow(b));
        power.map(Value::from)
    } else {
        let value = a.as_f64().unwrap_or(0.0).powf(b.as_f64().unwrap_or(0.0));
        Number::from_f64(value).map(Value::Number)
    };
    value.ok_or_else(|| Error::new("a number too large"))
}

fn bits(name: &str, a: &Value, b: &Value) -> Result<Value> {
    let (Some(a), Some(b)) = (a.as_i64(), b.as_i64()) else {
        return Err(Error::new("takes two whole numbers"));
    };
    let shift = u32::try_from(b).ok();
    let value = match name {
        "bitwiseAnd" => Some(a & b),
        "bitwiseOr" => Some(a | b),
        "bitwiseXor" => Some(a ^ b),
        "shiftBitsLeft" => shift.and_then(|n| a.checked_mul(2i64.checked_pow(n)?)),
        _ => shift.map(|n| a.checked_shr(n).unwrap_or(0)),
    };
    value
        .map(Value::from)
        .ok_or_else(|| Error::new("a number too large"))
}
