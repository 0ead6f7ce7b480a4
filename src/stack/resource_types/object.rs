//! `Kubernetes::Object`: any manifest, with the rights of the stack's service account.

use std::collections::BTreeSet;

use super::{FindObject, MappedObjects, Mapping, MappingInput, SupportedType};
use crate::value::{Map, Value};
use crate::{Error, Result};

/// The type's name.
pub const NAME: &str = "Kubernetes::Object";

pub(super) const TYPES: &[SupportedType] = &[SupportedType {
    name: NAME,
    mapping: Mapping::Objects {
        kind: "",
        map: manifest,
        attributes,
    },
    properties: &["manifest", "wait_for"],
    ignored: &[],
    replaced_on_change: &[],
    by_account: true,
}];

/// The manifest without changes, except for a generated name if it has none.
fn manifest(request: &MappingInput<'_>) -> Result<MappedObjects> {
    let mut object = request.get("manifest").cloned().unwrap_or_default();
    let word = |object: &Value, key: &str| {
        let word = object[key].as_str().unwrap_or_default().to_owned();
        if word.is_empty() {
            return Err(Error::at(format!("manifest.{key}"), "is missing"));
        }
        Ok(word)
    };
    let (version, kind) = (word(&object, "apiVersion")?, word(&object, "kind")?);
    for key in ["status", "managedFields"] {
        if let Some(map) = object.as_object_mut() {
            map.shift_remove(key);
        }
    }
    if !object["metadata"].is_object() {
        object["metadata"] = Value::Object(Map::new());
    }
    let metadata = &mut object["metadata"];
    if metadata["name"].as_str().unwrap_or_default().is_empty() {
        metadata["name"] = Value::from(request.name);
    }
    let name = metadata["name"].as_str().unwrap_or_default().to_owned();
    let namespace = metadata["namespace"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    Ok(MappedObjects {
        claims: BTreeSet::from([format!("{version}/{kind}/{namespace}/{name}")]),
        objects: vec![object],
    })
}

/// What the object is made of; not the data of a Secret, which an output would show to
/// everybody who may read the Stack.
fn attributes(object: &Value, _: FindObject<'_>) -> Map {
    let mut attributes = object.as_object().cloned().unwrap_or_default();
    if object["kind"] == "Secret" && object["apiVersion"] == "v1" {
        attributes.shift_remove("data");
        attributes.shift_remove("stringData");
    }
    attributes.insert("object", Value::Object(attributes.clone()));
    attributes
}
