//! The mapping from resource types of Heat to objects of Kubernetes.
//!
//! A supported type is one row of a table ([`SupportedType`]) and one pure function. To add one: write
//! a function from a [`MappingInput`] to [`MappedObjects`] in the file of its family, add a row with
//! the properties that the function uses, and a row to the tests. A property that is neither used nor
//! listed as ignored is refused by name before anything is created, so a property is never ignored
//! silently.
//!
//! | file | family |
//! |---|---|
//! | [`nova`] | `OS::Nova` |
//! | [`neutron`] | `OS::Neutron` |
//! | [`glance`] | `OS::Glance` |
//! | [`heat`] | `OS::Heat`: resources without objects |
//! | [`aws`] | `AWS::EC2` |
//! | [`object`] | `Kubernetes::Object` |
//! | [`check`] | refuses what is not supported |
//! | [`manifests`] | the manifests of a whole template, without a cluster |

pub mod aws;
pub mod check;
pub mod glance;
pub mod heat;
pub mod manifests;
pub mod neutron;
pub mod nova;
pub mod object;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::value::{List, Map, Value, json};

pub use check::is_empty;

use super::functions::python_json;
use super::plan::Change;
use super::{Error, Result, registry};
use pileus_api::names::DISPLAY_NAME_ANNOTATION;
use pileus_api::{GROUP, ObjectName, VERSION};

/// Longest name of an object: hostnames and labels allow no more.
const MAX_NAME_LENGTH: usize = 63;

/// Finds an object of the stack's namespace by kind and name.
pub type FindObject<'a> = &'a dyn Fn(&str, &str) -> Option<Value>;

/// The input of a mapping.
#[derive(Clone, Copy)]
pub struct MappingInput<'a> {
    /// Name for an object to which the template gives no name.
    pub name: &'a str,
    /// The stack's namespace.
    pub namespace: &'a str,
    /// Properties converted by the type's schema.
    pub properties: &'a Map,
    /// The resource's metadata, or null.
    pub metadata: &'a Value,
    /// The stack is suspended.
    pub suspended: bool,
    /// Texts of software configurations by reference id.
    pub configs: &'a BTreeMap<String, String>,
    /// Finds existing objects.
    pub find: FindObject<'a>,
    /// Random, but always the same for the same resource.
    pub seed: &'a [u8],
}

/// The objects of a resource.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MappedObjects {
    /// The objects in order of creation: auxiliary ones first, the last one is the resource.
    pub objects: Vec<Value>,
    /// Things that only one object can have at a time, such as an address. A replacement with the same
    /// claim is created after the old object was deleted, not before.
    pub claims: BTreeSet<String>,
}

/// The result of a resource without objects.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MappedValue {
    /// Its reference id.
    pub refid: Value,
    /// Its attributes.
    pub attributes: Map,
    /// How long it takes until it is complete, in milliseconds.
    pub delay_ms: u64,
    /// Why it fails, if it does.
    pub failure: Option<String>,
    /// The text of a software configuration, if it is one.
    pub config: Option<String>,
}

/// What a resource type is mapped to.
#[derive(Clone, Copy)]
pub enum Mapping {
    /// Objects.
    Objects {
        /// Kind of the main object; empty if the template says it.
        kind: &'static str,
        /// The mapping.
        map: fn(&MappingInput<'_>) -> Result<MappedObjects>,
        /// Attributes of an existing object.
        attributes: fn(&Value, FindObject<'_>) -> Map,
    },
    /// No objects: only a value that is computed from the properties.
    Values(fn(&MappingInput<'_>) -> Result<MappedValue>),
}

/// A supported resource type.
#[derive(Clone, Copy)]
pub struct SupportedType {
    /// Its name.
    pub name: &'static str,
    /// What it is mapped to.
    pub mapping: Mapping,
    /// Properties that the mapping uses.
    pub properties: &'static [&'static str],
    /// Properties that are accepted and have no effect, as users expect of them.
    pub ignored: &'static [&'static str],
    /// Properties that Heat updates in place, and whose change needs a replacement here.
    pub replaced_on_change: &'static [&'static str],
    /// Its objects are made with the rights of the stack's service account.
    pub by_account: bool,
}

/// All supported types, except nested stacks and groups.
pub fn all() -> impl Iterator<Item = &'static SupportedType> {
    [
        nova::TYPES,
        neutron::TYPES,
        glance::TYPES,
        heat::TYPES,
        aws::TYPES,
        object::TYPES,
    ]
    .into_iter()
    .flatten()
}

/// The supported type with this name, or with its older name.
#[must_use]
pub fn find(name: &str) -> Option<&'static SupportedType> {
    let current = name
        .strip_prefix("OS::Quantum")
        .map(|rest| format!("OS::Neutron{rest}"));
    let name = current.as_deref().unwrap_or(name);
    all().find(|supported| supported.name == name)
}

/// How a type handles a change of a property: as in Heat, except for fields that its kind cannot
/// change.
#[must_use]
pub fn change(kind: &str, property: &str) -> Change {
    match property {
        IDENTITY => return Change::Replace,
        METADATA => return Change::InPlace,
        _ => {}
    }
    match super::plan::change(kind, property) {
        Change::InPlace if find(kind).is_some_and(|k| k.replaced_on_change.contains(&property)) => {
            Change::Replace
        }
        change => change,
    }
}

