//! CloudFormation's functions.

use std::collections::{BTreeMap, HashSet};

use super::{Scope, expect_list, python, strings};
use crate::value::{List, Map, Value};
use crate::{Error, Result};

/// `Ref`: a parameter or a resource.
pub(super) fn reference(scope: &Scope<'_>, argument: &Value) -> Result<Value> {
    let Value::String(name) = argument else {
        return Err(Error::new("takes a name"));
    };
    let is_resource = |names: &HashSet<&str>| names.contains(name.as_str());
    match scope.parameters.get(name) {
        Some(value) if !scope.existing.is_some_and(is_resource) => Ok(value.clone()),
        _ => scope
            .reference(argument)
            .map_err(|_| Error::new(format!("there is no parameter or resource `{name}`"))),
    }
}

pub(super) fn attribute(scope: &Scope<'_>, argument: &Value) -> Result<Value> {
    let items = expect_list(argument, "takes [resource, attribute]")?;
    match &items[..] {
        [Value::String(name), Value::String(key)] => scope.attribute_of(name, key),
        _ => Err(Error::new("takes [resource, attribute]")),
    }
}

pub(super) fn call(scope: &Scope<'_>, name: &str, argument: &Value) -> Result<Value> {
    match name {
        "Fn::Base64" => match argument {
            // In Heat the text is encoded later, where user data is delivered.
            Value::String(_) => Ok(argument.clone()),
            _ => Err(Error::new("takes text")),
        },
        "Fn::GetAZs" => Ok(Value::from(vec!["nova"])),
        "Fn::Split" => match expect_list(argument, "takes [delimiter, text]")?.as_slice() {
            [Value::String(delimiter), Value::String(text)] if !delimiter.is_empty() => {
                Ok(text.split(delimiter.as_str()).collect())
            }
            _ => Err(Error::new("takes [delimiter, text]")),
        },
        "Fn::Replace" => match expect_list(argument, "takes [map, text]")?.as_slice() {
            [Value::Object(params), text] => strings::substitute(scope, text, params, false, 0),
            _ => Err(Error::new("takes [map, text]")),
        },
        "Fn::Select" => select(argument),
        "Fn::FindInMap" => match expect_list(argument, "takes [mapping, key, key]")?.as_slice() {
            [
                Value::String(map),
                Value::String(first),
                Value::String(second),
            ] => scope
                .mappings
                .get(map)
                .and_then(|value| value.get(first)?.get(second))
                .cloned()
                // The keys are left out: they may be hidden.
                .ok_or_else(|| Error::new(format!("the mapping `{map}` has no such keys"))),
            _ => Err(Error::new("takes [mapping, key, key]")),
        },
        "Fn::MemberListToMap" => member_list(argument),
        other => Err(Error::new(format!("no function `{other}`"))),
    }
}

fn select(argument: &Value) -> Result<Value> {
    let usage = "takes [index, list or map]";
    let items = expect_list(argument, usage)?;
    let [key, collection] = &items[..] else {
        return Err(Error::new(usage));
    };
    let parsed;
    let collection = match collection {
        Value::String(text) if text.is_empty() => return Ok(Value::from("")),
        Value::String(text) => {
            parsed = serde_json::from_str(text).map_err(|_| Error::new("the text is not JSON"))?;
            &parsed
        }
        other => other,
    };
    match (collection, key) {
        (Value::Null, _) => Ok(Value::from("")),
        (Value::Array(list), key) => {
            let index = python::int(key)
                .ok_or_else(|| Error::new("the index into a list must be an integer"))?;
            let item = python::at(index, list.len()).and_then(|at| list.get(at));
            Ok(item.cloned().unwrap_or_else(|| Value::from("")))
        }
        (Value::Object(map), Value::String(key)) => {
            Ok(map.get(key).cloned().unwrap_or_else(|| Value::from("")))
        }
        (Value::Object(_), _) => Err(Error::new("the key into a map must be a string")),
        _ => Err(Error::new(usage)),
    }
}

/// `[".member.0.Name=a", ".member.0.Value=b"]` becomes `{a: b}`.
fn member_list(argument: &Value) -> Result<Value> {
    let usage = "takes [name of names, name of values, list]";
    let [Value::String(name), Value::String(value), list] =
        expect_list(argument, usage)?.as_slice()
    else {
        return Err(Error::new(usage));
    };
    let none = List::new();
    let list = match list {
        Value::Array(list) => list,
        // What is empty has no items, whatever it is.
        Value::Object(map) if map.is_empty() => &none,
        Value::String(text) if text.is_empty() => &none,
        _ => return Err(Error::new(usage)),
    };
    let mut members: BTreeMap<u64, Map> = BTreeMap::new();
    for item in list {
        let Some((left, right)) = item.as_str().and_then(|item| item.split_once('=')) else {
            return Err(Error::new("items are text: `.member.0.Name=value`"));
        };
        let rest = left
            .strip_prefix(".member.")
            .and_then(|rest| rest.split_once('.'));
        if let Some((number, field)) = rest
            && let Ok(number) = number.parse()
        {
            let field = field.lines().next().unwrap_or("").to_owned();
            let member = members.entry(number).or_default();
            member.insert(field, Value::from(right));
        }
    }
    let pair = |mut member: Map| {
        let key = member.get(name)?.as_str()?.to_owned();
        Some((key, member.shift_remove(value)?))
    };
    Ok(members.into_values().filter_map(pair).collect())
}
