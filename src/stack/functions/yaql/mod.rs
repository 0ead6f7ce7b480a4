//! `yaql`: the query language, as far as templates use it.
//!
//! The cost of an expression is limited, and functions that are not supported are refused by name.

mod eval;
mod library;
mod merge;
mod meter;
mod parse;
mod regexes;
mod sequences;
mod signatures;
mod texts;
mod unique;

use crate::budget::Budget;
use crate::value::{Map, Value};
use crate::{Error, Result};

/// `yaql`: evaluates `expression` over `data`.
pub(super) fn call(argument: &Value, budget: &Budget) -> Result<Value> {
    let usage = "takes a map with `expression`, text, and `data`";
    let Value::Object(map) = argument else {
        return Err(Error::new(usage));
    };
    if map.keys().any(|key| key != "expression" && key != "data") {
        return Err(Error::new(usage));
    }
    let Some(Value::String(expression)) = map.get("expression") else {
        return Err(Error::new(usage));
    };
    let data = map
        .get("data")
        .cloned()
        .unwrap_or_else(|| Value::Object(Map::new()));
    evaluate(expression, data, budget)
}

/// The value of `expression` where `$.data` is `data`.
///
/// # Errors
/// When the expression is malformed, costs too much, or does what the values do not
/// allow.
pub fn evaluate(expression: &str, data: Value, budget: &Budget) -> Result<Value> {
    budget.spend(expression.len())?;
    let ast = parse::parse(expression)?;
    let mut root = Map::new();
    root.insert("data".to_owned(), data);
    let value = eval::run(&ast, Value::Object(root), budget)?;
    Ok(regexes::plain(value))
}

#[cfg(test)]
mod tests;
