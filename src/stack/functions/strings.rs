//! Functions that make text.

use std::borrow::Cow;

use serde_json::{Map, Value};
use sha2::Digest as _;

use super::{Scope, expect_list, index, python_json};
use crate::stack::{Error, Result, kind_of};

/// `str_replace` and its strict kin: `strict` 1 wants every key to occur, 2
/// wants every value to be there, too.
pub(super) fn replace(
    scope: &Scope<'_>,
    argument: &Value,
    json: bool,
    strict: u8,
) -> Result<Value> {
    let usage = "takes a map with `template` and `params`";
    let Value::Object(map) = argument else {
        return Err(Error::new(usage));
    };
    let (Some(template), Some(params)) = (map.get("template"), map.get("params")) else {
        return Err(Error::new(usage));
    };
    let params = match params {
        Value::Object(params) => params.clone(),
        Value::Null => Map::new(),
        _ => return Err(Error::new("`params` must be a map")),
    };
    substitute(scope, template, &params, json, strict)
}

/// Replaces the longest keys first, of equally long ones the lesser; what was put in is not
/// looked at again.
pub(super) fn substitute(
    scope: &Scope<'_>,
    template: &Value,
    params: &Map<String, Value>,
    json: bool,
    strict: u8,
) -> Result<Value> {
    let template = match template {
        Value::String(text) => Cow::Borrowed(text.as_str()),
        Value::Number(number) => Cow::Owned(number.to_string()),
        Value::Null => return Ok(Value::from("")),
        other => {
            return Err(Error::new(format!(
                "`template` must be a string, is {}",
                kind_of(other)
            )));
        }
    };
    let mut values = Vec::new();
    for (key, value) in params {
        if key.is_empty() {
            return Err(Error::new("a key of `params` must not be empty"));
        }
        let text = match value {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            Value::Bool(flag) => {
                if *flag {
                    "True".into()
                } else {
                    "False".into()
                }
            }
            Value::Number(number) => number.to_string(),
            other if json => python_json(other, true),
            other => {
                return Err(Error::new(format!(
                    "`{key}` must be a string or a number, is {}",
                    kind_of(other)
                )));
            }
        };
        if strict >= 2 && text.is_empty() {
            return Err(Error::new(format!("`{key}` has no value")));
        }
        values.push((key.as_str(), text, false));
    }
    values.sort_by_key(|(key, ..)| (std::cmp::Reverse(key.chars().count()), *key));
    let mut result = String::with_capacity(template.len());
    put(scope, &template, &mut values, &mut result)?;
    if strict >= 1
        && let Some((key, ..)) = values.iter().find(|(.., used)| !used)
    {
        return Err(Error::new(format!(
            "`{key}` does not occur in the template"
        )));
    }
    Ok(Value::from(result))
}

/// Appends `text` to `result` with the first of the keys replaced, the others in what is
/// between its places.
fn put(
    scope: &Scope<'_>,
    text: &str,
    values: &mut [(&str, String, bool)],
    result: &mut String,
) -> Result<()> {
    let found = values.iter().position(|(key, ..)| text.contains(key));
    let Some(((key, value, used), rest)) = found.and_then(|at| values[at..].split_first_mut())
    else {
        result.push_str(text);
        return Ok(());
    };
    *used = true;
    for (at, part) in text.split(*key).enumerate() {
        if at > 0 {
            scope.budget.pay(value.len())?;
            result.push_str(value);
        }
        put(scope, part, rest, result)?;
    }
    Ok(())
}

/// `list_join`, of one list or of several.
pub(super) fn join(scope: &Scope<'_>, argument: &Value, several: bool) -> Result<Value> {
    let usage = "takes [delimiter, list]";
    let (delimiter, lists) = match argument {
        Value::Array(items) => match &items[..] {
            [delimiter, lists @ ..] if lists.len() == 1 || (several && !lists.is_empty()) => {
                (delimiter, lists)
            }
            _ => return Err(Error::new(usage)),
        },
        _ => return Err(Error::new(usage)),
    };
    let delimiter = match delimiter {
        Value::String(text) => text.as_str(),
        Value::Null => "",
        _ => return Err(Error::new("the delimiter must be a string")),
    };
    let mut parts = Vec::new();
    for list in lists {
        let list = match list {
            Value::Null => continue,
            other => expect_list(other, "joins lists")?,
        };
        for item in list {
            parts.push(match item {
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                other if several => python_json(other, true),
                other => {
                    return Err(Error::new(format!(
                        "items must be strings, one is {}",
                        kind_of(other)
                    )));
                }
            });
        }
    }
    scope
        .budget
        .pay(parts.len().saturating_mul(delimiter.len()))?;
    Ok(Value::from(parts.join(delimiter)))
}

