//! What a value refers to, and whether its functions have the shape they must
//! have before anything is evaluated.

use std::collections::BTreeSet;

use super::{Scope, collections, function, url};
use crate::stack::value::{List, Value};
use crate::stack::version::Version;
use crate::stack::{Error, Result};

/// What a value names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// Resources it needs: `get_resource`, `get_attr`, `Fn::GetAtt`.
    pub resources: BTreeSet<String>,
    /// `Ref`: a resource, a parameter, or a mistake.
    pub names: BTreeSet<String>,
    /// Attributes it reads: resource and attribute.
    pub attributes: BTreeSet<(String, String)>,
}

/// Collects what `value` refers to; only the branch that an `if` takes counts.
pub(super) fn collect(
    scope: &Scope<'_>,
    value: &Value,
    found: &mut References,
    depth: usize,
) -> Result<()> {
    if depth > super::MAX_DEPTH {
        return Err(Error::new("functions are nested too deep"));
    }
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                collect(scope, item, found, depth + 1)
                    .map_err(|error| error.below(&format!("[{index}]")))?;
            }
        }
        Value::Object(map) => {
            if let Some((name, argument)) = function(scope.version, map)? {
                return call(scope, name, argument, found, depth)
                    .map_err(|error| error.below(name));
            }
            for (key, item) in map {
                collect(scope, item, found, depth + 1).map_err(|error| error.below(key))?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn call(
    scope: &Scope<'_>,
    name: &str,
    argument: &Value,
    found: &mut References,
    depth: usize,
) -> Result<()> {
    if matches!(name, "if" | "Fn::If") {
        return match scope.branch(argument)? {
            Some(chosen) => collect(scope, chosen, found, depth + 1),
            None => Ok(()),
        };
    }
    shape(scope, name, argument)?;
    let text = |value: &Value| match value {
        Value::String(name) => Some(name.to_string()),
        Value::Object(_) => scope.evaluate(value).ok()?.as_str().map(str::to_owned),
        _ => None,
    };
    match (name, argument) {
        ("get_resource", argument) => found.resources.extend(text(argument)),
        ("Ref", argument) => found.names.extend(text(argument)),
        ("get_attr" | "Fn::GetAtt", Value::Array(items)) => {
            if let Some(resource) = items.first().and_then(text) {
                if let Some(attribute) = items.get(1).and_then(text) {
                    found.attributes.insert((resource.clone(), attribute));
                }
                found.resources.insert(resource);
            }
        }
        _ => {}
    }
    collect(scope, argument, found, depth + 1)
}

/// The shape arguments have before anything is evaluated.
pub(super) fn shape(scope: &Scope<'_>, name: &str, argument: &Value) -> Result<()> {
    let version = scope.version;
    let list = argument.as_array().map(List::len);
    let item = |at: usize| &argument[at];
    let has = |keys: &[&str]| keys.iter().all(|key| argument.get(key).is_some());
    let is_call = |value: &Value| value.as_object().is_some_and(|map| scope.is_call(map));
    let (fits, usage) = match name {
        "get_attr" if version >= Version::Liberty => (
            list.is_some_and(|n| n > 0),
            "takes a list: [resource], or [resource, attribute, key, …]",
        ),
        "get_attr" => (
            list.is_some_and(|n| n > 1),
            "takes a list: [resource, attribute, key, …]",
        ),
        "list_join" if version >= Version::Liberty => {
            (list.is_some_and(|n| n > 1), "takes [delimiter, list, …]")
        }
        "list_join" | "Fn::Join" => (list == Some(2), "takes [delimiter, list]"),
        "str_replace" | "str_replace_strict" | "str_replace_vstrict" => (
            has(&["template", "params"]) && argument["params"].is_object(),
            "takes a map with `template` and `params`, a map",
        ),
        "Fn::Replace" => (list == Some(2) && item(0).is_object(), "takes [map, text]"),
        "Fn::Split" => (
            list == Some(2) && item(0).is_string(),
            "takes [delimiter, text]",
        ),
        "Fn::Select" | "Fn::GetAtt" => (list == Some(2), "takes a list of two"),
        "Fn::FindInMap" => (list == Some(3), "takes [mapping, key, key]"),
        "Fn::MemberListToMap" => (
            list == Some(3) && item(0).is_string() && item(1).is_string(),
            "takes [name of names, name of values, list]",
        ),
        "str_split" => (
            is_call(argument) || !(argument.is_object() || argument.is_string()),
            "takes [delimiter, text] or [delimiter, text, index]",
        ),
        "repeat" => {
            if let Value::Object(map) = argument {
                collections::permutations(version, map)?;
            }
            (
                has(&["template", "for_each"]) && argument["for_each"].is_object(),
                "takes a map with `template` and `for_each`, a map",
            )
        }
        "make_url" => return url::check(argument, is_call),
        "map_replace" => (list == Some(2), "takes [map, {keys: …, values: …}]"),
        "yaql" => (
            has(&["expression"])
                && (argument["expression"].is_string() || is_call(&argument["expression"])),
            "takes a map with `expression`, text, and `data`",
        ),
        "contains" | "filter" => (list == Some(2), "takes a list of two"),
        _ => (true, ""),
    };
    if fits { Ok(()) } else { Err(Error::new(usage)) }
}
