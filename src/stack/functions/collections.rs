//! Functions over lists and maps.

use super::{Scope, expect_list, python};
use crate::value::{List, Map, Text, Value};
use crate::version::Version;
use crate::{Error, Result, python_type};

/// Combinations one `repeat` may make.
const MAX_REPEAT: usize = 10_000;

pub(super) fn map_merge(argument: &Value) -> Result<Value> {
    let mut result = Map::new();
    if argument.as_str() == Some("") {
        return Ok(Value::Object(result));
    }
    for item in expect_list(argument, "takes a list of maps")? {
        match item {
            Value::Object(map) => result.extend(map.clone()),
            Value::Null => {}
            other => {
                return Err(Error::new(format!(
                    "takes a list of maps, one is {}",
                    python_type(other)
                )));
            }
        }
    }
    Ok(Value::Object(result))
}

pub(super) fn map_replace(argument: &Value) -> Result<Value> {
    let usage = "takes [map, {keys: {…}, values: {…}}]";
    let items = expect_list(argument, usage)?;
    let none = Map::new();
    let map_of = |value| match value {
        &Value::Null => Ok(&none),
        Value::Object(map) => Ok(map),
        _ => Err(Error::new(usage)),
    };
    let [map, by] = &items[..] else {
        return Err(Error::new(usage));
    };
    let (map, by) = (map_of(map)?, map_of(by)?);
    if by.keys().any(|key| key != "keys" && key != "values") {
        return Err(Error::new(usage));
    }
    let table = |key: &str| match by.get(key) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(table)) => Ok(table.clone()),
        Some(_) => Err(Error::new(format!("`{key}` must be a map"))),
    };
    let (keys, values) = (table("keys")?, table("values")?);
    let mut result = Map::new();
    for (key, value) in map {
        let new_key = match keys.get(key) {
            None | Some(Value::Null) => key.clone(),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(_) | Value::Object(_)) => {
                return Err(Error::at("keys", "must hold text"));
            }
            Some(other) => other.to_string().into(),
        };
        let replaced = keys.get(key).is_some_and(|new| !new.is_null());
        let taken =
            (&new_key != key && map.contains_key(&new_key)) || result.contains_key(&new_key);
        if replaced && taken {
            return Err(Error::new(format!("`{new_key}` would be there twice")));
        }
        let text = match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(_) | Value::Bool(_) => Some(value.to_string().into()),
            _ => None,
        };
        let new = text.and_then(|text| values.get(&text)).unwrap_or(value);
        result.insert(new_key, new.clone());
    }
    Ok(Value::Object(result))
}

pub(super) fn list_concat(argument: &Value, unique: bool) -> Result<Value> {
    let mut result = List::new();
    for list in expect_list(argument, "takes a list of lists")? {
        let list = match list {
            Value::Null => continue,
            other => expect_list(other, "takes a list of lists")?,
        };
        for item in list {
            if !unique || !has(&result, item) {
                result.push(item.clone());
            }
        }
    }
    Ok(Value::Array(result))
}

fn has(list: &[Value], value: &Value) -> bool {
    list.iter().any(|item| python::equal(item, value))
}

pub(super) fn contains(argument: &Value) -> Result<Value> {
    let usage = "takes [value, list or text]";
    let items = expect_list(argument, usage)?;
    match &items[..] {
        [value, Value::Array(list)] => Ok(Value::Bool(has(list, value))),
        [Value::String(part), Value::String(text)] => Ok(Value::Bool(text.contains(part.as_str()))),
        _ => Err(Error::new(usage)),
    }
}

pub(super) fn filter(argument: &Value) -> Result<Value> {
    let usage = "takes [values to leave out, list]";
    let items = expect_list(argument, usage)?;
    let [out, list] = &items[..] else {
        return Err(Error::new(usage));
    };
    match (out, list) {
        // Nothing to leave out, or nothing to leave it out of.
        (_, list) if !python::truthy(list) => Ok(list.clone()),
        (out, Value::Array(_)) if !python::truthy(out) => Ok(list.clone()),
        (Value::Array(out), Value::Array(list)) => Ok(list
            .iter()
            .filter(|item| !has(out, item))
            .cloned()
            .collect()),
        _ => Err(Error::new(usage)),
    }
}

