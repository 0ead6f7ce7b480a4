//! Patterns: `regex("…")`, `=~`, `matches`, `search`, `replace`, `split`.

use std::sync::Arc;

use super::eval::wrong;
use crate::regex_cache::{self, CompiledPattern};
use crate::value::{Value, json};
use crate::{Error, Result};

/// How a compiled pattern travels among values; no template writes this key.
const MARK: &str = "\u{0}regex";

/// The value that stands for a pattern.
pub(super) fn make(
    pattern: &Value,
    ignore_case: bool,
    many_lines: bool,
    dot_is_all: bool,
) -> Result<Value> {
    let Value::String(text) = pattern else {
        return Err(wrong("regex", pattern));
    };
    let flags = [(ignore_case, 'i'), (many_lines, 'm'), (dot_is_all, 's')];
    let flags: String = flags
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, f)| f)
        .collect();
    let text = if flags.is_empty() {
        text.clone()
    } else {
        format!("(?{flags}){text}").into()
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
                .collect(),
        ),
        Value::Array(items) => items.into_iter().map(plain).collect(),
        other => other,
    }
}

fn compile(text: &str) -> Result<Arc<CompiledPattern>> {
    let unknown = || Error::new(format!("`{text}` is no pattern that is understood here"));
    regex_cache::compiled(text).ok_or_else(unknown)
}

fn pattern(value: &Value) -> Result<Arc<CompiledPattern>> {
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

/// How often at most; nothing and 0 are always.
pub(super) fn limit(count: Option<&Value>) -> usize {
    let count = count.and_then(Value::as_u64).filter(|count| *count > 0);
    count.map_or(usize::MAX, |count| {
        usize::try_from(count).unwrap_or(usize::MAX)
    })
}

/// The text with matches replaced; `\1` and `\g<1>` are what the first group found.
pub(super) fn replace(
    by: &Value,
    value: &Value,
    new: &Value,
    count: Option<&Value>,
) -> Result<Value> {
    let by = pattern(by)?;
    let (text, new) = (text(value)?, text(new)?);
    let mut result = String::new();
    let mut end = 0;
    for captures in by.regex.captures_iter(text).take(limit(count)) {
        let captures = captures.map_err(costly)?;
        let Some(whole) = captures.get(0) else {
            continue;
        };
        result.push_str(&text[end..whole.start()]);
        put(&captures, new, &mut result)?;
        end = whole.end();
    }
    result.push_str(&text[end..]);
    Ok(Value::from(result))
}

/// Appends `new` with what groups found in the places of their names.
fn put(captures: &fancy_regex::Captures<'_, str>, new: &str, result: &mut String) -> Result<()> {
    let wrong = || Error::new("an escape that the text to put in cannot have");
    let group = |number: usize| {
        let known = number < captures.len();
        known.then(|| captures.get(number).map_or("", |found| found.as_str()))
    };
    let mut left = new;
    while let Some(at) = left.find('\\') {
        result.push_str(&left[..at]);
        left = &left[at + 1..];
        let mut characters = left.chars();
        let next = characters.next().ok_or_else(wrong)?;
        left = characters.as_str();
        match next {
            '1'..='9' => {
                let mut digits = String::from(next);
                if let Some(digit) = left.chars().next().filter(char::is_ascii_digit) {
                    digits.push(digit);
                    left = &left[1..];
                }
                let number = digits.parse().map_err(|_| wrong())?;
                result.push_str(group(number).ok_or_else(wrong)?);
            }
            'g' => {
                let name = left.strip_prefix('<').and_then(|left| left.split_once('>'));
                let (name, rest) = name.ok_or_else(wrong)?;
                left = rest;
                match name.parse() {
                    Ok(number) => result.push_str(group(number).ok_or_else(wrong)?),
                    Err(_) => {
                        result.push_str(captures.name(name).map_or("", |found| found.as_str()));
                    }
                }
            }
            'n' => result.push('\n'),
            't' => result.push('\t'),
            'r' => result.push('\r'),
            '\\' => result.push('\\'),
            letter if letter.is_ascii_alphanumeric() => return Err(wrong()),
            other => result.extend(['\\', other]),
        }
    }
    result.push_str(left);
    Ok(())
}

/// The parts between matches, with what groups found between them.
pub(super) fn split(by: &Value, value: &Value, count: Option<&Value>) -> Result<Value> {
    let by = pattern(by)?;
    let text = text(value)?;
    let mut parts = Vec::new();
    let mut end = 0;
    for captures in by.regex.captures_iter(text).take(limit(count)) {
        let captures = captures.map_err(costly)?;
        let Some(whole) = captures.get(0) else {
            continue;
        };
        parts.push(Value::from(&text[end..whole.start()]));
        for group in captures.iter().skip(1) {
            parts.push(group.map_or(Value::Null, |group| Value::from(group.as_str())));
        }
        end = whole.end();
    }
    parts.push(Value::from(&text[end..]));
    Ok(Value::from(parts))
}

/// A match: where it is, in bytes, and what an expression sees of it and of its groups.
pub(super) struct Match {
    pub start: usize,
    pub end: usize,
    pub groups: Vec<Value>,
}

/// The first matches.
pub(super) fn found(by: &Value, value: &Value, count: usize) -> Result<Vec<Match>> {
    let by = pattern(by)?;
    if by.regex.capture_names().flatten().next().is_some() {
        return Err(Error::new("groups with names cannot be looked at"));
    }
    let text = text(value)?;
    let place = |at: usize| text[..at].chars().count();
    let seen = |group: Option<fancy_regex::Match<'_>>| match group {
        Some(group) => json!({
            "value": group.as_str(), "start": place(group.start()), "end": place(group.end()),
        }),
        None => json!({"value": null, "start": -1, "end": -1}),
    };
    let mut matches = Vec::new();
    for captures in by.regex.captures_iter(text).take(count) {
        let captures = captures.map_err(costly)?;
        if let Some(whole) = captures.get(0) {
            matches.push(Match {
                start: whole.start(),
                end: whole.end(),
                groups: captures.iter().map(seen).collect(),
            });
        }
    }
    Ok(matches)
}

/// Text that matches itself.
pub(super) fn escape(text: &str) -> String {
    let mut result = String::new();
    for c in text.chars() {
        if "()[]{}?*+-|^$\\.&~# \t\n\r\u{b}\u{c}".contains(c) {
            result.push('\\');
        }
        result.push(c);
    }
    result
}
