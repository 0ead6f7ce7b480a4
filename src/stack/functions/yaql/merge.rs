//! `mergeWith`: two maps into one, at any depth.

use super::eval::{Env, wrong};
use super::library::lambda;
use super::parse::{Ast, Call};
use super::sequences;
use crate::value::{Map, Value};
use crate::{Error, Result};

/// How two maps become one.
struct Merge<'a> {
    lists: Option<&'a Ast>,
    items: Option<&'a Ast>,
}

/// `mergeWith`.
pub(super) fn merge_with(
    env: &Env<'_>,
    subject: &Value,
    call: &Call,
    rest: &[&Ast],
) -> Result<Value> {
    let other = rest.first().map_or(Ok(Value::Null), |ast| env.eval(ast))?;
    let (Value::Object(left), Value::Object(right)) = (subject, &other) else {
        return Err(Error::new("merges two maps"));
    };
    let levels = lambda(call, rest, 3, "maxLevels")
        .map(|ast| env.eval(ast))
        .transpose()?;
    let levels = levels.and_then(|levels| levels.as_u64()).unwrap_or(0);
    let merge = Merge {
        lists: lambda(call, rest, 1, "listMerger"),
        items: lambda(call, rest, 2, "itemMerger"),
    };
    merge.maps(env, left, right, levels).map(Value::Object)
}

impl Merge<'_> {
    fn maps(&self, env: &Env<'_>, left: &Map, right: &Map, levels: u64) -> Result<Map> {
        env.spend(1 + left.len() + right.len())?;
        let mut result = left.clone();
        for (key, new) in right {
            let merged = match (left.get(key), new) {
                (None, _) => new.clone(),
                (Some(Value::Object(a)), Value::Object(b)) if levels != 1 => {
                    Value::Object(self.maps(env, a, b, levels.saturating_sub(1))?)
                }
                (Some(Value::Array(a)), Value::Array(b)) if levels != 1 => {
                    if let Some(ast) = self.lists {
                        env.apply(ast, &[&Value::from(a.clone()), new])?
                    } else {
                        let all = a.iter().chain(b).cloned();
                        Value::from(sequences::distinct(all))
                    }
                }
                (Some(old), Value::Object(_) | Value::Array(_)) if levels != 1 => {
                    return Err(wrong("a merge of maps or lists", old));
                }
                (Some(old), _) => match self.items {
                    Some(ast) => env.apply(ast, &[old, new])?,
                    None => new.clone(),
                },
            };
            result.insert(key.clone(), merged);
        }
        Ok(result)
    }
}
