//! Functions by name: first those with lambdas, then those of values.

use std::cmp::Ordering;

use super::eval::{Env, compare, equal, key_text, operate, size, truthy};
use super::parse::{Ast, Call};
use super::signatures::{self, Shape, lacking};
use super::unique::Unique;
use super::{merge, regexes, sequences, texts};
use crate::value::{Map, Value};
use crate::{Error, Result};

/// How many items a function may generate.
const MAX_ITEMS: usize = 10_000;

/// Calls a function; `receiver` was evaluated last.
pub(super) fn call(env: &Env<'_>, receiver: Option<Value>, call: &Call) -> Result<Value> {
    let (arguments, mut fitting) = signatures::arrange(call)?;
    if let Some(result) = special(env, receiver.as_ref(), call) {
        return result;
    }
    // As a function the collection is the first argument.
    let (subject, rest) = match (receiver, arguments.split_first()) {
        (Some(value), _) => (value, &arguments[..]),
        (None, Some((first, rest))) => (env.eval(first)?, rest),
        (None, None) => return Err(lacking(&call.name)),
    };
    let shape = env.shape();
    fitting.retain(|overload| overload.takes(0, &subject, shape));
    if fitting.is_empty() {
        return Err(lacking(&call.name));
    }
    match call.name.as_str() {
        "isList" => return Ok(Value::Bool(subject.is_array() && shape == Shape::List)),
        "isSet" => return Ok(Value::Bool(subject.is_array() && shape == Shape::Set)),
        "bool" => return Ok(Value::Bool(env.truthy(&subject))),
        _ => {}
    }
    if let Some(result) = with_lambdas(env, &subject, call, rest) {
        return result;
    }
    if call.name == "replaceBy" || (call.name.starts_with("search") && rest.len() > 1) {
        return by_match(env, &call.name, &subject, rest);
    }
    let mut values = Vec::with_capacity(rest.len());
    for (at, argument) in (1..).zip(rest) {
        let value = env.eval(argument)?;
        fitting.retain(|overload| overload.takes(at, &value, env.shape()));
        if fitting.is_empty() {
            return Err(lacking(&call.name));
        }
        values.push(value);
    }
    plain(env, &call.name, subject, values)
}

/// `search`, `searchAll` and `replaceBy` with an expression of what was found: `$` is the match,
/// `$2` its first group.
fn by_match(env: &Env<'_>, name: &str, subject: &Value, rest: &[&Ast]) -> Result<Value> {
    let [other, each, count @ ..] = rest else {
        return Err(lacking(name));
    };
    let other = env.eval(other)?;
    let (by, text) = if regexes::is(subject) {
        (subject, &other)
    } else {
        (&other, subject)
    };
    let whole = text.as_str().ok_or_else(|| lacking(name))?;
    if !regexes::is(by) {
        return Err(lacking(name));
    }
    let count = count.first().map(|count| env.eval(count)).transpose()?;
    let count = if name == "search" {
        1
    } else {
        regexes::limit(count.as_ref())
    };
    let mut values = Vec::new();
    let mut result = String::new();
    let mut end = 0;
    for found in regexes::found(env.meter(), by, text, count)? {
        let groups: Vec<&Value> = found.groups.iter().collect();
        let value = env.apply(each, &groups)?;
        result.push_str(&whole[end..found.start]);
        result.push_str(&texts::str_of(&value));
        end = found.end;
        values.push(value);
    }
    Ok(match name {
        "search" => values.into_iter().next().unwrap_or_default(),
        "searchAll" => Value::from(values),
        _ => Value::from(result + &whole[end..]),
    })
}

/// `list()`, `set()` and `dict()`, of any number of values.
fn collection(env: &Env<'_>, call: &Call) -> Result<Value> {
    let mut items = Vec::new();
    let mut map = Map::new();
    for argument in &call.arguments {
        if let Ast::Rule(key, value) = argument {
            let key = key_text(&env.eval(key)?)?;
            map.insert(key, env.eval(value)?);
            continue;
        }
        match env.eval(argument)? {
            // An iterator is consumed here.
            Value::Array(inner) if call.name != "dict" && env.shape() == Shape::Iterator => {
                items.extend(inner);
            }
            value => items.push(value),
        }
    }
    match call.name.as_str() {
        "list" => Ok(Value::from(items)),
        "set" => Ok(Value::from(sequences::distinct(items))),
        _ => match &items[..] {
            [] => Ok(Value::Object(map)),
            [Value::Array(pairs)] if map.is_empty() => sequences::pairs(pairs),
            _ => Err(lacking("dict")),
        },
    }
}

