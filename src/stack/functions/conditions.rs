//! Conditions: `equals`, `not`, `and`, `or`, and names of other conditions.

use serde_json::Value;

use super::Scope;
use crate::stack::{Error, Result, kind_of};

/// Whether `value` holds; `path` holds the conditions being evaluated.
pub(super) fn holds(scope: &Scope<'_>, value: &Value, path: &mut Vec<String>) -> Result<bool> {
    match value {
        Value::Bool(flag) => Ok(*flag),
        Value::String(name) => named(scope, name, path),
        Value::Object(map) if map.len() == 1 => {
            let Some((name, argument)) = map.iter().next() else {
                return Err(Error::new("an empty condition"));
            };
            if !scope.version.has_condition_function(name) {
                return Err(Error::at(
                    name,
                    "not a function of conditions in this template version",
                ));
            }
            call(scope, name, argument, path).map_err(|error| error.below(name))
        }
        other => Err(Error::new(format!(
            "a condition is a name, a boolean or a function, this is {}",
            kind_of(other)
        ))),
    }
}

/// What a condition's function gives, be it a boolean or not.
pub(super) fn value(scope: &Scope<'_>, value: &Value) -> Result<Value> {
    if let Value::Object(map) = value
        && map.len() == 1
        && let Some((name, argument)) = map.iter().next()
        && scope.version.has_condition_function(name)
        && !is_logic(name)
    {
        return plain(scope, &serde_json::json!({ name: argument }));
    }
    holds(scope, value, &mut Vec::new()).map(Value::Bool)
}

fn is_logic(name: &str) -> bool {
    matches!(
        name,
        "equals" | "Fn::Equals" | "not" | "Fn::Not" | "and" | "or" | "Fn::And" | "Fn::Or"
    )
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
        return Err(Error::new(format!(
            "conditions name one another over more than {} levels",
            super::MAX_DEPTH
        )));
    }
    path.push(name.to_owned());
    let result = holds(scope, definition, path);
    path.pop();
    let result = result?;
    scope.held.borrow_mut().insert(name.to_owned(), result);
    Ok(result)
}

fn call(scope: &Scope<'_>, name: &str, argument: &Value, path: &mut Vec<String>) -> Result<bool> {
    match name {
        "equals" | "Fn::Equals" => match argument {
            Value::Array(items) if items.len() == 2 => {
                Ok(plain(scope, &items[0])? == plain(scope, &items[1])?)
            }
            _ => Err(Error::new("takes [value, value]")),
        },
        "not" | "Fn::Not" => {
            let inner = match argument {
                Value::Array(items) if items.len() == 1 => &items[0],
                Value::Array(_) => return Err(Error::new("takes one condition")),
                _ if name == "Fn::Not" => return Err(Error::new("takes [condition]")),
                one => one,
            };
            Ok(!holds(scope, inner, path)?)
        }
        "and" | "or" | "Fn::And" | "Fn::Or" => {
            let items = match argument {
                Value::Array(items) if items.len() >= 2 => items,
                _ => return Err(Error::new("takes a list of two or more conditions")),
            };
            let all = name.ends_with("nd");
            let mut result = all;
            // Every one is looked at, so that a mistake in the last is found.
            for item in items {
                let held = holds(scope, item, path)?;
                result = if all { result && held } else { result || held };
            }
            Ok(result)
        }
        _ => match plain(scope, &serde_json::json!({ name: argument }))? {
            Value::Bool(flag) => Ok(flag),
            other => Err(Error::new(format!(
                "gives {}, not a boolean",
                kind_of(&other)
            ))),
        },
    }
}

/// A value inside a condition: resources are out of reach there.
fn plain(scope: &Scope<'_>, value: &Value) -> Result<Value> {
    if let Value::Object(map) = value
        && let Some(name) = map.keys().next()
        && map.len() == 1
        && scope.version.has_function(name)
        && !scope.version.has_condition_function(name)
    {
        return Err(Error::at(name, "not a function of conditions"));
    }
    scope.evaluate(value)
}
