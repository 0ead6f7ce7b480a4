//! Functions of text and numbers.

use std::collections::HashSet;

use super::eval::{compare, operate, size, wrong};
use super::meter::Meter;
use super::regexes;
use crate::functions::python;
use crate::value::{Number, Value};
use crate::{Error, Result};

/// `str()`.
pub(super) fn str_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.to_string(),
        Value::Null => "null".into(),
        Value::Bool(flag) => flag.to_string(),
        // Lists are tuples there.
        other => python::tuple_text(other),
    }
}

fn usize_of(value: Option<&Value>) -> Option<i64> {
    value.and_then(Value::as_i64)
}

/// Functions whose first argument is text; nothing when `name` is none of them.
pub(super) fn of_text(
    meter: &Meter<'_>,
    name: &str,
    text: &str,
    rest: &[Value],
) -> Option<Result<Value>> {
    let string = |at: usize| rest.get(at).and_then(Value::as_str);
    let ok = |value: Value| Some(Ok(value));
    let matching = |test: &dyn Fn(&str) -> bool| rest.iter().filter_map(Value::as_str).any(test);
    // Whatever the function, it walks the text and what it is given.
    let walked = text.len()
        + rest
            .iter()
            .filter_map(Value::as_str)
            .map(str::len)
            .sum::<usize>();
    if let Err(error) = meter.walk(walked) {
        return Some(Err(error));
    }
    match name {
        "toUpper" => ok(Value::from(text.to_uppercase())),
        "toLower" => ok(Value::from(text.to_lowercase())),
        "len" => ok(Value::from(text.chars().count())),
        "startsWith" => ok(Value::Bool(matching(&|part| text.starts_with(part)))),
        "endsWith" => ok(Value::Bool(matching(&|part| text.ends_with(part)))),
        "toCharArray" => ok(text.chars().map(String::from).collect()),
        "isEmpty" if rest.first() == Some(&Value::Bool(false)) => ok(Value::Bool(text.is_empty())),
        "isEmpty" => {
            let chars = string(1).map(set_of);
            let outer = |c: char| is_outer(chars.as_ref(), c);
            ok(Value::Bool(text.trim_matches(outer).is_empty()))
        }
        "trim" | "trimLeft" | "trimRight" | "norm" => {
            let chars = string(0).map(set_of);
            let outer = |c: char| is_outer(chars.as_ref(), c);
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
        "split" if rest.first().is_some_and(regexes::is) => Some(regexes::split(
            meter,
            &rest[0],
            &Value::from(text),
            rest.get(1),
        )),
        "split" | "rightSplit" => Some(split(text, rest, name == "rightSplit")),
        "replace" => Some(replace(meter, text, rest)),
        "substring" => Some(substring(text, rest)),
        "matches" => rest
            .first()
            .map(|by| regexes::matches(meter, by, &Value::from(text)).map(Value::Bool)),
        "indexOf" | "lastIndexOf" => Some(Ok(index_of(text, string(0)?, &rest[1..], name))),
        _ => None,
    }
}

/// The characters of a text: each of another text's is looked for among them.
fn set_of(chars: &str) -> HashSet<char> {
    chars.chars().collect()
}

/// Whether a character is cut off at the ends: one of these, or a blank.
fn is_outer(chars: Option<&HashSet<char>>, c: char) -> bool {
    chars.map_or_else(|| python::is_blank(c), |chars| chars.contains(&c))
}

/// A part of a text by places that may be counted from its end, as Python cuts it.
fn part(text: &str, start: i64, end: i64) -> (usize, String) {
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let place = |at: i64| {
        let at = if at < 0 {
            at.saturating_add(length).max(0)
        } else {
            at.min(length)
        };
        usize::try_from(at).unwrap_or(0)
    };
    let (start, end) = (place(start), place(end));
    let part = text.chars().skip(start).take(end.saturating_sub(start));
    (start, part.collect())
}

fn index_of(text: &str, wanted: &str, rest: &[Value], name: &str) -> Value {
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let mut start = usize_of(rest.first()).unwrap_or(0);
    let end = match usize_of(rest.get(1)) {
        None => length,
        Some(size) => {
            if start < 0 {
                start = start.saturating_add(length);
            }
            let size = if size < 0 {
                length.saturating_sub(start)
            } else {
                size
            };
            start.saturating_add(size)
        }
    };
    if start > length {
        return Value::from(-1);
    }
    let (start, part) = part(text, start, end);
    let found = if name == "indexOf" {
        part.find(wanted)
    } else {
        part.rfind(wanted)
    };
    found.map_or(Value::from(-1), |at| {
        Value::from(start + part[..at].chars().count())
    })
}

fn split(text: &str, rest: &[Value], from_right: bool) -> Result<Value> {
    let limit = usize_of(rest.get(1)).and_then(|n| usize::try_from(n).ok());
    match (rest.first(), limit) {
        (None | Some(Value::Null), limit) => Ok(blank_split(text, limit, from_right)),
        (Some(Value::String(by)), _) if by.is_empty() => {
            Err(Error::new("the separator must not be empty"))
        }
        (Some(Value::String(by)), None) => Ok(text.split(by.as_str()).map(Value::from).collect()),
        (Some(Value::String(by)), Some(limit)) if from_right => {
            let parts = text.rsplitn(limit.saturating_add(1), by.as_str());
            let mut parts: Vec<Value> = parts.map(Value::from).collect();
            parts.reverse();
            Ok(Value::from(parts))
        }
        (Some(Value::String(by)), Some(limit)) => Ok(text
            .splitn(limit.saturating_add(1), by.as_str())
            .map(Value::from)
            .collect()),
        (Some(other), _) => Err(wrong("a separator", other)),
    }
}

/// Split at runs of blanks, at most `limit` times.
fn blank_split(text: &str, limit: Option<usize>, from_right: bool) -> Value {
    let mut left = text;
    let mut parts: Vec<Value> = Vec::new();
    loop {
        left = if from_right {
            left.trim_end_matches(python::is_blank)
        } else {
            left.trim_start_matches(python::is_blank)
        };
        if left.is_empty() {
            break;
        }
        let cut = match limit {
            Some(limit) if parts.len() >= limit => None,
            _ if from_right => left.rfind(python::is_blank),
            _ => left.find(python::is_blank),
        };
        let Some(cut) = cut else {
            let rest = if from_right {
                left.trim_start_matches(python::is_blank)
            } else {
                left.trim_end_matches(python::is_blank)
            };
            // What is left over keeps its blanks on the far side only when it was cut off.
            let rest = if parts.is_empty() && limit != Some(0) {
                rest
            } else {
                left
            };
            parts.push(Value::from(rest));
            break;
        };
        if from_right {
            let blank = left[cut..].chars().next().map_or(1, char::len_utf8);
            parts.push(Value::from(&left[cut + blank..]));
            left = &left[..cut];
        } else {
            parts.push(Value::from(&left[..cut]));
            left = &left[cut..];
        }
    }
    if from_right {
        parts.reverse();
    }
    Value::from(parts)
}

fn replace(meter: &Meter<'_>, text: &str, rest: &[Value]) -> Result<Value> {
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
            // How often it is there is known before anything is made.
            let times = text.matches(old.as_str()).take(count(2)).count();
            meter.walk(times.saturating_mul(new.len()))?;
            Ok(Value::from(text.replacen(old.as_str(), new, count(2))))
        }
        [by, new, ..] if regexes::is(by) => {
            regexes::replace(meter, by, &Value::from(text), new, rest.get(2))
        }
        [Value::Object(map), ..] => {
            let mut result = text.to_owned();
            for (old, new) in map {
                let new = str_of(new);
                meter.spend(1)?;
                meter.walk(result.len())?;
                if old.is_empty() || new.len().saturating_mul(result.len()) > 50_000_000 {
                    return Err(Error::new("replaces too much"));
                }
                let times = result.matches(old.as_str()).take(count(1)).count();
                meter.walk(times.saturating_mul(new.len()))?;
                result = result.replacen(old.as_str(), &new, count(1));
            }
            Ok(Value::from(result))
        }
        _ => Err(Error::new("takes what is replaced and what by")),
    }
}