/// Functions whose arguments are not evaluated in order.
fn special(env: &Env<'_>, receiver: Option<&Value>, call: &Call) -> Option<Result<Value>> {
    let cases = |many: bool| -> Result<Value> {
        let mut found = Vec::new();
        for (index, argument) in call.arguments.iter().enumerate() {
            let value = env.eval(argument)?;
            if env.truthy(&value) {
                if !many {
                    return Ok(Value::from(index));
                }
                found.push(Value::from(index));
            }
        }
        Ok(if many {
            Value::from(found)
        } else {
            Value::from(call.arguments.len())
        })
    };
    match (call.name.as_str(), receiver) {
        ("list" | "set" | "dict", None) => Some(collection(env, call)),
        ("coalesce", None) => Some((|| {
            for argument in &call.arguments {
                let value = env.eval(argument)?;
                if !value.is_null() {
                    return Ok(value);
                }
            }
            Ok(Value::Null)
        })()),
        ("switch", None) => Some((|| {
            for case in &call.arguments {
                let Ast::Rule(condition, value) = case else {
                    return Err(Error::new("takes condition => value"));
                };
                let held = env.eval(condition)?;
                if env.truthy(&held) {
                    return env.eval(value);
                }
            }
            Ok(Value::Null)
        })()),
        ("selectCase", None) => Some(cases(false)),
        ("selectAllCases", None) => Some(cases(true)),
        ("switchCase", Some(case)) => {
            let last = call.arguments.len().checked_sub(1)?;
            let at = case.as_u64().and_then(|at| usize::try_from(at).ok());
            let chosen = call.arguments.get(at.unwrap_or(last).min(last))?;
            Some(env.eval(chosen))
        }
        ("set", Some(Value::Object(map)))
            if call
                .arguments
                .iter()
                .any(|rule| matches!(rule, Ast::Rule(..))) =>
        {
            let more = collection(
                env,
                &Call {
                    name: "dict".to_owned(),
                    receiver: None,
                    ..call.clone()
                },
            );
            Some(more.map(|more| {
                let mut all = map.clone();
                all.extend(more.as_object().cloned().unwrap_or_default());
                Value::Object(all)
            }))
        }
        _ => None,
    }
}

pub(super) fn lambda<'c>(
    call: &'c Call,
    rest: &[&'c Ast],
    at: usize,
    name: &str,
) -> Option<&'c Ast> {
    let named = call.named.iter().find(|(key, _)| key == name);
    named
        .map(|(_, ast)| ast)
        .or_else(|| rest.get(at).copied())
        .filter(|ast| **ast != Ast::Constant(Value::Null))
}