/// `repeat`: the template once for each combination of the lists' items.
pub(super) fn repeat(scope: &Scope<'_>, argument: &Value) -> Result<Value> {
    let usage = "takes a map with `template` and `for_each`";
    let Value::Object(map) = argument else {
        return Err(Error::new(usage));
    };
    let (Some(template), Some(for_each)) = (map.get("template"), map.get("for_each")) else {
        return Err(Error::new(usage));
    };
    let Value::Object(for_each) = scope.evaluate(for_each)? else {
        return Err(Error::at("for_each", "must be a map"));
    };
    let permutations = permutations(scope.version, map)?;
    if for_each.is_empty() {
        return Err(Error::at("for_each", "must name at least one list"));
    }
    let mut names = Vec::new();
    let mut lists = Vec::new();
    let mut lengths = Vec::new();
    for (name, list) in for_each {
        names.push(name);
        lists.push(match list {
            Value::Array(items) => items,
            // Since Newton a map gives its keys.
            Value::Object(map) if permutations && scope.version >= Version::Newton => {
                map.into_iter().map(|(key, _)| Value::from(key)).collect()
            }
            // Not there yet.
            Value::Null => {
                lists.push(List::new());
                continue;
            }
            other => {
                return Err(Error::at(
                    "for_each",
                    format!("must hold lists, has {}", python_type(&other)),
                ));
            }
        });
        lengths.extend(lists.last().map(List::len));
    }
    if !permutations && lengths.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(Error::new(
            "without permutations every list must be of the same length",
        ));
    }
    // Before anything is put in: functions of the template see the names.
    let template = scope.evaluate(template)?;
    let rows = if permutations {
        product(&lists)?
    } else {
        zip(&lists)
    };
    let rows = rows.into_iter().map(|row| {
        let pairs: Vec<_> = names.iter().map(Text::as_str).zip(row).collect();
        let row = fill(scope, &template, &pairs)?;
        scope.budget.spend(super::weight(&row))?;
        Ok(row)
    });
    rows.collect()
}

/// Whether every item meets every other, which since Pike may be turned off.
pub(super) fn permutations(version: Version, argument: &Map) -> Result<bool> {
    match argument.get("permutations") {
        Some(_) if version < Version::Pike => Ok(true),
        None => Ok(true),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(Error::at("permutations", "must be a boolean")),
    }
}

fn product(lists: &[List]) -> Result<Vec<Vec<&Value>>> {
    let total = lists
        .iter()
        .try_fold(1usize, |total, list| total.checked_mul(list.len()));
    if total.is_none_or(|total| total > MAX_REPEAT) {
        return Err(Error::new(format!("more than {MAX_REPEAT} combinations")));
    }
    let mut rows = vec![Vec::new()];
    for list in lists {
        rows = rows
            .into_iter()
            .flat_map(|row: Vec<&Value>| {
                list.iter().map(move |item| {
                    let mut row = row.clone();
                    row.push(item);
                    row
                })
            })
            .collect();
    }
    Ok(rows)
}

/// The lists side by side, as far as the shortest goes.
fn zip(lists: &[List]) -> Vec<Vec<&Value>> {
    let least = lists.iter().map(List::len).min().unwrap_or(0);
    let row = |at: usize| lists.iter().map(|list| &list[at]).collect();
    (0..least).map(row).collect()
}

/// The template with each name replaced, in keys too.
fn fill(scope: &Scope<'_>, template: &Value, pairs: &[(&str, &Value)]) -> Result<Value> {
    Ok(match template {
        Value::String(text) => Value::from(fill_text(scope, text, pairs)?),
        Value::Array(items) => {
            let items = items.iter().map(|item| fill(scope, item, pairs));
            items.collect::<Result<_>>()?
        }
        Value::Object(map) => {
            let entries = map.iter();
            entries
                .map(|(key, value)| Ok((fill_text(scope, key, pairs)?, fill(scope, value, pairs)?)))
                .collect::<Result<_>>()?
        }
        plain => plain.clone(),
    })
}

fn fill_text(scope: &Scope<'_>, text: &str, pairs: &[(&str, &Value)]) -> Result<String> {
    let mut result = text.to_owned();
    for (name, value) in pairs {
        let Value::String(value) = value else {
            return Err(Error::at(
                "for_each",
                format!(
                    "`{name}` must hold text to put in, has {}",
                    python_type(value)
                ),
            ));
        };
        // What was put in may hold the next name, many times: each step is paid for before.
        let times = result.matches(name).count();
        let more = times.saturating_mul(value.len());
        scope.budget.spend(1 + result.len() / 8 + more)?;
        result = result.replace(name, value);
    }
    Ok(result)
}
