//! Refuses what is not supported, by name, before anything is created.

use super::{SupportedType, find};
use crate::expand::{Tree, has_nested_stack};
use crate::render::Rendered;
use crate::value::{Map, Value};
use crate::{Error, Result, registry};

/// Supported types with a nested stack; templates used as types are supported, too.
const NESTED_STACK_TYPES: [&str; 4] = [
    "OS::Heat::Stack",
    "OS::Heat::ResourceGroup",
    "OS::Heat::ResourceChain",
    "AWS::CloudFormation::Stack",
];

/// Checks that all resources of a tree are supported, and that there is a service account if one is
/// needed.
///
/// # Errors
/// For the first resource that is not supported, with its place.
pub fn tree(tree: &Tree, has_account: bool) -> Result<()> {
    for (name, resource) in &tree.stack.resources {
        let place = |error: Error| error.below(&format!("resources.{name}"));
        one(resource, has_account).map_err(place)?;
        if let Some(inner) = tree.nested.get(name) {
            self::tree(inner, has_account).map_err(place)?;
        }
    }
    Ok(())
}

/// Notes about properties of a tree that have no effect, for users.
#[must_use]
pub fn notes(tree: &Tree) -> Vec<String> {
    let mut notes = Vec::new();
    for (name, resource) in &tree.stack.resources {
        let at = format!("resources.{name}");
        if let (Some(supported), Ok(Some(given))) =
            (find(&resource.resource_type), &resource.properties)
        {
            let ignored = given
                .iter()
                .filter(|(key, _)| supported.ignored.contains(&key.as_str()));
            let notes_of = ignored.filter_map(|(key, value)| note(key, value));
            notes.extend(notes_of.map(|note| format!("{at}.properties.{note}")));
        }
        if let Some(inner) = tree.nested.get(name) {
            let inner = self::notes(inner).into_iter();
            notes.extend(inner.map(|note| format!("{at}.{note}")));
        }
    }
    notes
}

/// The note about an ignored property.
fn note(key: &str, value: &Value) -> Option<String> {
    // Of Heat's policies only this one is supported, so it is not ignored.
    match key {
        "flavor_update_policy" | "image_update_policy" if value == "REPLACE" => None,
        "flavor_update_policy" | "image_update_policy" => Some(format!(
            "{key} has no effect here: a change replaces the server"
        )),
        _ => Some(format!("{key} has no effect here")),
    }
}

fn one(resource: &Rendered, has_account: bool) -> Result<()> {
    if resource.deletion_policy == "Snapshot" {
        return Err(Error::at(
            "deletion_policy",
            "Snapshot is for volumes, which are not supported yet; use Delete or Retain",
        ));
    }
    if has_nested_stack(resource) {
        let name = resource.resource_type.as_str();
        if NESTED_STACK_TYPES.contains(&name) || crate::render::is_template_name(name) {
            return Ok(());
        }
        return Err(not_yet(name));
    }
    let supported =
        find(&resource.resource_type).ok_or_else(|| not_yet(&resource.resource_type))?;
    if !resource.external_id.is_null() {
        return Ok(());
    }
    if supported.by_account && !has_account {
        return Err(Error::at(
            "type",
            format!(
                "`{}` is made with the rights of a service account; name one in \
                 spec.serviceAccountName",
                supported.name
            ),
        ));
    }
    match &resource.typed {
        Ok(properties) => refuse(supported, properties).map_err(|error| error.below("properties")),
        // Values that are not known yet are checked when they are.
        Err(_) => Ok(()),
    }
}

fn not_yet(name: &str) -> Error {
    Error::at(
        "type",
        format!(
            "resources of the type `{name}` are not supported yet; `pileus stack validate` and \
             `render` know it"
        ),
    )
}

/// Refuses a property that the type's mapping does not use, if it is not empty or the default.
///
/// # Errors
/// For the first such property.
pub fn refuse(supported: &SupportedType, properties: &Map) -> Result<()> {
    let schema = registry::find(supported.name);
    if schema.is_some_and(|schema| registry::takes_anything(supported.name, schema)) {
        return Ok(());
    }
    for (name, value) in properties {
        let known = |list: &[&str]| list.contains(&name.as_str());
        if known(supported.properties) || known(supported.ignored) || is_empty(value) {
            continue;
        }
        let default = schema
            .and_then(|schema| schema.properties.get(name.as_str()))
            .and_then(|property| property.default.as_ref());
        if default == Some(value) {
            continue;
        }
        return Err(Error::at(
            name,
            format!(
                "`{}` cannot be made with this property yet; leave it out",
                supported.name
            ),
        ));
    }
    Ok(())
}

/// Whether a value is null, an empty text or list, or a map with only such values.
#[must_use]
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supported_policy_gives_no_note() {
        assert_eq!(note("flavor_update_policy", &"REPLACE".into()), None);
        let said = note("image_update_policy", &"REBUILD".into());
        assert!(said.is_some_and(|said| said.ends_with("replaces the server")));
        assert!(note("tags", &"REPLACE".into()).is_some());
    }
}