/// Functions that take a lambda.
fn with_lambdas(
    env: &Env<'_>,
    subject: &Value,
    call: &Call,
    rest: &[&Ast],
) -> Option<Result<Value>> {
    let name = call.name.as_str();
    if name == "mergeWith" {
        return Some(merge::merge_with(env, subject, call, rest));
    }
    if name == "generate" {
        return Some(generate(env, subject, rest));
    }
    if name == "assert" {
        let test = *rest.first()?;
        return Some(env.test(test, &[subject]).and_then(|held| {
            if held {
                Ok(subject.clone())
            } else {
                Err(Error::new("the assertion does not hold"))
            }
        }));
    }
    if !subject.is_array() {
        return None;
    }
    let first = lambda(call, rest, 0, "predicate");
    let apply = |ast: &Ast, item: &Value| env.apply(ast, &[item]);
    let test_of = |ast: &Ast, item: &Value| env.test(ast, &[item]);
    let list = sequences::items(subject).ok()?;
    let result = match (name, first) {
        ("where" | "filter", Some(test)) => keep(&list, |item| test_of(test, item)),
        ("select" | "map", Some(each)) => list.iter().map(|item| apply(each, item)).collect(),
        ("selectMany", Some(each)) => (|| {
            let mut all = Vec::new();
            for item in &list {
                match apply(each, item)? {
                    Value::Array(items) => all.extend(items),
                    other => all.push(other),
                }
            }
            Ok(Value::from(all))
        })(),
        ("any", None) => Ok(Value::Bool(!list.is_empty())),
        ("all", None) => Ok(Value::Bool(list.iter().all(truthy))),
        ("any" | "all", Some(test)) => (|| {
            for item in &list {
                if test_of(test, item)? == (name == "any") {
                    return Ok(Value::Bool(name == "any"));
                }
            }
            Ok(Value::Bool(name == "all"))
        })(),
        ("takeWhile" | "skipWhile", Some(test)) => (|| {
            let mut at = 0;
            while at < list.len() && test_of(test, &list[at])? {
                at += 1;
            }
            let (taken, left) = list.split_at(at);
            Ok(Value::from(
                if name == "takeWhile" { taken } else { left }.to_vec(),
            ))
        })(),
        ("indexWhere" | "lastIndexWhere", Some(test)) => (|| {
            let mut found = -1;
            for (at, item) in (0i64..).zip(&list) {
                if (found < 0 || name != "indexWhere") && test_of(test, item)? {
                    found = at;
                }
            }
            Ok(Value::from(found))
        })(),
        ("splitWhere" | "sliceWhere", Some(test)) => split_where(env, &list, test, name),
        ("distinct", key) => distinct(env, &list, key),
        ("orderBy" | "orderByDescending", Some(key)) => {
            sorted(env, list, &[(key, name.ends_with("Descending"))])
        }
        ("groupBy", Some(_)) => group_by(env, &list, call, rest),
        ("toDict", Some(key)) => (|| {
            let value = lambda(call, rest, 1, "valueSelector");
            let mut map = Map::new();
            for item in &list {
                let key = key_text(&apply(key, item)?)?;
                let value = value.map_or(Ok(item.clone()), |value| apply(value, item))?;
                map.insert(key, value);
            }
            Ok(Value::Object(map))
        })(),
        ("aggregate" | "reduce" | "accumulate", Some(step)) => fold(env, &list, step, rest, name),
        ("join", Some(_)) if rest.len() == 3 => join(env, &list, rest),
        _ => return None,
    };
    Some(result)
}

/// `generate(first, while, next)`, with an optional selector.
fn generate(env: &Env<'_>, first: &Value, rest: &[&Ast]) -> Result<Value> {
    let [test, next, of @ ..] = rest else {
        return Err(lacking("generate"));
    };
    if of.len() > 1 {
        return Err(lacking("generate"));
    }
    let mut at = first.clone();
    let mut items = Vec::new();
    while env.test(test, &[&at])? {
        if items.len() >= MAX_ITEMS {
            return Err(Error::new(format!("more than {MAX_ITEMS} items")));
        }
        items.push(match of.first() {
            Some(of) => env.apply(of, &[&at])?,
            None => at.clone(),
        });
        at = env.apply(next, &[&at])?;
    }
    Ok(Value::from(items))
}

fn keep(list: &[Value], test: impl Fn(&Value) -> Result<bool>) -> Result<Value> {
    let mut kept = Vec::new();
    for item in list {
        if test(item)? {
            kept.push(item.clone());
        }
    }
    Ok(Value::from(kept))
}

/// Splits a list at the items for which `test` is true, or where its result changes.
fn split_where(env: &Env<'_>, list: &[Value], test: &Ast, name: &str) -> Result<Value> {
    let mut parts: Vec<Value> = Vec::new();
    let mut part = Vec::new();
    let mut before = None;
    for item in list {
        if name == "splitWhere" {
            if env.test(test, &[item])? {
                parts.push(Value::from(std::mem::take(&mut part)));
            } else {
                part.push(item.clone());
            }
            continue;
        }
        let now = env.apply(test, &[item])?;
        if before.as_ref().is_some_and(|before| !equal(before, &now)) {
            parts.push(Value::from(std::mem::take(&mut part)));
        }
        part.push(item.clone());
        before = Some(now);
    }
    if !part.is_empty() {
        parts.push(Value::from(part));
    }
    Ok(Value::from(parts))
}

