//! Functions of lists and maps that need no lambda.

use std::collections::HashSet;

use super::eval::{compare, equal, key_text, operate, size, wrong};
use super::meter::Meter;
use super::unique::Unique;
use crate::value::{List, Map, Value};
use crate::{Error, Result};

/// The items that `value` is walked by; a map is not walked.
pub(super) fn items(value: &Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(items) => Ok(items.to_vec()),
        other => Err(wrong("this function", other)),
    }
}

fn count(value: Option<&Value>) -> Result<usize> {
    let number = value.and_then(Value::as_i64);
    number
        .and_then(|n| usize::try_from(n).ok())
        .ok_or_else(|| Error::new("takes a number that is not negative"))
}

/// The items without those that were there before.
pub(super) fn distinct(items: impl IntoIterator<Item = Value>) -> Vec<Value> {
    let items: Vec<Value> = items.into_iter().collect();
    let mut seen = Unique::default();
    let kept = items.iter().filter(|item| seen.insert(item));
    kept.cloned().collect()
}

fn flatten(value: &Value, into: &mut Vec<Value>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| flatten(item, into)),
        other => into.push(other.clone()),
    }
}

fn fold(
    items: &[Value],
    initial: Option<&Value>,
    step: &dyn Fn(&Value, &Value) -> Result<Value>,
) -> Result<Value> {
    let mut items = items.iter();
    let mut total = match initial.or_else(|| items.next()) {
        Some(value) => value.clone(),
        None => return Err(Error::new("of nothing there is no such value")),
    };
    for item in items {
        total = step(&total, item)?;
    }
    Ok(total)
}

fn extreme(list: &[Value], initial: Option<&Value>, least: bool) -> Result<Value> {
    fold(list, initial, &|best, item| {
        let order = compare(item, best)?;
        let better = if least { order.is_lt() } else { order.is_gt() };
        Ok(if better { item } else { best }.clone())
    })
}

/// Takes the cost of a function of a list that walks it in a way of its own.
fn charge(meter: &Meter<'_>, name: &str, list: &[Value], rest: &[Value]) -> Result<()> {
    let all = || list.iter().map(size).sum::<usize>();
    meter.spend(list.len() / 8)?;
    match (name, rest) {
        // Each item is compared with each that is given.
        ("remove", rest) => meter.spend(all().saturating_mul(rest.len()) / 8),
        // The separator stands between all of them.
        ("join", [Value::String(separator)]) => {
            meter.walk(separator.len().saturating_mul(list.len()))?;
            meter.spend(all())
        }
        ("add" | "union" | "intersect" | "difference" | "symmetricDifference" | "toSet", _) => {
            meter.spend(all())
        }
        _ => Ok(()),
    }
}

