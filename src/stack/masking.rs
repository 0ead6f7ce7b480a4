//! Which values are made of hidden parameters: those must never be shown.
//!
//! Two looks, because either alone misses something. The words of a template say what an
//! output is made from, also when a digest or a part of a hidden value is all that is left
//! of it; but not through the attributes of real objects. The values themselves are looked
//! for in every text that is shown, which finds them wherever they came from.

use std::collections::BTreeSet;

use super::render::Stack;
use super::tree::MASK;
use crate::value::Value;

/// Texts shorter than this are only masked when they are the whole text: as part of others
/// they are found everywhere.
const SHORTEST_PART: usize = 4;

/// Names of resources whose properties are made of hidden parameters; all that use
/// parameters when `outer` says that those come from hidden ones.
#[must_use]
pub fn tainted(stack: &Stack, outer: bool) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if stack.parameters.hidden.is_empty() && !outer && !stack.files.is_hidden(None) {
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
                    "get_file" => self.stack.files.is_hidden(item.as_str()),
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
                    .any(|family| resource.resource_type.starts_with(family))
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

/// Adds the texts of the stack's hidden values to `found`, in each form of [`note`].
pub fn secrets(stack: &Stack, found: &mut BTreeSet<String>) {
    for name in &stack.parameters.hidden {
        if let Some(value) = stack.parameters.values.get(name) {
            texts(value, found);
        }
    }
}

/// Adds every text and number in `value`, in each form of [`note`].
pub fn texts(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => note(text, found),
        Value::Number(number) => {
            found.insert(number.to_string());
        }
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(map) => map.values().for_each(|item| texts(item, found)),
        _ => {}
    }
}

/// Adds a text as it is, and as it comes back in the words of others: without the space
/// around it, with its line ends and quotes escaped as JSON and Go's `%q` do, and
/// percent-encoded as in a URL.
pub fn note(text: &str, found: &mut BTreeSet<String>) {
    if text.is_empty() {
        return;
    }
    found.insert(text.to_owned());
    let plain = text.trim();
    if plain.is_empty() {
        return;
    }
    found.insert(plain.to_owned());
    if plain.contains(|c: char| c.is_control() || c == '"' || c == '\\') {
        let escaped = Value::from(plain).to_string();
        found.insert(escaped[1..escaped.len() - 1].to_owned());
    }
    let quoted = super::functions::url::quote(plain, "");
    if quoted != plain {
        found.insert(quoted);
        found.insert(super::functions::url::quote(plain, "/"));
    }
}

/// Masks every text in `value` that holds a secret.
pub fn mask(value: &mut Value, secrets: &BTreeSet<String>) {
    match value {
        Value::String(text) if holds(text, secrets) => *text = MASK.into(),
        Value::Number(number) if secrets.contains(&number.to_string()) => {
            *value = Value::from(MASK);
        }
        Value::Array(items) => items
            .make_mut()
            .iter_mut()
            .for_each(|item| mask(item, secrets)),
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
    let is_part = |secret: &&String| secret.len() >= SHORTEST_PART && text.contains(*secret);
    let mut parts: Vec<&String> = secrets.iter().filter(is_part).collect();
    // One may be a part of another, whose rest must not stay.
    parts.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    let mut text = text.to_owned();
    for secret in parts {
        text = text.replace(secret, MASK);
    }
    if secrets.contains(&text) {
        MASK.clone_into(&mut text);
    }
    text
}