fn distinct(env: &Env<'_>, list: &[Value], key: Option<&Ast>) -> Result<Value> {
    let Some(key) = key else {
        return Ok(Value::from(sequences::distinct(list.to_vec())));
    };
    let keys = list.iter().map(|item| env.apply(key, &[item]));
    let keys = keys.collect::<Result<Vec<_>>>()?;
    let mut seen = Unique::default();
    let kept = list.iter().zip(&keys).filter(|(_, key)| seen.insert(key));
    Ok(kept.map(|(item, _)| item.clone()).collect())
}

/// `orderBy(…).thenBy(…)`: the keys from the inside out.
pub(super) fn order(env: &Env<'_>, call: &Call, receiver: &Ast) -> Result<Value> {
    let mut keys = Vec::new();
    let mut at = Some((call, receiver));
    while let Some((step, inner)) = at {
        let key = step
            .arguments
            .first()
            .ok_or_else(|| Error::new("takes a key"))?;
        keys.push((key, step.name.ends_with("Descending")));
        at = match inner {
            Ast::Call(next) if next.name.starts_with("thenBy") => {
                next.receiver.as_deref().map(|receiver| (next, receiver))
            }
            Ast::Call(next) if next.name.starts_with("orderBy") => {
                let key = next
                    .arguments
                    .first()
                    .ok_or_else(|| Error::new("takes a key"))?;
                keys.push((key, next.name.ends_with("Descending")));
                keys.reverse();
                let list = next.receiver.as_deref().map(|receiver| env.eval(receiver));
                let list = list.unwrap_or(Ok(Value::Null))?;
                let Value::Array(list) = list else {
                    return Err(lacking(&next.name));
                };
                return sorted(env, list.to_vec(), &keys);
            }
            _ => None,
        };
    }
    Err(Error::new("`thenBy` comes after `orderBy`"))
}