/// A pseudo property for kind and name of the object, if the template gives them: another name is
/// another object.
pub const IDENTITY: &str = "@object";

/// A pseudo property for the resource's metadata, for types with [`reads_metadata`].
pub const METADATA: &str = "@metadata";

/// Whether the object of a resource depends on its metadata, too.
#[must_use]
pub fn reads_metadata(kind: &str) -> bool {
    kind == "OS::Nova::ServerGroup"
}

/// The generated name for an object of the resource at `path`: always the same, and another one for
/// each incarnation. `stack` is the stack's name and `uid` its uid.
#[must_use]
pub fn object_name(stack: &str, uid: &str, path: &str, incarnation: u32) -> String {
    let hash = Sha256::digest(format!("{uid}/{path}#{incarnation}"));
    let hash = hex::encode(&hash[..5]);
    let readable = kubernetes_name(&format!("{stack}-{path}"));
    let cut: String = readable
        .chars()
        .take(MAX_NAME_LENGTH - 1 - hash.len())
        .collect();
    let cut = cut.trim_matches('-');
    // A hostname must not begin with a digit.
    if cut.starts_with(|c: char| c.is_ascii_lowercase()) {
        format!("{cut}-{hash}")
    } else {
        format!("s-{hash}")
    }
}

/// A name of the template as a name for Kubernetes: lower case, with hyphens.
#[must_use]
pub fn kubernetes_name(name: &str) -> String {
    let plain: String = name
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    plain.trim_matches('-').to_owned()
}

impl MappingInput<'_> {
    fn get(&self, name: &str) -> Option<&Value> {
        self.properties.get(name).filter(|value| !value.is_null())
    }

    /// A property as text; `None` if it is empty.
    fn text(&self, name: &str) -> Option<String> {
        self.get(name)
            .and_then(text)
            .filter(|text| !text.is_empty())
    }

    /// A property that must not be empty.
    fn required(&self, name: &str) -> Result<String> {
        self.text(name)
            .ok_or_else(|| Error::at(name, "is empty; give the name of one that exists"))
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.get(name).and_then(Value::as_bool)
    }

    fn integer(&self, name: &str) -> i64 {
        self.get(name).and_then(Value::as_i64).unwrap_or(0)
    }

    fn list(&self, name: &str) -> Option<&List> {
        self.get(name).and_then(Value::as_array)
    }

    fn texts(&self, name: &str) -> Vec<String> {
        self.list(name)
            .into_iter()
            .flatten()
            .filter_map(text)
            .collect()
    }

    /// An object of a Pileus kind with this spec, and the template's name as an annotation.
    fn object(&self, kind: &str, name: &str, spec: &impl Serialize) -> Result<Value> {
        let spec = serde_json::to_value(spec)
            .map_err(|error| Error::new(format!("cannot be written: {error}")))?;
        let mut metadata = json!({"name": name});
        if let Some(given) = self.text("name") {
            metadata["annotations"] = json!({DISPLAY_NAME_ANNOTATION: given});
        }
        Ok(json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": kind,
            "metadata": metadata,
            "spec": spec,
        }))
    }
}

/// A plain value as text.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// A reference to an object: its name, or `namespace/name` for one that is shared.
fn reference(text: &str) -> ObjectName {
    match text.split_once('/') {
        Some((namespace, name)) => ObjectName {
            name: name.to_owned(),
            namespace: Some(namespace.to_owned()),
        },
        None => ObjectName {
            name: text.to_owned(),
            namespace: None,
        },
    }
}

/// Values as texts, as free-form properties have them; what is no plain value as JSON, as
/// Heat's `meta_serialize` writes it.
fn as_texts(map: Option<&Value>) -> BTreeMap<String, String> {
    let entries = map.and_then(Value::as_object).into_iter().flatten();
    entries
        .map(|(key, value)| {
            (
                key.to_string(),
                text(value).unwrap_or_else(|| python_json(value, false)),
            )
        })
        .collect()
}

/// The name that the template has given an object.
fn display_name(object: &Value) -> Value {
    let metadata = &object["metadata"];
    match &metadata["annotations"][DISPLAY_NAME_ANNOTATION] {
        Value::Null => metadata["name"].clone(),
        name => name.clone(),
    }
}

/// Reference id and attributes of a resource whose object exists. It has all attributes of the type:
/// unknown ones are null.
#[must_use]
pub fn known(kind: &str, object: &Value, find_object: FindObject<'_>) -> super::functions::Known {
    let mut attributes = attribute_names(kind);
    if let Some(Mapping::Objects { attributes: of, .. }) =
        find(kind).map(|supported| supported.mapping)
    {
        attributes.extend(of(object, find_object));
    }
    super::functions::Known {
        refid: object["metadata"]["name"].clone(),
        attributes,
        // `Kubernetes::Object` has the attributes of its object, which may get more.
        open: kind == object::NAME,
    }
}

/// All attributes of a type, with null values.
#[must_use]
pub fn attribute_names(kind: &str) -> Map {
    let names = registry::find(kind).map(|found| found.attributes.keys().cloned());
    let mut names: Map = names
        .into_iter()
        .flatten()
        .map(|name| (name, Value::Null))
        .collect();
    names.insert("show", Value::Null);
    names
}

#[cfg(test)]
mod arbitrary;
#[cfg(test)]
mod tests;
