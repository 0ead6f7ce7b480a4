//! Conditions: `equals`, `not`, `and`, `or`, and names of other conditions.

use super::{Scope, python, references};
use crate::stack::value::Value;
use crate::stack::{Error, Result, kind_of};

/// Whether `value` holds; `path` holds the conditions being evaluated.
pub(super) fn holds(scope: &Scope<'_>, value: &Value, path: &mut Vec<String>) -> Result<bool> {
    // The usual ones, without a copy.
    match value {
        Value::Bool(flag) => Ok(*flag),
        Value::String(name) => named(scope, name, path),
        other => {
            let value = self::value(scope, other, path)?;
            enabled(scope, &value, path)
        }
    }
}

/// Whether what a condition gave holds: a boolean, a condition's name, or nothing, which does.
fn enabled(scope: &Scope<'_>, value: &Value, path: &mut Vec<String>) -> Result<bool> {
    match value {
        Value::Null => Ok(true),
        Value::Bool(flag) => Ok(*flag),
        Value::String(name) => named(scope, name, path),
        other => Err(Error::new(format!(
            "a condition is a name, a boolean or a function, this is {}",
            kind_of(other)
        ))),
    }
}

/// What `value` gives where only functions of conditions are; resources are out of reach there.
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
            if map.len() == 1
                && let Some((name, argument)) = map.iter().next()
            {
                if scope.version.has_condition_function(name) {
                    return call(scope, name, argument, path).map_err(|error| error.below(name));
                }
                if scope.version.has_function(name) || scope.version.has_removed(name) {
                    return Err(Error::at(
                        name,
                        "not a function of conditions in this template version",
                    ));
                }
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
    let result = match name {
        "equals" | "Fn::Equals" => match argument {
            Value::Array(items) if items.len() == 2 => {
                let (a, b) = (
                    value(scope, &items[0], path)?,
                    value(scope, &items[1], path)?,
                );
                python::equal(&a, &b)
            }
            _ => return Err(Error::new("takes [value, value]")),
        },
        "not" if argument.is_null() => return Err(Error::new("takes a condition")),
        "not" => !holds(scope, argument, path)?,
        "Fn::Not" => match argument {
            Value::Array(items) if items.len() == 1 => !holds(scope, &items[0], path)?,
            _ => return Err(Error::new("takes [condition]")),
        },
        "and" | "or" | "Fn::And" | "Fn::Or" => {
            let items = match argument {
                Value::Array(items) if items.len() >= 2 => items,
                _ => return Err(Error::new("takes a list of two or more conditions")),
            };
            // Every one is evaluated, but names are followed only until the rest is settled.
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
            references::shape(scope, name, argument)?;
            let argument = value(scope, argument, path)?;
            return scope.apply(name, &argument);
        }
    };
    Ok(Value::Bool(result))
}