/// `str_split`, with an index or without.
pub(super) fn split(argument: &Value) -> Result<Value> {
    let usage = "takes [delimiter, text] or [delimiter, text, index]";
    let items = expect_list(argument, usage)?;
    let (delimiter, text, at) = match &items[..] {
        [delimiter, text] => (delimiter, text, None),
        [delimiter, text, at] => (delimiter, text, Some(at)),
        _ => return Err(Error::new(usage)),
    };
    let text = match text {
        Value::Null => return Ok(Value::Null),
        Value::String(text) => text,
        _ => return Err(Error::new(usage)),
    };
    let parts: Vec<Value> = match delimiter {
        Value::String(delimiter) if !delimiter.is_empty() => {
            text.split(delimiter.as_str()).map(Value::from).collect()
        }
        Value::Null => text.split_whitespace().map(Value::from).collect(),
        _ => return Err(Error::new("the delimiter must be a string")),
    };
    match at {
        None => Ok(Value::Array(parts)),
        Some(at) => index(at, parts.len())
            .and_then(|at| parts.get(at).cloned())
            .ok_or_else(|| Error::new(format!("no part {at}, there are {}", parts.len()))),
    }
}

/// `digest`: a hash in hex.
pub(super) fn digest(argument: &Value) -> Result<Value> {
    let items = expect_list(argument, "takes [algorithm, text]")?;
    let [Value::String(algorithm), Value::String(text)] = &items[..] else {
        return Err(Error::new("takes [algorithm, text]"));
    };
    let bytes = text.as_bytes();
    Ok(Value::from(match algorithm.as_str() {
        "md5" => hex::encode(md5::Md5::digest(bytes)),
        "sha1" => hex::encode(sha1::Sha1::digest(bytes)),
        "sha224" => hex::encode(sha2::Sha224::digest(bytes)),
        "sha256" => hex::encode(sha2::Sha256::digest(bytes)),
        "sha384" => hex::encode(sha2::Sha384::digest(bytes)),
        "sha512" => hex::encode(sha2::Sha512::digest(bytes)),
        // The word itself is left out: it may be hidden.
        _ => {
            return Err(Error::new(
                "no such algorithm; there are md5, sha1, sha224, sha256, sha384 and sha512",
            ));
        }
    }))
}

/// `make_url`, by the rules of RFC 3986.
pub(super) fn make_url(argument: &Value) -> Result<Value> {
    const KEYS: [&str; 8] = [
        "scheme", "username", "password", "host", "port", "path", "query", "fragment",
    ];
    let Value::Object(map) = argument else {
        return Err(Error::new("takes a map"));
    };
    if let Some(key) = map.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(Error::new(format!(
            "no part `{key}`; there are {}",
            KEYS.join(", ")
        )));
    }
    let text_of = |key: &str| match map.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    };
    let port = text_of("port");
    if !port.is_empty() && !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(Error::new(
            "the port is none: a whole number from 1 to 65535",
        ));
    }
    let mut authority = String::new();
    if !text_of("username").is_empty() {
        authority += &quote(&text_of("username"), "");
        if !text_of("password").is_empty() {
            authority += ":";
            authority += &quote(&text_of("password"), "");
        }
        authority += "@";
    }
    let host = text_of("host");
    if host.contains(':') && !host.starts_with('[') {
        authority.extend(["[", &host, "]"]);
    } else {
        authority += &host;
    }
    if !port.is_empty() {
        authority += ":";
        authority += &port;
    }
    let scheme = text_of("scheme");
    let mut path = quote(&text_of("path"), "/");
    let with_authority = !authority.is_empty() || scheme == "file";
    if with_authority && !path.is_empty() && !path.starts_with('/') {
        path.insert(0, '/');
    }
    let query = match map.get("query") {
        Some(Value::Object(query)) => {
            let text = |value: &Value| {
                value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned)
            };
            let pairs: Vec<_> = query
                .iter()
                .map(|(k, v)| {
                    let pair = format!("{}={}", quote(k, "/ "), quote(&text(v), "/ "));
                    pair.replace(' ', "+")
                })
                .collect();
            pairs.join("&")
        }
        _ => String::new(),
    };
    let mut url = String::new();
    if !scheme.is_empty() {
        url += &scheme;
        url += ":";
    }
    if with_authority {
        url += "//";
        url += &authority;
    }
    url += &path;
    if !query.is_empty() {
        url += "?";
        url += &query;
    }
    if !text_of("fragment").is_empty() {
        url += "#";
        url += &quote(&text_of("fragment"), "/");
    }
    Ok(Value::from(url))
}

/// Percent-encoded, but for letters, digits, `-._~` and what is `safe`.
pub(in crate::stack) fn quote(text: &str, safe: &str) -> String {
    use std::fmt::Write as _;
    let mut result = String::new();
    for byte in text.bytes() {
        let character = char::from(byte);
        if character.is_ascii_alphanumeric()
            || "-._~".contains(character)
            || safe.contains(character)
        {
            result.push(character);
        } else {
            let _ = write!(result, "%{byte:02X}");
        }
    }
    result
}
