//! Test cases as JSON with one result each, to compare the engine with Heat's.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};

use super::budget::Budget;
use super::environment::Environment;
use super::files::Files;
use super::functions::{Known, Scope};
use super::hooks;
use super::parameters::Identity;
use super::render::{self, Input, Stack, Stop};
use super::version::Version;
use super::{Error, Result};
use crate::value::{List, Map, Text, Value, json};

/// The stack's id where a case gives none.
pub const STACK_ID: &str = "11111111-2222-3333-4444-555555555555";

/// The identity with which the reference cases were made.
#[must_use]
pub fn identity(name: &str) -> Identity {
    Identity {
        name: name.to_owned(),
        id: STACK_ID.to_owned(),
        project: "t".to_owned(),
        region: "ap-southeast-1".to_owned(),
    }
}

/// Renders a case: `{"case": …}` or its content.
///
/// # Errors
/// Where it stops, which as JSON is `{"error": …}`.
pub fn render(mut case: Value) -> std::result::Result<Stack, Stop> {
    let inner = case.get_mut("case").map(Value::take);
    let input = input(inner.unwrap_or(case)).map_err(|error| Stop {
        stage: "case",
        error,
    })?;
    let stack = render::stack(&input)?;
    stack.complete().map(|()| stack)
}

/// The result of a case as JSON.
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(crate) fn rendered(case: Value) -> Value {
    let made = match render(case) {
        Ok(stack) => serde_json::to_value(&stack),
        Err(stop) => serde_json::to_value(&stop),
    };
    made.unwrap().into()
}

/// What a case renders.
///
/// # Errors
/// When its environment is none.
pub fn input(mut case: Value) -> Result<Input> {
    let mut take = |key: &str| case.get_mut(key).map(Value::take).unwrap_or_default();
    let mut identity = identity(take("stack_name").as_str().unwrap_or("stack"));
    if let Value::String(id) = take("stack_id") {
        identity.id = id.into();
    }
    let mut environment = Environment::default();
    environment
        .merge(&take("environment"))
        .and_then(|()| hooks::check(&environment.registry))
        .map_err(|error| error.below("environment"))?;
    Ok(Input {
        template: take("template").into(),
        files: files(take("files")),
        environment,
        identity,
        resources: known(take("resources")),
        ..Input::default()
    })
}

/// Files by name; values that are not text are written as JSON.
fn files(value: Value) -> Files {
    let entries = owned(value).into_iter();
    entries
        .map(|(name, text)| match text {
            Value::String(text) => (name.into(), text.into()),
            other => (name.into(), other.to_string()),
        })
        .collect()
}

/// Reference ids and attributes by resource: `{name: {"refid", "attrs"}}`.
#[must_use]
pub fn known(value: Value) -> BTreeMap<String, Known> {
    let entries = owned(value).into_iter();
    entries
        .map(|(name, mut entry)| {
            let mut take = |key: &str| entry.get_mut(key).map(Value::take);
            let known = Known {
                refid: take("refid").unwrap_or_else(|| Value::from(name.clone())),
                attributes: owned(take("attrs").unwrap_or_default()),
                open: false,
            };
            (name.into(), known)
        })
        .collect()
}

