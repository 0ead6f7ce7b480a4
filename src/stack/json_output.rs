//! A rendered stack as JSON: what `pileus stack render` prints.

use std::collections::BTreeSet;

use serde::ser::{Serialize, Serializer};

use super::render::{Rendered, Stack, Stop, is_template_name};
use super::{Error, Result};
use crate::value::{Map, Value, json};

/// An error as JSON.
#[must_use]
pub fn error_json(stage: &str, error: &Error) -> Value {
    json!({"stage": stage, "path": error.path, "message": error.message})
}

impl Stop {
    /// The error as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({"error": error_json(self.stage, &self.error)})
    }
}

impl Serialize for Stop {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

/// Parameters, resources, outputs, order.
impl Serialize for Stack {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let unknown = |resource: &&Rendered| {
            resource.schema.is_none() && !is_template_name(&resource.resource_type)
        };
        let unknown = self.resources.values().find(unknown).map(|resource| {
            let error = format!(
                "the resource type `{}` is not known",
                resource.declared_type
            );
            Error::new(error)
        });
        let wrong = unknown.as_ref().or(self.order.as_ref().err());
        let shown = ShownStack {
            parameters: &self.parameters.values,
            resources: Entries(|| {
                (self.resources.iter()).map(|(name, resource)| (name, resource.shown(name, self)))
            }),
            outputs: Entries(|| {
                self.outputs
                    .iter()
                    .map(|(name, (d, v))| (name, output(d, v)))
            }),
            order: self.order.as_ref().ok(),
            order_error: wrong.map(|error| error_json("dependencies", error)),
        };
        shown.serialize(serializer)
    }
}

#[derive(serde::Serialize)]
struct ShownStack<'a, R: Serialize, O: Serialize> {
    parameters: &'a Map,
    resources: R,
    outputs: O,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<&'a Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order_error: Option<Value>,
}

#[derive(serde::Serialize)]
struct ShownResource<'a> {
    r#type: &'a str,
    requires: Vec<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_for: Option<&'a BTreeSet<String>>,
    deletion_policy: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    condition: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    external_id: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    properties: Option<&'a Map>,
    #[serde(skip_serializing_if = "Option::is_none")]
    properties_error: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    typed_properties: Option<&'a Map>,
    #[serde(skip_serializing_if = "Option::is_none")]
    typed_properties_error: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_error: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    update_policy: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    update_policy_error: Option<Value>,
}

#[derive(serde::Serialize)]
struct ShownOutput<'a> {
    description: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
}

impl Rendered {
    fn shown<'a>(&'a self, name: &str, stack: &'a Stack) -> ShownResource<'a> {
        let implicit = stack.implicit.get(name);
        let said = |name: &&String| implicit.is_none_or(|implicit| !implicit.contains(*name));
        let given = |value: &&Value| !value.is_null();
        let properties = self.properties.as_ref().map(Option::as_ref);
        ShownResource {
            r#type: &self.declared_type,
            requires: stack.graph.requires[name].iter().filter(said).collect(),
            waits_for: implicit,
            deletion_policy: self.deletion_policy,
            condition: Some(&self.condition).filter(given),
            external_id: Some(&self.external_id).filter(given),
            properties: properties.ok().flatten().filter(|map| !map.is_empty()),
            properties_error: wrong("properties", &self.properties),
            typed_properties: self.typed.as_ref().ok(),
            typed_properties_error: wrong("typed_properties", &self.typed),
            metadata: self.metadata.as_ref().ok().filter(given),
            metadata_error: wrong("metadata", &self.metadata),
            update_policy: self.update_policy.as_ref().ok().filter(given),
            update_policy_error: wrong("update_policy", &self.update_policy),
        }
    }
}

fn output<'a>(description: &'a str, value: &'a Result<Value>) -> ShownOutput<'a> {
    ShownOutput {
        description,
        value: value.as_ref().ok(),
        error: wrong("output", value),
    }
}

fn wrong<T>(stage: &str, result: &Result<T>) -> Option<Value> {
    let error = result.as_ref().err();
    error.map(|error| error_json(stage, error))
}

/// A map of what an iterator gives.
struct Entries<F>(F);

impl<K: Serialize, V: Serialize, I: Iterator<Item = (K, V)>, F: Fn() -> I> Serialize
    for Entries<F>
{
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0())
    }
}
