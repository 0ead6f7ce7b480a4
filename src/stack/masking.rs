//! Finds and masks values that depend on hidden parameters.
//!
//! There are two methods, because either alone misses something. The functions of a template show
//! which outputs depend on a hidden value, even if they contain only a digest or a part of it; but
//! not through attributes of real objects. So the hidden values themselves are also searched for in
//! every text that is shown.

use std::collections::BTreeSet;

use super::render::Stack;
use super::tree::MASK;
use crate::value::Value;

/// A shorter secret is only masked if it is the whole text: as a part it would be found everywhere.
const MIN_PART_LENGTH: usize = 4;

/// Names of resources whose properties depend on hidden parameters. With `outer` all parameters
/// depend on hidden ones of an outer stack.
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
        let finder = HiddenFinder {
            stack,
            outer,
            tainted: &found,
        };
        if finder.is_hidden(&resource.properties) || finder.is_hidden(&resource.metadata) {
            found.insert(name.clone());
        }
    }
    found
}

/// Names of outputs that depend on hidden parameters, directly or through `tainted` resources.
#[must_use]
pub fn tainted_outputs(stack: &Stack, tainted: &BTreeSet<String>, outer: bool) -> BTreeSet<String> {
    let finder = HiddenFinder {
        stack,
        outer,
        tainted,
    };
    let outputs = stack.template.outputs.iter();
    outputs
        .filter(|(_, output)| finder.is_hidden(&output.value))
        .map(|(name, _)| name.clone())
        .collect()
}

struct HiddenFinder<'a> {
    stack: &'a Stack,
    outer: bool,
    tainted: &'a BTreeSet<String>,
}

impl HiddenFinder<'_> {
    fn is_hidden(&self, value: &Value) -> bool {
        match value {
            Value::Array(items) => items.iter().any(|item| self.is_hidden(item)),
            Value::Object(map) => map.iter().any(|(key, item)| {
                let first = named(item);
                let is_named = match key.as_str() {
                    "get_param" | "Ref" => first.is_some_and(|name| self.is_parameter(name)),
                    "get_attr" | "Fn::GetAtt" => first.is_some_and(|name| self.exposes(name)),
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

    /// Whether the attributes of a tainted resource contain its properties. Attributes of real
    /// objects do not: they are addresses and states.
    fn exposes(&self, name: &str) -> bool {
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

/// The resource or parameter name at the beginning of a function's argument.
fn named(argument: &Value) -> Option<&str> {
    match argument {
        Value::String(text) => text.split('.').next(),
        Value::Array(items) => items.first().and_then(Value::as_str),
        _ => None,
    }
}

/// Adds the values of the stack's hidden parameters to `found`, in each form of [`add_text`].
pub fn add_hidden_parameters(stack: &Stack, found: &mut BTreeSet<String>) {
    for name in &stack.parameters.hidden {
        if let Some(value) = stack.parameters.values.get(name) {
            add_texts(value, found);
        }
    }
}

/// Adds every text and number in `value`, in each form of [`add_text`].
pub fn add_texts(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => add_text(text, found),
        Value::Number(number) => {
            found.insert(number.to_string());
        }
        Value::Array(items) => items.iter().for_each(|item| add_texts(item, found)),
        Value::Object(map) => map.values().for_each(|item| add_texts(item, found)),
        _ => {}
    }
}

/// Adds a text in every form in which messages may contain it: as it is, trimmed, with line ends and
/// quotes escaped as by JSON and Go's `%q`, and percent-encoded as in a URL.
pub fn add_text(text: &str, found: &mut BTreeSet<String>) {
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

/// Masks every text in `value` that contains a secret.
pub fn mask(value: &mut Value, secrets: &BTreeSet<String>) {
    match value {
        Value::String(text) if contains_secret(text, secrets) => *text = MASK.into(),
        Value::Number(number) if secrets.contains(&number.to_string()) => {
            *value = Value::from(MASK);
        }
        Value::Array(items) => items
            .make_mut()
            .iter_mut()
            .for_each(|item| mask(item, secrets)),
        Value::Object(map) => {
            if map.keys().any(|key| contains_secret(key, secrets)) {
                *value = Value::from(MASK);
                return;
            }
            map.values_mut().for_each(|item| mask(item, secrets));
        }
        _ => {}
    }
}

fn contains_secret(text: &str, secrets: &BTreeSet<String>) -> bool {
    secrets
        .iter()
        .any(|secret| text == secret || (secret.len() >= MIN_PART_LENGTH && text.contains(secret)))
}

/// The text with every secret in it masked.
#[must_use]
pub fn mask_text(text: &str, secrets: &BTreeSet<String>) -> String {
    let is_part = |secret: &&String| secret.len() >= MIN_PART_LENGTH && text.contains(*secret);
    let mut parts: Vec<&String> = secrets.iter().filter(is_part).collect();
    // Longer ones first: one secret may be a part of another.
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
