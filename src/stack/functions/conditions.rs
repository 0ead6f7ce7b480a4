//! Conditions: `equals`, `not`, `and`, `or`, and names of other conditions.

use super::{Scope, python, references};
use crate::value::{List, Map, Value};
use crate::{Error, Result, python_type};

/// Whether the condition `value` is true; `path` has the conditions that are being evaluated.
pub(super) fn holds(scope: &Scope<'_>, value: &Value, path: &mut Vec<String>) -> Result<bool> {
    // The usual cases, without a copy.
    match value {
        Value::Bool(flag) => Ok(*flag),
        Value::String(name) => named(scope, name, path),
        other => {
            let value = self::value(scope, other, path)?;
            enabled(scope, &value, path)
        }
    }
}

/// Whether the value of a condition is true: a boolean, a condition's name, or null, which is true.
fn enabled(scope: &Scope<'_>, value: &Value, path: &mut Vec<String>) -> Result<bool> {
    match value {
        Value::Null => Ok(true),
        Value::Bool(flag) => Ok(*flag),
        Value::String(name) => named(scope, name, path),
        other => Err(Error::new(format!(
            "a condition is a name, a boolean or a function, this is {}",
            python_type(other)
        ))),
    }
}

/// The value of a condition, in which only functions of conditions are allowed and no resources.
pub(super) fn value(scope: &Scope<'_>, value: &Value, path: &mut Vec<String>) -> Result<Value> {
    if path.len() > super::MAX_DEPTH {
        return Err(too_deep());
    }
    match value {
        Value::Array(items) => {
            let items = items.iter().enumerate().map(|(index, item)| {
                self::value(scope, item, path).map_err(|error| error.below(&format!("[{index}]")))
            });
            items.collect()
        }
        Value::Object(map) => {
            if let Some((name, argument)) = function(scope, map)? {
                return call(scope, name, argument, path).map_err(|error| error.below(name));
            }
            let entries = map.iter().map(|(key, item)| {
                let item = self::value(scope, item, path).map_err(|error| error.below(key))?;
                Ok((key.clone(), item))
            });
            entries.collect()
        }
        plain => Ok(plain.clone()),
    }
}

/// Checks the shape of the functions of a condition, whether it is used or not.
pub(super) fn check(scope: &Scope<'_>, value: &Value, depth: usize) -> Result<()> {
    if depth > super::MAX_DEPTH {
        return Err(too_deep());
    }
    match value {
        Value::Array(items) => items.iter().enumerate().try_for_each(|(index, item)| {
            check(scope, item, depth + 1).map_err(|error| error.below(&format!("[{index}]")))
        }),
        Value::Object(map) => {
            let called = function(scope, map)?;
            map.iter().try_for_each(|(key, item)| {
                check(scope, item, depth + 1).map_err(|error| error.below(key))
            })?;
            called.map_or(Ok(()), |(name, argument)| {
                shape(scope, name, argument).map_err(|error| error.below(name))
            })
        }
        _ => Ok(()),
    }
}

/// The function of conditions that `map` calls, if it is a call.
fn function<'v>(scope: &Scope<'_>, map: &'v Map) -> Result<Option<(&'v str, &'v Value)>> {
    let Some((name, argument)) = map.iter().next().filter(|_| map.len() == 1) else {
        return Ok(None);
    };
    if scope.version.has_condition_function(name) {
        return Ok(Some((name, argument)));
    }
    if scope.version.has_function(name) {
        return Err(Error::at(
            name,
            "not a function of conditions in this template version",
        ));
    }
    Ok(None)
}

/// Checks the shape of arguments before anything is evaluated.
fn shape(scope: &Scope<'_>, name: &str, argument: &Value) -> Result<()> {
    let items = argument.as_array().map(List::len);
    let (fits, usage) = match name {
        "equals" | "Fn::Equals" => (items == Some(2), "takes [value, value]"),
        "not" => (!argument.is_null(), "takes a condition"),
        "Fn::Not" => (items == Some(1), "takes [condition]"),
        "and" | "or" | "Fn::And" | "Fn::Or" => (
            items.is_some_and(|n| n >= 2),
            "takes a list of two or more conditions",
        ),
        // The name of the parameter is checked when it is evaluated.
        "Ref" => (true, ""),
        _ => return references::shape(scope, name, argument),
    };
    if fits { Ok(()) } else { Err(Error::new(usage)) }
}

fn too_deep() -> Error {
    Error::new(format!(
        "conditions name one another over more than {} levels",
        super::MAX_DEPTH
    ))
}

fn named(scope: &Scope<'_>, name: &str, path: &mut Vec<String>) -> Result<bool> {
    if let Some(held) = scope.held.borrow().get(name) {
        return Ok(*held);
    }
    let definition = scope
        .conditions
        .get(name)
        .ok_or_else(|| Error::new(format!("there is no condition `{name}`")))?;
    if path.iter().any(|before| before == name) {
        path.push(name.to_owned());
        return Err(Error::new(format!(
            "circular conditions: {}",
            path.join(" → ")
        )));
    }
    if path.len() > super::MAX_DEPTH {
        return Err(too_deep());
    }
    path.push(name.to_owned());
    let result = value(scope, definition, path);
    path.pop();
    let Value::Bool(result) = result? else {
        return Err(Error::new(format!(
            "the condition `{name}` gives no boolean"
        )));
    };
    scope.held.borrow_mut().insert(name.to_owned(), result);
    Ok(result)
}

fn call(scope: &Scope<'_>, name: &str, argument: &Value, path: &mut Vec<String>) -> Result<Value> {
    shape(scope, name, argument)?;
    let result = match (name, argument) {
        ("equals" | "Fn::Equals", Value::Array(items)) => {
            let a = value(scope, &items[0], path)?;
            python::equal(&a, &value(scope, &items[1], path)?)
        }
        ("not", argument) => !holds(scope, argument, path)?,
        ("Fn::Not", Value::Array(items)) => !holds(scope, &items[0], path)?,
        ("and" | "or" | "Fn::And" | "Fn::Or", Value::Array(items)) => {
            // All are evaluated, but names of conditions only until the result is certain.
            let items = items.iter().map(|item| value(scope, item, path));
            let items = items.collect::<Result<Vec<_>>>()?;
            let all = name.ends_with("nd");
            let mut result = all;
            for item in &items {
                result = enabled(scope, item, path)?;
                if result != all {
                    break;
                }
            }
            result
        }
        _ => {
            let argument = value(scope, argument, path)?;
            return scope.apply(name, &argument);
        }
    };
    Ok(Value::Bool(result))
}
