//! What each resource type becomes in Kubernetes.
//!
//! A type is one row of a table ([`find`]) and one pure function. To add one: write a
//! function from a [`Request`] to what it [`Makes`] beside its family, give it a row with
//! the properties it takes, and a row to the tests. What is given and neither taken nor
//! named as of no effect is refused by name, before anything is made; so a property that a
//! function does not look at can never be lost without a word.
//!
//! | file | family |
//! |---|---|
//! | [`nova`] | `OS::Nova` |
//! | [`neutron`] | `OS::Neutron` |
//! | [`glance`] | `OS::Glance` |
//! | [`heat`] | `OS::Heat`: what needs no object |
//! | [`aws`] | `AWS::EC2` |
//! | [`object`] | `Kubernetes::Object` |
//! | [`check`] | what is refused, for all of them |
//! | [`manifests`] | all of it for one template, without a cluster |

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

/// Longest name of an object that is made: names of guests and labels take no more.
const LONGEST_NAME: usize = 63;

/// Finds an object of the stack's namespace by kind and name.
pub type FindObject<'a> = &'a dyn Fn(&str, &str) -> Option<Value>;

/// What a mapping works from.
#[derive(Clone, Copy)]
pub struct MappingInput<'a> {
    /// Name for an object whose name the template does not fix.
    pub name: &'a str,
    /// The stack's namespace.
    pub namespace: &'a str,
    /// Properties after the type's schema.
    pub properties: &'a Map,
    /// The resource's metadata, or null.
    pub metadata: &'a Value,
    /// The stack is suspended.
    pub suspended: bool,
    /// Texts of software configurations by reference id.
    pub configs: &'a BTreeMap<String, String>,
    /// Objects that exist.
    pub find: FindObject<'a>,
    /// Unguessable, and the same each time for the same resource.
    pub seed: &'a [u8],
}

/// What a resource becomes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MappedObjects {
    /// The objects in order of creation; the last one is the resource, the others serve it.
    pub objects: Vec<Value>,
    /// Things that only one object can have at a time, such as an address: what takes the
    /// place of another with the same claim comes after it instead of before.
    pub claims: BTreeSet<String>,
}

/// What a resource without an object is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MappedValue {
    /// Its reference id.
    pub refid: Value,
    /// Its attributes.
    pub attributes: Map,
    /// How long it takes, in milliseconds.
    pub delay_ms: u64,
    /// It fails, and why.
    pub failure: Option<String>,
    /// The text of a software configuration.
    pub config: Option<String>,
}

/// How a type is made.
#[derive(Clone, Copy)]
pub enum Mapping {
    /// By objects.
    Objects {
        /// Kind of the object that the resource is; empty when the template says.
        kind: &'static str,
        /// The mapping.
        map: fn(&MappingInput<'_>) -> Result<MappedObjects>,
        /// Attributes of an object that exists.
        attributes: fn(&Value, FindObject<'_>) -> Map,
    },
    /// By nothing but its properties.
    Values(fn(&MappingInput<'_>) -> Result<MappedValue>),
}

/// A resource type that can be made.
#[derive(Clone, Copy)]
pub struct SupportedType {
    /// Its name.
    pub name: &'static str,
    /// How it is made.
    pub mapping: Mapping,
    /// Properties that the mapping takes.
    pub properties: &'static [&'static str],
    /// Properties that are read and have no effect, as a template's author would expect.
    pub ignored: &'static [&'static str],
    /// Properties whose change Heat makes in place and that need a replacement here.
    pub replaced_on_change: &'static [&'static str],
    /// It is made with the rights of the stack's service account.
    pub by_account: bool,
}

/// Every type that can be made, apart from those that hold a stack.
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

/// The type called `name`, if it can be made; old names of families are followed.
#[must_use]
pub fn find(name: &str) -> Option<&'static SupportedType> {
    let current = name
        .strip_prefix("OS::Quantum")
        .map(|rest| format!("OS::Neutron{rest}"));
    let name = current.as_deref().unwrap_or(name);
    all().find(|supported| supported.name == name)
}

/// How a type takes a change here: as in Heat, but for what the kind it became cannot
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

/// Stands among a resource's properties for kind and name of its object: where those come
/// from the template, another name is another object.
pub const IDENTITY: &str = "@object";

/// Stands among a resource's properties for its metadata, where [`reads_metadata`].
pub const METADATA: &str = "@metadata";

/// Whether the object of a resource follows from its metadata, too.
#[must_use]
pub fn reads_metadata(kind: &str) -> bool {
    kind == "OS::Nova::ServerGroup"
}

/// A name for the object of the resource at `path`: the same each time, and another one for
/// each incarnation. `stack` is the stack's name and `uid` its uid.
#[must_use]
pub fn object_name(stack: &str, uid: &str, path: &str, incarnation: u32) -> String {
    let hash = Sha256::digest(format!("{uid}/{path}#{incarnation}"));
    let hash = hex::encode(&hash[..5]);
    let readable = plain(&format!("{stack}-{path}"));
    let cut: String = readable
        .chars()
        .take(LONGEST_NAME - 1 - hash.len())
        .collect();
    let cut = cut.trim_matches('-');
    // A name that begins with a digit is none for a guest.
    if cut.starts_with(|c: char| c.is_ascii_lowercase()) {
        format!("{cut}-{hash}")
    } else {
        format!("s-{hash}")
    }
}

/// The name that the template gives, as Kubernetes takes it: lower case, with hyphens.
#[must_use]
pub fn plain(name: &str) -> String {
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

    /// A property as text; absent when it is empty.
    fn text(&self, name: &str) -> Option<String> {
        self.get(name)
            .and_then(text)
            .filter(|text| !text.is_empty())
    }

    /// A property that cannot be done without.
    fn need(&self, name: &str) -> Result<String> {
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

    /// An object of ours: its spec, and the name that the template gives for people.
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

/// The name that people know an object by.
fn display_name(object: &Value) -> Value {
    let metadata = &object["metadata"];
    match &metadata["annotations"][DISPLAY_NAME_ANNOTATION] {
        Value::Null => metadata["name"].clone(),
        name => name.clone(),
    }
}

/// What is known of a resource whose object exists. Every attribute of the type is there:
/// one that nothing is known of is null.
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
        // `Kubernetes::Object` has the attributes that its object has, now or later.
        open: kind == object::NAME,
    }
}

/// Every attribute of a type, without a value.
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