/// The map, or an empty one.
fn owned(value: Value) -> Map {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The result of one function's case: `{"result": …}` or `{"error": …}`.
#[must_use]
pub fn function(case: &Value) -> Value {
    match evaluate(case) {
        Ok(value) => json!({"result": value}),
        Err(error) => json!({"error": {"path": error.path, "message": error.message}}),
    }
}

fn evaluate(case: &Value) -> Result<Value> {
    let text = |key: &str| case.get(key).and_then(Value::as_str);
    let version = Version::parse(
        text("version_key").unwrap_or("heat_template_version"),
        text("version").unwrap_or_default(),
    )?;
    let resources = lookups(case.get("lookups"));
    let mut scope = Scope {
        version,
        parameters: &map(case.get("parameters")),
        resources: &resources,
        existing: None,
        files: &files(case.get("files").cloned().unwrap_or_default()),
        mappings: &map(case.get("Mappings")),
        conditions: &map(case.get("conditions")),
        facade: &facade(case),
        budget: Budget::default(),
        held: RefCell::default(),
    };
    let snippet = case
        .get("snippet")
        .ok_or_else(|| Error::new("a case needs a `snippet`"))?;
    if text("kind") == Some("condition") {
        return scope.condition_value(snippet);
    }
    let found = scope.references(snippet)?;
    let mut existing: HashSet<&str> = resources.keys().map(String::as_str).collect();
    if text("stage") == Some("resolve") {
        // In these cases Heat has checked that the resources exist; a resource without calls was not
        // created yet.
        existing.extend(found.attributes.iter().map(|(name, _)| name.as_str()));
    } else {
        found.accepted()?;
    }
    scope.existing = Some(&existing);
    scope.evaluate(snippet)
}

/// The outer resource, about which cases contain nothing.
fn facade(case: &Value) -> Map {
    let mut facade = map(case.get("facade"));
    if !facade.contains_key("deletion_policy") {
        facade.insert("deletion_policy", Value::from("Delete"));
    }
    facade
}

/// Known resources from a list of `[method, resource, arguments, result]`.
fn lookups(value: Option<&Value>) -> BTreeMap<String, Known> {
    let mut resources: BTreeMap<String, Known> = BTreeMap::new();
    for lookup in value.and_then(Value::as_array).into_iter().flatten() {
        let part = |at: usize| lookup[at].clone();
        let name = part(1).as_str().unwrap_or_default().to_owned();
        let known = resources.entry(name).or_default();
        let (method, arguments, result) = (part(0), part(2), part(3));
        if result.get("error").is_some() {
            continue;
        }
        let arguments = arguments.as_array().cloned().unwrap_or_default();
        match (method.as_str(), &arguments[..]) {
            (Some("FnGetRefId"), _) => known.refid = result,
            (Some("FnGetAtts"), _) => {
                for (name, value) in &map(Some(&result)) {
                    learn(known, name, value);
                }
            }
            // A null result adds nothing to what is known already.
            (_, [Value::String(name), path @ ..])
                if !result.is_null() || known.attributes.get(name).is_none() =>
            {
                let value = path.iter().rev().fold(result, around);
                learn(known, name, &value);
            }
            _ => {}
        }
    }
    resources
}

/// Adds a known part of an attribute: several paths give one value.
fn learn(known: &mut Known, name: &Text, value: &Value) {
    let before = known.attributes.get(name).unwrap_or(&Value::Null);
    let all = overlay(before, value);
    known.attributes.insert(name.clone(), all);
}

fn overlay(known: &Value, more: &Value) -> Value {
    match (known, more) {
        (Value::Object(known), Value::Object(more)) => {
            let mut all = known.clone();
            for (key, value) in more {
                let before = known.get(key).unwrap_or(&Value::Null);
                all.insert(key.clone(), overlay(before, value));
            }
            Value::Object(all)
        }
        (Value::Array(known), Value::Array(more)) => {
            let at = |list: &List, at: usize| list.get(at).cloned().unwrap_or_default();
            let places = 0..known.len().max(more.len());
            Value::Array(
                places
                    .map(|n| overlay(&at(known, n), &at(more, n)))
                    .collect(),
            )
        }
        (known, Value::Null) => known.clone(),
        (_, more) => more.clone(),
    }
}

/// What a path leads to is known; what it passes is made up.
fn around(inner: Value, key: &Value) -> Value {
    match key {
        Value::Number(at) => {
            let at = at.as_u64().map_or(0, |at| at.min(1000));
            let mut list: List = (0..at).map(|_| Value::Null).collect();
            list.push(inner);
            Value::Array(list)
        }
        key => {
            let key = key.as_str().unwrap_or_default().to_owned();
            Value::Object(Map::from_iter([(key, inner)]))
        }
    }
}

fn map(value: Option<&Value>) -> Map {
    value
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_rendered() {
        let case = json!({"case": {"stack_name": "s", "template": {
            "heat_template_version": "newton",
            "resources": {"v": {"type": "OS::Heat::Value", "properties": {"value": {"get_param": "OS::stack_name"}}}},
            "outputs": {"o": {"value": {"get_attr": ["v", "value"]}}}},
            "resources": {"v": {"refid": "v-id", "attrs": {"value": "x"}}}}});
        let result = rendered(case);
        assert_eq!(result["resources"]["v"]["properties"]["value"], "s");
        assert_eq!(result["outputs"]["o"]["value"], "x");
        assert_eq!(result["order"], json!(["v"]));
    }

    #[test]
    fn an_attribute_that_heat_did_not_ask_for_is_not_known_yet() {
        let case = |stage: &str| {
            json!({"version_key": "heat_template_version", "version": "2014-10-16", "stage": stage,
                "snippet": {"list_join": [",", {"get_attr": ["group", "name"]}]}})
        };
        assert_eq!(function(&case("resolve")), json!({"result": ""}));
        assert!(function(&case("validate")).get("error").is_some());
    }

    #[test]
    fn several_paths_of_an_attribute_are_known_at_once() {
        let case = json!({"version_key": "heat_template_version", "version": "rocky",
            "lookups": [["FnGetAtt", "r", ["m", "a"], 1], ["FnGetAtt", "r", ["m", "b", 1], 2],
                ["FnGetAtt", "r", ["m", "b", 0], 3]],
            "snippet": [{"get_attr": ["r", "m", "a"]}, {"get_attr": ["r", "m", "b"]}]});
        assert_eq!(function(&case), json!({"result": [1, [3, 2]]}));
    }

    #[test]
    fn a_malformed_case_gives_an_error() {
        for case in [
            json!(null),
            json!([]),
            json!({"case": 3}),
            json!({"template": "x"}),
        ] {
            assert!(function(&case).get("error").is_some(), "{case}");
            assert!(rendered(case.clone()).get("error").is_some(), "{case}");
        }
    }
}