/// Functions of a list; nothing when `name` is none of them.
pub(super) fn of_list(
    meter: &Meter<'_>,
    name: &str,
    list: &[Value],
    rest: &[Value],
) -> Option<Result<Value>> {
    if let Err(error) = charge(meter, name, list, rest) {
        return Some(Err(error));
    }
    let some = |items: Vec<Value>| Ok(Value::from(items));
    let result = match name {
        "len" | "count" => Ok(Value::from(list.len())),
        "toList" | "memorize" => some(list.to_vec()),
        "skip" => count(rest.first()).map(|n| list.iter().skip(n).cloned().collect()),
        "limit" | "take" => count(rest.first()).map(|n| list.iter().take(n).cloned().collect()),
        "append" => some(list.iter().chain(rest).cloned().collect()),
        "concat" => {
            let others = rest.iter().map(items).collect::<Result<Vec<_>>>();
            others.map(|others| {
                list.iter()
                    .cloned()
                    .chain(others.into_iter().flatten())
                    .collect()
            })
        }
        "flatten" => {
            let mut flat = Vec::new();
            for item in list {
                flatten(item, &mut flat);
            }
            some(flat)
        }
        "reverse" => some(list.iter().rev().cloned().collect()),
        // A sum of texts or lists is made anew with each of them.
        "sum" => fold(list, rest.first(), &|a, b| {
            meter.spend(size(a))?;
            operate("+", a, b)
        }),
        "max" => extreme(list, rest.first(), false),
        "min" => extreme(list, rest.first(), true),
        "first" => at_end(list.first(), rest),
        "last" => at_end(list.last(), rest),
        "single" if list.len() == 1 => Ok(list[0].clone()),
        "single" => Err(Error::new(format!(
            "there are {} items, not one",
            list.len()
        ))),
        "contains" => {
            Ok(Value::Bool(rest.first().is_some_and(|item| {
                list.iter().any(|other| equal(item, other))
            })))
        }
        "indexOf" | "lastIndexOf" => {
            let item = rest.first()?;
            let found = if name == "indexOf" {
                list.iter().position(|other| equal(item, other))
            } else {
                list.iter().rposition(|other| equal(item, other))
            };
            Ok(found.map_or(Value::from(-1), Value::from))
        }
        "enumerate" => {
            let start = rest.first().and_then(Value::as_i64).unwrap_or(0);
            let pairs = (start..).zip(list);
            some(
                pairs
                    .map(|(at, item)| Value::from(vec![Value::from(at), item.clone()]))
                    .collect(),
            )
        }
        "zip" => zip(list, rest),
        "add" => some(distinct(list.iter().chain(rest).cloned())),
        "remove" => {
            let kept = list
                .iter()
                .filter(|item| !rest.iter().any(|o| equal(o, item)));
            some(kept.cloned().collect())
        }
        "replace" | "replaceMany" => exchange(name, list, rest),
        "join" => match rest {
            [Value::String(separator)] => {
                let parts: Vec<_> = list.iter().map(super::texts::str_of).collect();
                Ok(Value::from(parts.join(separator)))
            }
            [other] => Err(wrong("a separator", other)),
            _ => return None,
        },
        "defaultIfEmpty" if list.is_empty() => rest.first().map(items)?.map(Value::from),
        "defaultIfEmpty" => some(list.to_vec()),
        "toSet" => some(distinct(list.to_vec())),
        "union" | "intersect" | "difference" | "symmetricDifference" => sets(name, list, rest),
        "slice" | "splitAt" => cut(name, list, rest),
        "insert" | "insertMany" | "delete" => edit(name, list, rest),
        _ => return None,
    };
    Some(result)
}

/// `replace` and `replaceMany`: other items in the places of some.
fn exchange(name: &str, list: &[Value], rest: &[Value]) -> Result<Value> {
    let at = count(rest.first())?;
    // A negative number goes to the end.
    let number = match rest.get(2).and_then(Value::as_i64) {
        Some(n) => usize::try_from(n).unwrap_or(usize::MAX),
        None => 1,
    };
    let new = match rest.get(1) {
        Some(Value::Array(new)) if name == "replaceMany" => new.to_vec(),
        Some(new) if name == "replace" => vec![new.clone()],
        _ => return Err(Error::new("takes a place and what comes there")),
    };
    let mut result = list.to_vec();
    if at < list.len() {
        result.splice(at..at.saturating_add(number).min(list.len()), new);
    }
    Ok(Value::from(result))
}

fn at_end(item: Option<&Value>, rest: &[Value]) -> Result<Value> {
    item.or(rest.first())
        .cloned()
        .ok_or_else(|| Error::new("the list is empty"))
}

fn zip(list: &[Value], rest: &[Value]) -> Result<Value> {
    let others = rest.iter().map(items).collect::<Result<Vec<_>>>()?;
    let length = others.iter().map(Vec::len).chain([list.len()]).min();
    Ok((0..length.unwrap_or(0))
        .map(|at| {
            let mut row = vec![list[at].clone()];
            row.extend(others.iter().map(|other| other[at].clone()));
            Value::from(row)
        })
        .collect())
}

fn sets(name: &str, list: &[Value], rest: &[Value]) -> Result<Value> {
    let other = items(rest.first().unwrap_or(&Value::Null))?;
    let only = |a: &[Value], b: &[Value]| -> Vec<Value> {
        let b = Unique::of(b);
        a.iter().filter(|item| !b.contains(item)).cloned().collect()
    };
    Ok(Value::from(distinct(match name {
        "union" => list.iter().chain(&other).cloned().collect(),
        "intersect" => {
            let other = Unique::of(&other);
            let both = list.iter().filter(|item| other.contains(item));
            both.cloned().collect()
        }
        "difference" => only(list, &other),
        _ => [only(list, &other), only(&other, list)].concat(),
    })))
}

