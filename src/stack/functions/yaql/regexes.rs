//! Patterns: `regex("…")`, `=~`, `matches`, `search`, `replace`, `split`.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::eval::wrong;
use crate::stack::patterns::{self, Made};
use crate::stack::{Error, Result};

/// How a compiled pattern travels among values; no template writes this key.
const MARK: &str = "\u{0}regex";

/// The value that stands for a pattern.
pub(super) fn make(pattern: &Value, ignore_case: bool) -> Result<Value> {
    let Value::String(text) = pattern else {
        return Err(wrong("regex", pattern));
    };
    let text = if ignore_case {
        format!("(?i){text}")
    } else {
        text.clone()
    };
    compile(&text)?;
    Ok(json!({ MARK: text }))
}

/// Whether `value` stands for a pattern.
pub(super) fn is(value: &Value) -> bool {
    value.get(MARK).is_some()
}

/// A pattern that leaves the expression is its text.
pub(super) fn plain(value: Value) -> Value {
    match value {
        Value::Object(mut map) if map.contains_key(MARK) => {
            map.shift_remove(MARK).unwrap_or_default()
        }
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(key, value)| (key, plain(value)))
                .collect::<Map<_, _>>(),
        ),
        Value::Array(items) => items.into_iter().map(plain).collect(),
        other => other,
    }
}

fn compile(text: &str) -> Result<Arc<Made>> {
    let unknown = || Error::new(format!("`{text}` is no pattern that is understood here"));
    patterns::made(text).ok_or_else(unknown)
}

fn pattern(value: &Value) -> Result<Arc<Made>> {
    match value.get(MARK).unwrap_or(value) {
        Value::String(text) => compile(text),
        other => Err(wrong("a pattern", other)),
    }
}

fn costly<T>(_: T) -> Error {
    Error::new("the pattern costs too much on this text")
}

fn text(value: &Value) -> Result<&str> {
    value
        .as_str()
        .ok_or_else(|| wrong("a pattern's text", value))
}

/// Whether the pattern is found in `value`.
pub(super) fn matches(by: &Value, value: &Value) -> Result<bool> {
    pattern(by)?.regex.is_match(text(value)?).map_err(costly)
}

/// The first match, or null.
pub(super) fn search(by: &Value, value: &Value) -> Result<Value> {
    let found = pattern(by)?.regex.find(text(value)?).map_err(costly)?;
    Ok(found.map_or(Value::Null, |found| Value::from(found.as_str())))
}

/// Every match.
pub(super) fn search_all(by: &Value, value: &Value) -> Result<Value> {
    let by = pattern(by)?;
    let found = by.regex.find_iter(text(value)?);
    found
        .map(|found| Ok(Value::from(found.map_err(costly)?.as_str())))
        .collect()
}

/// The text with matches replaced; `\1` is what the first group found.
pub(super) fn replace(by: &Value, value: &Value, new: &Value) -> Result<Value> {
    let by = pattern(by)?;
    let (text, new) = (text(value)?, text(new)?);
    let mut result = String::new();
    let mut end = 0;
    for captures in by.regex.captures_iter(text) {
        let captures = captures.map_err(costly)?;
        let Some(whole) = captures.get(0) else {
            continue;
        };
        result.push_str(&text[end..whole.start()]);
        let mut characters = new.chars();
        while let Some(c) = characters.next() {
            match (c, characters.clone().next().and_then(|d| d.to_digit(10))) {
                ('\\', Some(group)) => {
                    characters.next();
                    let group = usize::try_from(group).unwrap_or(0);
                    result.push_str(captures.get(group).map_or("", |g| g.as_str()));
                }
                _ => result.push(c),
            }
        }
        end = whole.end();
    }
    result.push_str(&text[end..]);
    Ok(Value::from(result))
}

/// The parts between matches.
pub(super) fn split(by: &Value, value: &Value) -> Result<Value> {
    let by = pattern(by)?;
    let text = text(value)?;
    let mut parts = Vec::new();
    let mut end = 0;
    for found in by.regex.find_iter(text) {
        let found = found.map_err(costly)?;
        parts.push(Value::from(&text[end..found.start()]));
        end = found.end();
    }
    parts.push(Value::from(&text[end..]));
    Ok(Value::Array(parts))
}