fn substring(text: &str, rest: &[Value]) -> Result<Value> {
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let start = usize_of(rest.first()).ok_or_else(|| Error::new("takes a start"))?;
    let size = usize_of(rest.get(1)).filter(|n| *n >= 0).unwrap_or(length);
    let start = if start < 0 {
        start.saturating_add(length)
    } else {
        start
    };
    Ok(Value::from(part(text, start, start.saturating_add(size)).1))
}

/// `int()`: text is parsed, a fraction cut off, nothing is 0.
fn int(value: &Value) -> Result<Value> {
    if value.is_null() {
        return Ok(Value::from(0));
    }
    python::int(value)
        .map(Value::from)
        // The value itself is left out here and below: it may be hidden.
        .ok_or_else(|| Error::new("what int() is given is no whole number"))
}

fn float(value: &Value) -> Result<Value> {
    let number = match value {
        Value::Null => Some(0.0),
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Value::String(text) => text.trim_matches(python::is_blank).parse().ok(),
        other => other.as_f64(),
    };
    number
        .and_then(Number::from_f64)
        .map(Value::Number)
        .ok_or_else(|| Error::new("what float() is given is no number"))
}

fn round(number: &Number, digits: i64) -> Option<Value> {
    // Python rounds halves to the even number, of the number as it is.
    if let Some(whole) = number.as_i64() {
        let unit = match u32::try_from(digits.saturating_neg()) {
            Ok(digits) if digits > 0 => 10i64.checked_pow(digits),
            _ => return Some(Value::from(whole)),
        };
        let Some(unit) = unit else {
            return Some(Value::from(0));
        };
        let (down, over) = (whole.div_euclid(unit), whole.rem_euclid(unit));
        let up = over > unit - over || (over == unit - over && down % 2 != 0);
        return (down + i64::from(up)).checked_mul(unit).map(Value::from);
    }
    let value = number.as_f64()?;
    let rounded = match usize::try_from(digits) {
        Ok(digits) if digits < 300 => format!("{value:.digits$}").parse().ok()?,
        Ok(_) => value,
        Err(_) => {
            let unit = 10f64.powi(i32::try_from(digits.clamp(-300, 0)).unwrap_or(0));
            (value * unit).round_ties_even() / unit
        }
    };
    Number::from_f64(rounded).map(Value::Number)
}