fn sorted(env: &Env<'_>, list: Vec<Value>, keys: &[(&Ast, bool)]) -> Result<Value> {
    let mut rows = Vec::with_capacity(list.len());
    for item in list {
        let key = keys
            .iter()
            .map(|(key, _)| env.apply(key, &[&item]))
            .collect::<Result<Vec<_>>>()?;
        rows.push((key, item));
    }
    let width: usize = rows.iter().flat_map(|(key, _)| key).map(size).sum();
    env.spend(width.saturating_mul(8))?;
    let mut failed = None;
    rows.sort_by(|(a, _), (b, _)| {
        for ((a, b), (_, descending)) in a.iter().zip(b).zip(keys) {
            match compare(a, b) {
                Ok(Ordering::Equal) => {}
                Ok(order) if *descending => return order.reverse(),
                Ok(order) => return order,
                Err(error) => failed = Some(error),
            }
        }
        Ordering::Equal
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(rows.into_iter().map(|(_, item)| item).collect()),
    }
}

fn group_by(env: &Env<'_>, list: &[Value], call: &Call, rest: &[&Ast]) -> Result<Value> {
    let key = lambda(call, rest, 0, "keySelector").ok_or_else(|| Error::new("takes a key"))?;
    let value = lambda(call, rest, 1, "valueSelector");
    let aggregate = lambda(call, rest, 2, "aggregator");
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for item in list {
        let key = env.apply(key, &[item])?;
        let value = value.map_or(Ok(item.clone()), |value| env.apply(value, &[item]))?;
        // Keys that begin alike are compared to where they differ.
        env.spend(groups.len().saturating_mul(size(&key)) / 8)?;
        match groups.iter_mut().find(|(known, _)| equal(known, &key)) {
            Some((_, values)) => values.push(value),
            None => groups.push((key, vec![value])),
        }
    }
    let rows = groups.into_iter().map(|(key, values)| {
        let values = Value::from(values);
        let value = match aggregate {
            None => values,
            Some(ast) => match env.apply(ast, &[&values]) {
                Ok(value) => value,
                // An older way of writing it: the lambda takes key and values.
                Err(error) => {
                    let pair = Value::from(vec![key, values]);
                    return match env.apply(ast, &[&pair]) {
                        Ok(Value::Array(row)) if row.len() == 2 => Ok(Value::Array(row)),
                        _ => Err(error),
                    };
                }
            },
        };
        Ok(Value::from(vec![key, value]))
    });
    rows.collect()
}

fn fold(env: &Env<'_>, list: &[Value], step: &Ast, rest: &[&Ast], name: &str) -> Result<Value> {
    let mut items = list.iter();
    let seed = rest.get(1).map(|seed| env.eval(seed)).transpose()?;
    let Some(mut total) = seed.or_else(|| items.next().cloned()) else {
        return Err(Error::new("the list is empty"));
    };
    let mut steps = vec![total.clone()];
    for item in items {
        total = env.apply(step, &[&total, item])?;
        if name == "accumulate" {
            steps.push(total.clone());
        }
    }
    Ok(if name == "accumulate" {
        Value::from(steps)
    } else {
        total
    })
}

fn join(env: &Env<'_>, list: &[Value], rest: &[&Ast]) -> Result<Value> {
    let Value::Array(other) = env.eval(rest[0])? else {
        return Err(lacking("join"));
    };
    let mut rows = Vec::new();
    for left in list {
        for right in &other {
            if env.test(rest[1], &[left, right])? {
                rows.push(env.apply(rest[2], &[left, right])?);
            }
        }
    }
    Ok(Value::from(rows))
}

/// Functions of values alone.
fn plain(env: &Env<'_>, name: &str, subject: Value, rest: Vec<Value>) -> Result<Value> {
    let meter = env.meter();
    let found = match &subject {
        Value::String(text) => match (name, &rest[..]) {
            ("join", [list @ Value::Array(_)]) => {
                let list = sequences::items(list)?;
                sequences::of_list(meter, "join", &list, std::slice::from_ref(&subject))
            }
            ("concat", _) => {
                let parts: Vec<_> = rest.iter().map(texts::str_of).collect();
                Some(Ok(Value::from(format!("{text}{}", parts.concat()))))
            }
            _ => texts::of_text(meter, name, text, &rest),
        },
        Value::Array(list) if name != "range" => sequences::of_list(meter, name, list, &rest),
        Value::Object(map) if !regexes::is(&subject) => sequences::of_map(meter, name, map, &rest),
        _ => None,
    };
    if let Some(result) = found {
        return result;
    }
    match name {
        "range" => range(env, &subject, &rest),
        "repeat" => {
            let times = rest.first().and_then(Value::as_u64).unwrap_or(u64::MAX);
            let times = usize::try_from(times).unwrap_or(usize::MAX);
            if times > MAX_ITEMS {
                return Err(Error::new(format!("more than {MAX_ITEMS} items")));
            }
            env.spend(times.saturating_mul(size(&subject)))?;
            Ok(std::iter::repeat_n(subject, times).collect())
        }
        _ => {
            let mut values = vec![subject];
            values.extend(rest);
            texts::of_values(meter, name, &values).unwrap_or_else(|| Err(lacking(name)))
        }
    }
}

fn range(env: &Env<'_>, subject: &Value, rest: &[Value]) -> Result<Value> {
    let step = rest.get(1).cloned().unwrap_or_else(|| Value::from(1));
    let (mut at, end) = match rest.first() {
        Some(last) => (subject.clone(), last.clone()),
        None => (Value::from(0), subject.clone()),
    };
    let forward = compare(&step, &Value::from(0))?;
    if forward == Ordering::Equal {
        return Err(Error::new("a step of 0"));
    }
    let mut items = Vec::new();
    while compare(&at, &end)? == forward.reverse() {
        env.spend(1)?;
        if items.len() >= MAX_ITEMS {
            return Err(Error::new(format!("more than {MAX_ITEMS} items")));
        }
        let next = operate("+", &at, &step)?;
        items.push(std::mem::replace(&mut at, next));
    }
    Ok(Value::from(items))
}