/// Where a place from the start, or from the end when it is negative, is in a list.
fn place(list: &[Value], at: Option<&Value>) -> Result<usize> {
    let at = at.and_then(Value::as_i64);
    let at = at.ok_or_else(|| Error::new("takes a place"))?;
    let from_end = usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX);
    Ok(if at < 0 {
        list.len().saturating_sub(from_end)
    } else {
        from_end.min(list.len())
    })
}

fn cut(name: &str, list: &[Value], rest: &[Value]) -> Result<Value> {
    if name == "splitAt" {
        let (left, right) = list.split_at(place(list, rest.first())?);
        return Ok(Value::from(vec![
            Value::from(left.to_vec()),
            Value::from(right.to_vec()),
        ]));
    }
    let at = count(rest.first())?;
    if at == 0 {
        return Ok(Value::Array(List::new()));
    }
    Ok(list
        .chunks(at)
        .map(|part| Value::from(part.to_vec()))
        .collect())
}

fn edit(name: &str, list: &[Value], rest: &[Value]) -> Result<Value> {
    let mut result = list.to_vec();
    let negative = rest
        .first()
        .and_then(Value::as_i64)
        .is_some_and(|at| at < 0);
    if negative && name != "insert" {
        return Err(Error::new("takes a place from the start"));
    }
    let at = place(list, rest.first())?;
    match (name, rest.get(1)) {
        ("insert", Some(value)) => result.insert(at, value.clone()),
        ("insertMany", Some(values)) => {
            result.splice(at..at, items(values)?);
        }
        ("delete", number) => {
            let number = match number.and_then(Value::as_i64) {
                Some(n) => usize::try_from(n).unwrap_or(usize::MAX),
                None => 1,
            };
            result.drain(at..at.saturating_add(number).min(list.len()));
        }
        _ => return Err(Error::new("takes a place and a value")),
    }
    Ok(Value::from(result))
}

/// A map of `[key, value]` pairs.
pub(super) fn pairs(list: &[Value]) -> Result<Value> {
    let mut map = Map::new();
    for pair in list {
        match pair.as_array().map(List::as_slice) {
            Some([key, value, ..]) => map.insert(key_text(key)?, value.clone()),
            _ => return Err(Error::new("takes a list of [key, value]")),
        };
    }
    Ok(Value::Object(map))
}

/// Functions of a map; nothing when `name` is none of them.
pub(super) fn of_map(
    meter: &Meter<'_>,
    name: &str,
    map: &Map,
    rest: &[Value],
) -> Option<Result<Value>> {
    if let Err(error) = meter.spend(map.len() / 8) {
        return Some(Err(error));
    }
    let key = || key_text(rest.first().unwrap_or(&Value::Null));
    let result = match name {
        "len" => Ok(Value::from(map.len())),
        "keys" => Ok(map.keys().cloned().collect()),
        "values" => Ok(map.values().cloned().collect()),
        "items" => Ok(map
            .iter()
            .map(|(key, value)| Value::from(vec![Value::from(key.clone()), value.clone()]))
            .collect()),
        "get" => {
            let found = key().ok().and_then(|key| map.get(&key));
            Ok(found.or(rest.get(1)).cloned().unwrap_or_default())
        }
        "containsKey" => Ok(Value::Bool(key().is_ok_and(|key| map.contains_key(&key)))),
        "containsValue" => {
            Ok(Value::Bool(rest.first().is_some_and(|value| {
                map.values().any(|other| equal(other, value))
            })))
        }
        "set" => set(map, rest),
        "delete" | "deleteAll" => {
            let keys = match rest {
                [Value::Array(keys)] => &keys[..],
                keys => keys,
            };
            // In one walk: a map closes up after each that is taken out of it.
            let out: HashSet<String> = keys.iter().filter_map(|key| key_text(key).ok()).collect();
            let kept = map.iter().filter(|(key, _)| !out.contains(key.as_str()));
            Ok(Value::Object(
                kept.map(|(key, value)| (key.clone(), value.clone()))
                    .collect(),
            ))
        }
        _ => return None,
    };
    Some(result)
}

fn set(map: &Map, rest: &[Value]) -> Result<Value> {
    let mut result = map.clone();
    match rest {
        [Value::Object(more)] => result.extend(more.clone()),
        [key, value] => {
            result.insert(key_text(key)?, value.clone());
        }
        _ => return Err(Error::new("takes a key and a value, or a map")),
    }
    Ok(Value::Object(result))
}
