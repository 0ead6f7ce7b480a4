//! Patterns: `regex("…")`, `=~`, `matches`, `search`, `replace`, `split`.

use std::sync::Arc;

use super::eval::wrong;
use super::meter::Meter;
use crate::regex_cache::{self, CompiledPattern};
use crate::value::{Value, json};
use crate::{Error, Result};

/// How a compiled pattern travels among values; no template writes this key.
const MARK: &str = "\u{0}regex";

/// The value that stands for a pattern.
pub(super) fn make(
    meter: &Meter<'_>,
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
    compile(meter, &text)?;
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

fn compile(meter: &Meter<'_>, text: &str) -> Result<Arc<CompiledPattern>> {
    let unknown = || Error::new(format!("`{text}` is no pattern that is understood here"));
    // To find out that it is none, or a large one, takes its time, too.
    meter.compile(text, false)?;
    let Some(made) = regex_cache::compiled(text) else {
        meter.compile(&format!("{MARK}{text}"), true)?;
        return Err(unknown());
    };
    if made.large {
        meter.compile(&format!("{MARK}{text}"), true)?;
    }
    Ok(made)
}

fn pattern(meter: &Meter<'_>, value: &Value) -> Result<Arc<CompiledPattern>> {
    match value.get(MARK).unwrap_or(value) {
        Value::String(text) => compile(meter, text),
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
pub(super) fn matches(meter: &Meter<'_>, by: &Value, value: &Value) -> Result<bool> {
    let (by, text) = (pattern(meter, by)?, text(value)?);
    meter.search(&by, text.len())?;
    by.regex.is_match(text).map_err(costly)
}

/// The first match, or null.
pub(super) fn search(meter: &Meter<'_>, by: &Value, value: &Value) -> Result<Value> {
    let (by, text) = (pattern(meter, by)?, text(value)?);
    meter.search(&by, text.len())?;
    let found = by.regex.find(text).map_err(costly)?;
    Ok(found.map_or(Value::Null, |found| Value::from(found.as_str())))
}

/// Every match.
pub(super) fn search_all(meter: &Meter<'_>, by: &Value, value: &Value) -> Result<Value> {
    let (by, text) = (pattern(meter, by)?, text(value)?);
    let mut all = Vec::new();
    each(meter, &by, text, usize::MAX, |captures| {
        let found = captures.get(0).map_or("", |found| found.as_str());
        all.push(Value::from(found));
        Ok(())
    })?;
    Ok(Value::from(all))
}

/// Calls `take` for the first matches. Each of them is charged before it is looked for: a walk
/// over all matches is as many searches, each of which may go on to the end of the text.
fn each<'t>(
    meter: &Meter<'_>,
    by: &CompiledPattern,
    text: &'t str,
    count: usize,
    mut take: impl FnMut(&fancy_regex::Captures<'t, str>) -> Result<()>,
) -> Result<()> {
    let mut found = by.regex.captures_iter(text);
    let mut left = text.len();
    for _ in 0..count {
        meter.search(by, left)?;
        let Some(captures) = found.next() else { break };
        let captures = captures.map_err(costly)?;
        if let Some(whole) = captures.get(0) {
            left = text.len() - whole.end();
            take(&captures)?;
        }
    }
    Ok(())
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
    meter: &Meter<'_>,
    by: &Value,
    value: &Value,
    new: &Value,
    count: Option<&Value>,
) -> Result<Value> {
    let by = pattern(meter, by)?;
    let (text, new) = (text(value)?, text(new)?);
    let mut result = String::new();
    let mut end = 0;
    each(meter, &by, text, limit(count), |captures| {
        let Some(whole) = captures.get(0) else {
            return Ok(());
        };
        let before = result.len();
        result.push_str(&text[end..whole.start()]);
        put(captures, new, &mut result)?;
        end = whole.end();
        // What is put in may be much longer than what was found.
        meter.walk(new.len() + result.len() - before)
    })?;
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
pub(super) fn split(
    meter: &Meter<'_>,
    by: &Value,
    value: &Value,
    count: Option<&Value>,
) -> Result<Value> {
    let by = pattern(meter, by)?;
    let text = text(value)?;
    let mut parts = Vec::new();
    let mut end = 0;
    each(meter, &by, text, limit(count), |captures| {
        let Some(whole) = captures.get(0) else {
            return Ok(());
        };
        meter.spend(captures.len())?;
        parts.push(Value::from(&text[end..whole.start()]));
        for group in captures.iter().skip(1) {
            parts.push(group.map_or(Value::Null, |group| Value::from(group.as_str())));
        }
        end = whole.end();
        Ok(())
    })?;
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
pub(super) fn found(
    meter: &Meter<'_>,
    by: &Value,
    value: &Value,
    count: usize,
) -> Result<Vec<Match>> {
    let by = pattern(meter, by)?;
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
    each(meter, &by, text, count, |captures| {
        if let Some(whole) = captures.get(0) {
            // Places are counted from the start, for each group.
            meter.walk(captures.len().saturating_mul(2 * whole.end() + 64))?;
            matches.push(Match {
                start: whole.start(),
                end: whole.end(),
                groups: captures.iter().map(seen).collect(),
            });
        }
        Ok(())
    })?;
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
