//! Functions that make text.

use sha2::Digest as _;

use super::{Scope, expect_list, python};
use crate::value::{List, Map, Value};
use crate::{Error, Result, python_type};

/// `str_replace` and its strict variants: `strict` 1 requires every key to occur, 2 requires every value
/// to be set, too.
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
    let Value::Object(params) = params else {
        return Err(Error::new("`params` must be a map"));
    };
    substitute(scope, template, params, json, strict)
}

/// Replaces the longest keys first, of equally long ones the lesser; what was put in is not
/// looked at again.
pub(super) fn substitute(
    scope: &Scope<'_>,
    template: &Value,
    params: &Map,
    json: bool,
    strict: u8,
) -> Result<Value> {
    let Value::String(template) = template else {
        return Err(Error::new(format!(
            "`template` must be a string, is {}",
            python_type(template)
        )));
    };
    let mut values = Vec::new();
    for (key, value) in params {
        if key.is_empty() {
            return Err(Error::new("a key of `params` must not be empty"));
        }
        let text = match value {
            Value::Null => String::new(),
            Value::String(text) => text.to_string(),
            Value::Bool(_) | Value::Number(_) => python::text(value).into(),
            other if json => python::json(other, true),
            other => {
                return Err(Error::new(format!(
                    "`{key}` must be a string or a number, is {}",
                    python_type(other)
                )));
            }
        };
        let empty = text.is_empty() || ((value.is_array() || value.is_object()) && text.len() == 2);
        if strict >= 2 && empty {
            return Err(Error::new(format!("`{key}` has no value")));
        }
        values.push((key.as_str(), text, false));
    }
    values.sort_by_key(|(key, ..)| (std::cmp::Reverse(key.chars().count()), *key));
    let mut result = String::with_capacity(template.len());
    put(scope, template, &mut values, &mut result)?;
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
    // Every key is looked for in the whole text, and again in each part between others.
    (scope.budget).spend(values.len().saturating_mul(1 + text.len() / 8))?;
    let found = values.iter().position(|(key, ..)| text.contains(key));
    let Some(((key, value, used), rest)) = found.and_then(|at| values[at..].split_first_mut())
    else {
        result.push_str(text);
        return Ok(());
    };
    *used = true;
    for (at, part) in text.split(*key).enumerate() {
        if at > 0 {
            scope.budget.spend(value.len())?;
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
            [delimiter, lists @ ..] if lists.len() == 1 || several => (delimiter, lists),
            _ => return Err(Error::new(usage)),
        },
        _ => return Err(Error::new(usage)),
    };
    let Value::String(delimiter) = delimiter else {
        return Err(Error::new("the delimiter must be a string"));
    };
    let mut parts = Vec::new();
    for list in lists {
        let list = match list {
            Value::Null => continue,
            empty if several && !python::truthy(empty) => continue,
            other => expect_list(other, "joins lists")?,
        };
        for item in list {
            parts.push(match item {
                Value::Null => String::new(),
                Value::String(text) => text.to_string(),
                Value::Array(_) | Value::Object(_) if several => python::json(item, true),
                other => {
                    return Err(Error::new(format!(
                        "items must be strings{}, one is {}",
                        if several { ", lists or maps" } else { "" },
                        python_type(other)
                    )));
                }
            });
        }
    }
    scope
        .budget
        .spend(parts.len().saturating_mul(delimiter.len()))?;
    Ok(Value::from(parts.join(delimiter)))
}

/// `str_split`, with an index or without.
pub(super) fn split(argument: &Value) -> Result<Value> {
    let usage = "takes [delimiter, text] or [delimiter, text, index]";
    let items = expect_list(argument, usage)?;
    let [delimiter, text, rest @ ..] = &items[..] else {
        return Err(Error::new(usage));
    };
    let text = match text {
        Value::Null => return Ok(Value::Null),
        Value::String(text) => text,
        _ => return Err(Error::new(usage)),
    };
    let parts: List = match delimiter {
        Value::String(delimiter) if !delimiter.is_empty() => {
            text.split(delimiter.as_str()).map(Value::from).collect()
        }
        Value::Null => {
            let parts = text.split(python::is_blank);
            parts
                .filter(|part| !part.is_empty())
                .map(Value::from)
                .collect()
        }
        _ => return Err(Error::new("the delimiter must be a string")),
    };
    // Further arguments are ignored.
    let Some(at) = rest.first() else {
        return Ok(Value::Array(parts));
    };
    python::int(at)
        .and_then(|at| parts.get(python::at(at, parts.len())?).cloned())
        .ok_or_else(|| Error::new(format!("no part {at}, there are {}", parts.len())))
}

/// `digest`: a hash in hex.
pub(super) fn digest(argument: &Value) -> Result<Value> {
    let items = expect_list(argument, "takes [algorithm, text]")?;
    let [Value::String(algorithm), Value::String(text)] = &items[..] else {
        return Err(Error::new("takes [algorithm, text]"));
    };
    // A character is a byte here, and there are no others.
    let bytes = text.chars().map(|c| u8::try_from(u32::from(c)));
    let bytes = bytes
        .collect::<std::result::Result<Vec<u8>, _>>()
        .map_err(|_| Error::new("the text has characters that are not of Latin-1"))?;
    Ok(Value::from(match algorithm.to_lowercase().as_str() {
        "md5" => hex::encode(md5::Md5::digest(&bytes)),
        "sha1" => hex::encode(sha1::Sha1::digest(&bytes)),
        "sha224" => hex::encode(sha2::Sha224::digest(&bytes)),
        "sha256" => hex::encode(sha2::Sha256::digest(&bytes)),
        "sha384" => hex::encode(sha2::Sha384::digest(&bytes)),
        "sha512" => hex::encode(sha2::Sha512::digest(&bytes)),
        "sha512_224" => hex::encode(sha2::Sha512_224::digest(&bytes)),
        "sha512_256" => hex::encode(sha2::Sha512_256::digest(&bytes)),
        "md5-sha1" => {
            let parts = (md5::Md5::digest(&bytes), sha1::Sha1::digest(&bytes));
            hex::encode(parts.0) + &hex::encode(parts.1)
        }
        // The word itself is left out: it may be hidden.
        _ => {
            return Err(Error::new(
                "no such algorithm; there are md5, sha1, sha224, sha256, sha384, sha512, \
                 sha512_224, sha512_256 and md5-sha1",
            ));
        }
    }))
}
