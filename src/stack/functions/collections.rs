//! Functions over lists and maps.

use serde_json::{Map, Value};

use super::{Scope, expect_list};
use crate::stack::{Error, Result, kind_of};

/// Combinations one `repeat` may make.
const MAX_REPEAT: usize = 10_000;

pub(super) fn map_merge(argument: &Value) -> Result<Value> {
    let mut result = Map::new();
    for item in expect_list(argument, "takes a list of maps")? {
        match item {
            Value::Object(map) => result.extend(map.clone()),
            Value::Null => {}
            other => {
                return Err(Error::new(format!(
                    "takes a list of maps, one is {}",
                    kind_of(other)
                )));
            }
        }
    }
    Ok(Value::Object(result))
}

pub(super) fn map_replace(argument: &Value) -> Result<Value> {
    let usage = "takes [map, {keys: {…}, values: {…}}]";
    let items = expect_list(argument, usage)?;
    let [Value::Object(map), Value::Object(by)] = &items[..] else {
        return Err(Error::new(usage));
    };
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
            None => key.clone(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        if &new_key != key && (map.contains_key(&new_key) || result.contains_key(&new_key)) {
            return Err(Error::new(format!("`{new_key}` would be there twice")));
        }
        let text = match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
            _ => None,
        };
        let new = text.and_then(|text| values.get(&text)).unwrap_or(value);
        result.insert(new_key, new.clone());
    }
    Ok(Value::Object(result))
}

pub(super) fn list_concat(argument: &Value, unique: bool) -> Result<Value> {
    let mut result: Vec<Value> = Vec::new();
    for list in expect_list(argument, "takes a list of lists")? {
        let list = match list {
            Value::Null => continue,
            other => expect_list(other, "takes a list of lists")?,
        };
        for item in list {
            if !unique || !result.contains(item) {
                result.push(item.clone());
            }
        }
    }
    Ok(Value::Array(result))
}

pub(super) fn contains(argument: &Value) -> Result<Value> {
    let usage = "takes [value, list or text]";
    let items = expect_list(argument, usage)?;
    match &items[..] {
        [value, Value::Array(list)] => Ok(Value::Bool(list.contains(value))),
        [Value::String(part), Value::String(text)] => Ok(Value::Bool(text.contains(part.as_str()))),
        [Value::String(key), Value::Object(map)] => Ok(Value::Bool(map.contains_key(key))),
        _ => Err(Error::new(usage)),
    }
}

pub(super) fn filter(argument: &Value) -> Result<Value> {
    let usage = "takes [values to leave out, list]";
    let items = expect_list(argument, usage)?;
    match &items[..] {
        [Value::Array(out), Value::Array(list)] => Ok(list
            .iter()
            .filter(|item| !out.contains(item))
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
    let permutations = match map
        .get("permutations")
        .map(|value| scope.evaluate(value))
        .transpose()?
    {
        None => true,
        Some(Value::Bool(flag)) => flag,
        Some(_) => return Err(Error::at("permutations", "must be a boolean")),
    };
    let mut names = Vec::new();
    let mut lists = Vec::new();
    for (name, list) in for_each {
        names.push(name);
        lists.push(match list {
            Value::Array(items) => items,
            // Since Newton a map gives its keys.
            Value::Object(map) if permutations => {
                map.into_iter().map(|(key, _)| Value::from(key)).collect()
            }
            Value::Null => Vec::new(),
            other => {
                return Err(Error::at(
                    "for_each",
                    format!("must hold lists, has {}", kind_of(&other)),
                ));
            }
        });
    }
    let rows = if permutations {
        product(&lists)?
    } else {
        zip(&lists)?
    };
    let rows = rows.into_iter().map(|row| {
        let pairs: Vec<_> = names.iter().map(String::as_str).zip(row).collect();
        let row = fill(template, &pairs);
        scope.budget.pay(super::weight(&row))?;
        scope.evaluate(&row)
    });
    rows.collect()
}

fn product(lists: &[Vec<Value>]) -> Result<Vec<Vec<&Value>>> {
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

fn zip(lists: &[Vec<Value>]) -> Result<Vec<Vec<&Value>>> {
    let length = lists.first().map_or(0, Vec::len);
    if lists.iter().any(|list| list.len() != length) {
        return Err(Error::new(
            "without permutations every list must be of the same length",
        ));
    }
    Ok((0..length)
        .map(|at| lists.iter().map(|list| &list[at]).collect())
        .collect())
}

/// The template with each name replaced, in keys too; where the whole text is
/// one name the item keeps its type.
fn fill(template: &Value, pairs: &[(&str, &Value)]) -> Value {
    match template {
        Value::String(text) => {
            if let Some((_, value)) = pairs.iter().find(|(name, _)| name == text) {
                return (*value).clone();
            }
            Value::from(fill_text(text, pairs))
        }
        Value::Array(items) => items.iter().map(|item| fill(item, pairs)).collect(),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (fill_text(key, pairs), fill(value, pairs)))
            .collect(),
        plain => plain.clone(),
    }
}

fn fill_text(text: &str, pairs: &[(&str, &Value)]) -> String {
    let mut result = text.to_owned();
    for (name, value) in pairs {
        if !name.is_empty() {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            result = result.replace(name, &value);
        }
    }
    result
}