/// Functions of plain values; nothing when `name` is none of them.
pub(super) fn of_values(meter: &Meter<'_>, name: &str, values: &[Value]) -> Option<Result<Value>> {
    let first = values.first()?;
    if let Err(error) = meter.spend(values.iter().map(size).sum()) {
        return Some(Err(error));
    }
    let result = match (name, values) {
        ("str", [value]) => Ok(Value::from(str_of(value))),
        ("int", [value]) => int(value),
        ("float", [value]) => float(value),
        ("bool", [value]) => Ok(Value::Bool(super::eval::truthy(value))),
        ("isString", [value]) => Ok(Value::Bool(value.is_string())),
        ("isInteger", [value]) => Ok(Value::Bool(value.is_i64() || value.is_u64())),
        ("isNumber", [value]) => Ok(Value::Bool(value.is_number())),
        ("isBoolean", [value]) => Ok(Value::Bool(value.is_boolean())),
        ("isIterable", [value]) => Ok(Value::Bool(value.is_array())),
        ("isDict", [value]) => Ok(Value::Bool(value.is_object() && !regexes::is(value))),
        ("isRegex", [value]) => Ok(Value::Bool(regexes::is(value))),
        ("regex", [value, rest @ ..]) => {
            let flag = |at: usize| rest.get(at) == Some(&Value::Bool(true));
            regexes::make(meter, value, flag(0), flag(1), flag(2))
        }
        ("matches", [by, value]) => regexes::matches(meter, by, value).map(Value::Bool),
        ("search", [by, value]) if regexes::is(by) => regexes::search(meter, by, value),
        ("searchAll", [by, value]) => regexes::search_all(meter, by, value),
        ("replace", [by, value, new, rest @ ..]) if regexes::is(by) => {
            regexes::replace(meter, by, value, new, rest.first())
        }
        ("split", [by, value, rest @ ..]) if regexes::is(by) => {
            regexes::split(meter, by, value, rest.first())
        }
        ("isEmpty", [Value::Null, ..]) => Ok(Value::Bool(true)),
        ("norm", [Value::Null, ..]) => Ok(Value::Null),
        ("escapeRegex", [Value::String(text)]) => Ok(Value::from(regexes::escape(text))),
        ("bitwiseNot", [value]) if value.is_i64() => Ok(Value::from(!value.as_i64().unwrap_or(0))),
        ("max", [a, b]) => compare(a, b).map(|order| if order.is_lt() { b } else { a }.clone()),
        ("min", [a, b]) => compare(a, b).map(|order| if order.is_gt() { b } else { a }.clone()),
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
        ("hex", [value]) => match value.as_i64() {
            Some(n) if n < 0 => Ok(Value::from(format!("-{:#x}", n.unsigned_abs()))),
            Some(n) => Ok(Value::from(format!("{n:#x}"))),
            None => Err(wrong("hex", value)),
        },
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
