//! References in a value, and checks of its functions before anything is evaluated.

use std::collections::BTreeSet;

use super::{Scope, collections, function, url};
use crate::value::{List, Map, Text, Value};
use crate::version::Version;
use crate::{Error, Result};

/// The references in a value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// Resources it needs: `get_resource`, `get_attr`, `Fn::GetAtt`.
    pub resources: BTreeSet<String>,
    /// `Ref`: a resource, a parameter, or a mistake.
    pub names: BTreeSet<String>,
    /// Attributes it reads: resource and attribute.
    pub attributes: BTreeSet<(String, String)>,
    /// The error of the first call whose argument is not the name of a resource.
    pub nameless: Option<Error>,
    /// The first error that prevents a stack, but not the evaluation.
    pub refused: Option<Error>,
}

impl References {
    /// Turns errors that only prevent a stack into errors.
    ///
    /// # Errors
    /// For the first such error.
    pub fn accepted(self) -> Result<()> {
        self.refused.map_or(Ok(()), Err)
    }
}

/// Collects the references of `value`; of an `if` only those of the branch that it takes.
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
            if let Some((name, argument)) = function(scope.version, map) {
                return call(scope, name, argument, found, depth)
                    .map_err(|error| error.below(name));
            }
            if found.refused.is_none() {
                found.refused = removed(scope, map);
            }
            for (key, item) in map {
                collect(scope, item, found, depth + 1).map_err(|error| error.below(key))?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// The error of a call of a function that this version has removed.
fn removed(scope: &Scope<'_>, map: &Map) -> Option<Error> {
    let name = map.keys().next().filter(|_| map.len() == 1)?;
    (scope.version.has_removed(name))
        .then(|| Error::at(name, "not a function in this template version any more"))
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
    if found.refused.is_none() {
        let refused = usage(scope, name, argument).err();
        found.refused = refused.map(|error| error.below(name));
    }
    let text = |value: &Value| match value {
        Value::String(name) => Some(name.to_string()),
        Value::Object(_) => scope.evaluate(value).ok()?.as_str().map(str::to_owned),
        _ => None,
    };
    let resource = match (name, argument) {
        ("get_resource", argument) => Some(text(argument)),
        ("get_attr" | "Fn::GetAtt", Value::Array(items)) => {
            let resource = items.first().and_then(text);
            let attribute = items.get(1).and_then(text);
            found.attributes.extend(resource.clone().zip(attribute));
            Some(resource)
        }
        ("Ref", argument) => {
            found.names.extend(text(argument));
            None
        }
        _ => None,
    };
    match resource {
        Some(Some(resource)) => {
            found.resources.insert(resource);
        }
        Some(None) if found.nameless.is_none() => {
            found.nameless = Some(Error::at(name, "names no resource"));
        }
        _ => {}
    }
    collect(scope, argument, found, depth + 1)
}

/// Checks the shape of arguments before anything is evaluated.
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
        "Ref" => (
            !argument.is_array() && !argument.is_object(),
            "takes a name",
        ),
        "resource_facade" => (
            matches!(
                argument.as_str(),
                Some("metadata" | "deletion_policy" | "update_policy")
            ),
            "takes metadata, deletion_policy or update_policy",
        ),
        "Fn::ResourceFacade" => (
            matches!(
                argument.as_str(),
                Some("Metadata" | "DeletionPolicy" | "UpdatePolicy")
            ),
            "takes Metadata, DeletionPolicy or UpdatePolicy",
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
        "Fn::Split" => (list == Some(2), "takes [delimiter, text]"),
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
                has(&["template", "for_each"]),
                "takes a map with `template` and `for_each`, a map",
            )
        }
        "yaql" => (
            argument.as_object().is_some_and(|map| {
                let known = |key: &Text| key == "expression" || key == "data";
                map.contains_key("expression") && map.keys().all(known)
            }),
            YAQL,
        ),
        "contains" | "filter" => (list == Some(2), "takes a list of two"),
        _ => (true, ""),
    };
    if fits { Ok(()) } else { Err(Error::new(usage)) }
}

const YAQL: &str = "takes a map with `expression`, text, and `data`";

/// Checks of Heat that prevent a stack, but not the evaluation.
fn usage(scope: &Scope<'_>, name: &str, argument: &Value) -> Result<()> {
    let is_call = |value: &Value| value.as_object().is_some_and(|map| scope.is_call(map));
    let (fits, usage) = match name {
        "repeat" => (
            argument["for_each"].is_object(),
            "takes a map with `template` and `for_each`, a map",
        ),
        "yaql" => {
            let expression = &argument["expression"];
            (expression.is_string() || is_call(expression), YAQL)
        }
        "make_url" => return url::check(argument, is_call),
        _ => return Ok(()),
    };
    if fits { Ok(()) } else { Err(Error::new(usage)) }
}
