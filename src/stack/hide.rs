//! Which values are made of hidden parameters: those must never be shown.
//!
//! Two looks, because either alone misses something. The words of a template say what an
//! output is made from, also when a digest or a part of a hidden value is all that is left
//! of it; but not through the attributes of real objects. The values themselves are looked
//! for in every text that is shown, which finds them wherever they came from.

use std::collections::BTreeSet;

use serde_json::Value;

use super::render::Stack;
use super::tree::MASK;

/// Texts shorter than this are only masked when they are the whole text: as part of others
/// they are found everywhere.
const SHORTEST_PART: usize = 4;

/// Names of resources whose properties are made of hidden parameters; all that use
/// parameters when `outer` says that those come from hidden ones.
#[must_use]
pub fn tainted(stack: &Stack, outer: bool) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if stack.parameters.hidden.is_empty() && !outer {
        return found;
    }
    for name in stack.order.iter().flatten() {
        let Some(resource) = stack.template.resources.get(name) else {
            continue;
        };
        let look = Look {
            stack,
            outer,
            tainted: &found,
        };
        if look.is_hidden(&resource.properties) || look.is_hidden(&resource.metadata) {
            found.insert(name.clone());
        }
    }
    found
}

/// Names of outputs that are made of hidden parameters, or of resources that are.
#[must_use]
pub fn outputs(stack: &Stack, tainted: &BTreeSet<String>, outer: bool) -> BTreeSet<String> {
    let look = Look {
        stack,
        outer,
        tainted,
    };
    let outputs = stack.template.outputs.iter();
    outputs
        .filter(|(_, output)| look.is_hidden(&output.value))
        .map(|(name, _)| name.clone())
        .collect()
}

struct Look<'a> {
    stack: &'a Stack,
    outer: bool,
    tainted: &'a BTreeSet<String>,
}

impl Look<'_> {
    fn is_hidden(&self, value: &Value) -> bool {
        match value {
            Value::Array(items) => items.iter().any(|item| self.is_hidden(item)),
            Value::Object(map) => map.iter().any(|(key, item)| {
                let first = named(item);
                let is_named = match key.as_str() {
                    "get_param" | "Ref" => first.is_some_and(|name| self.is_parameter(name)),
                    "get_attr" | "Fn::GetAtt" => first.is_some_and(|name| self.shows(name)),
                    _ => false,
                };
                is_named || self.is_hidden(item)
            }),
            _ => false,
        }
    }

    fn is_parameter(&self, name: &str) -> bool {
        self.stack.parameters.hidden.contains(name)
            || (self.outer && self.stack.template.parameters.contains_key(name))
    }

    /// Whether a resource's attributes give back what it was made of. Those of real objects
    /// are what the cloud says: addresses, states.
    fn shows(&self, name: &str) -> bool {
        const REAL: [&str; 5] = [
            "OS::Nova::",
            "OS::Neutron::",
            "OS::Glance::",
            "OS::Cinder::",
            "AWS::EC2::",
        ];
        self.tainted.contains(name)
            && self.stack.resources.get(name).is_some_and(|resource| {
                !REAL
                    .iter()
                    .any(|family| resource.resolved.starts_with(family))
            })
    }
}

/// The name that a function's argument begins with.
fn named(argument: &Value) -> Option<&str> {
    match argument {
        Value::String(text) => text.split('.').next(),
        Value::Array(items) => items.first().and_then(Value::as_str),
        _ => None,
    }
}

/// Adds the texts of the stack's hidden values to `found`.
pub fn secrets(stack: &Stack, found: &mut BTreeSet<String>) {
    for name in &stack.parameters.hidden {
        if let Some(value) = stack.parameters.values.get(name) {
            texts(value, found);
        }
    }
}

fn texts(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) if !text.is_empty() => {
            found.insert(text.clone());
        }
        Value::Number(number) => {
            found.insert(number.to_string());
        }
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(map) => map.values().for_each(|item| texts(item, found)),
        _ => {}
    }
}

/// Masks every text in `value` that holds a secret.
pub fn mask(value: &mut Value, secrets: &BTreeSet<String>) {
    match value {
        Value::String(text) if holds(text, secrets) => MASK.clone_into(text),
        Value::Number(number) if secrets.contains(&number.to_string()) => {
            *value = Value::from(MASK);
        }
        Value::Array(items) => items.iter_mut().for_each(|item| mask(item, secrets)),
        Value::Object(map) => {
            if map.keys().any(|key| holds(key, secrets)) {
                *value = Value::from(MASK);
                return;
            }
            map.values_mut().for_each(|item| mask(item, secrets));
        }
        _ => {}
    }
}

fn holds(text: &str, secrets: &BTreeSet<String>) -> bool {
    secrets
        .iter()
        .any(|secret| text == secret || (secret.len() >= SHORTEST_PART && text.contains(secret)))
}

/// The text with every secret in it masked.
#[must_use]
pub fn mask_text(text: &str, secrets: &BTreeSet<String>) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        if secret.len() >= SHORTEST_PART && text.contains(secret) {
            text = text.replace(secret, MASK);
        }
    }
    text
}
