//! A stack and its nested stacks as one flat set of resources.
//!
//! In Heat each nested stack is a stack of its own. Here they are evaluated together, so that a whole
//! tree is created, updated and rolled back as one, with one record. A resource is named by its
//! path: `group/0/server`.
//!
//! Values become known while resources are created, so a tree is evaluated repeatedly. For each
//! resource whose requirements are ready the caller is asked whether it is ready, too; resources that
//! depend on it are evaluated with the answer. A nested stack is evaluated once its inputs are known:
//! for example, the size of a group may be an attribute.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::functions::Known;
use super::render::{self, Input, Rendered, Stack, Stop};
use super::rolling::Policy;
use super::template::MAX_RESOURCES;
use super::{Error, Result, expand, masking, validate};
use crate::value::{Map, Text, Value, json};

/// Separates the names in a path; names of resources cannot contain it.
pub const SEPARATOR: char = '/';

/// Shown instead of a value that depends on hidden parameters.
pub const MASK: &str = "******";

/// A resource that is not a nested stack itself, anywhere in the tree.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Its type, after the environment's registry.
    pub resource_type: String,
    /// Properties converted by the type's schema, or the error in them.
    pub properties: Result<Map>,
    /// Its metadata, or null.
    pub metadata: Value,
    /// By property: paths of the resources it refers to.
    pub references: BTreeMap<String, BTreeSet<String>>,
    /// Paths of the resources that it requires.
    pub requires: BTreeSet<String>,
    /// Everything that it requires is ready.
    pub ready: bool,
    /// Its objects are kept when it is removed (`deletion_policy: Retain`).
    pub retain: bool,
    /// The name of an object that exists already, or null.
    pub external_id: Value,
    /// The groups with batches that it is a member of.
    pub batches: Vec<Batch>,
    /// Some of its properties depend on hidden parameters.
    pub hidden: bool,
}

/// Membership of a resource in a group that updates its members in batches.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Path of the group.
    pub group: String,
    /// Path of the member that the resource belongs to.
    pub member: String,
    /// How many members the template wants.
    pub target: usize,
    /// Batches in which the first members are created; all at once if `None`.
    pub create: Option<Policy>,
    /// Batches in which members are updated.
    pub update: Option<Policy>,
}

/// An output of the stack.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Its description in the template.
    pub description: String,
    /// Its value, masked if necessary, or the error in it.
    pub value: Result<Value>,
}

/// A tree, evaluated as far as its values are known.
#[derive(Debug, Clone, Default)]
pub struct Flat {
    /// The resources by path.
    pub leaves: BTreeMap<String, Leaf>,
    /// Paths of nested stacks whose inputs are not known yet.
    pub unexpanded: BTreeSet<String>,
    /// Outputs by name.
    pub outputs: BTreeMap<String, Output>,
    /// Texts to mask.
    pub secrets: BTreeSet<String>,
    /// By the path of a group: member names that it does not use any more.
    pub removed: BTreeMap<String, BTreeSet<String>>,
    /// By the path of a group: names of members by reference id, for members that its removal
    /// policies name by id.
    pub named: BTreeMap<String, BTreeMap<String, String>>,
}

impl Flat {
    /// The text with all secrets masked.
    #[must_use]
    pub fn masked(&self, text: &str) -> String {
        masking::mask_text(text, &self.secrets)
    }
}

/// Evaluates `input` and its nested stacks. `resolve` is called once for each resource whose
/// requirements are ready, and returns its reference id and attributes if it is ready.
///
/// # Errors
/// When a template, its parameters or its references are wrong.
pub fn flatten(
    input: &Input,
    resolve: &mut dyn FnMut(&str, &Leaf) -> Option<Known>,
) -> std::result::Result<Flat, Stop> {
    let mut walk = Walk {
        flat: Flat::default(),
        left: MAX_RESOURCES,
        room: render::MAX_BYTES,
        input,
        resolve,
    };
    let level = walk.level(input.clone(), &Place::default(), 0)?;
    let mut flat = walk.flat;
    flat.outputs = level.outputs;
    for output in flat.outputs.values_mut() {
        if let Ok(value) = &mut output.value {
            masking::mask(value, &flat.secrets);
        }
    }
    Ok(flat)
}

/// The place of a stack in the tree.
#[derive(Debug, Clone, Default)]
struct Place {
    /// Its path with a separator at the end; empty for the outermost stack.
    prefix: String,
    /// Requirements of the nested stack as a resource.
    requires: BTreeSet<String>,
    batches: Vec<Batch>,
    /// Its parameters depend on hidden ones.
    hidden: bool,
    /// Its resources are kept when it is removed.
    retain: bool,
}

/// One stack of the tree.
#[derive(Debug, Default)]
struct Level {
    /// Paths of all resources in it and in its nested stacks.
    leaves: BTreeSet<String>,
    /// All of them are ready.
    complete: bool,
    members: BTreeMap<String, Known>,
    outputs: BTreeMap<String, Output>,
    /// Of a group: member names that it does not use any more.
    removed: BTreeSet<String>,
}

struct Walk<'a> {
    flat: Flat,
    /// How many more resources the tree may have.
    left: usize,
    /// How many more bytes their properties may have.
    room: usize,
    /// The input of the outermost stack.
    input: &'a Input,
    resolve: &'a mut dyn FnMut(&str, &Leaf) -> Option<Known>,
}

impl Walk<'_> {
    fn level(
        &mut self,
        mut input: Input,
        place: &Place,
        depth: usize,
    ) -> std::result::Result<Level, Stop> {
        if depth > expand::MAX_NESTING {
            return Err(stop(Error::new(format!(
                "stacks nest deeper than {} levels",
                expand::MAX_NESTING
            ))));
        }
        let mut inside: BTreeMap<String, Level> = BTreeMap::new();
        let mut asked: BTreeSet<String> = BTreeSet::new();
        let mut ready_names: BTreeSet<String> = BTreeSet::new();
        let stack = loop {
            let mut stack = render::stack(&input)?;
            if asked.is_empty() {
                let left = self.left.checked_sub(stack.resources.len());
                self.left = left.ok_or_else(too_many)?;
            }
            let order = stack.order.clone().map_err(stop)?;
            let hidden = masking::tainted(&stack, place.hidden);
            let template = Arc::clone(&stack.template);
            let names = template.resources.keys().map(String::as_str);
            let existing: HashSet<&str> = names
                .filter(|name| stack.resources.contains_key(*name))
                .collect();
            let mut progress = false;
            let evaluated = ready_names.clone();
            for name in &order {
                let met = |stack: &Stack, by: &BTreeSet<String>| {
                    required(stack, name).all(|required| by.contains(required))
                };
                if asked.contains(name) || !met(&stack, &ready_names) {
                    continue;
                }
                // A requirement became ready in this round: evaluate it again.
                if !met(&stack, &evaluated) {
                    render::render_again(&input, &mut stack, &existing, name)?;
                    if !met(&stack, &ready_names) {
                        continue;
                    }
                }
                let Some(resource) = stack.resources.get(name) else {
                    continue;
                };
                asked.insert(name.clone());
                progress = true;
                let tainted = hidden.contains(name);
                if expand::has_nested_stack(resource) {
                    let now = self.current_group(&place.prefix, name, resource);
                    let resource = now.as_ref().unwrap_or(resource);
                    let at = |error: Error| stop(error.below(&format!("resources.{name}")));
                    let Some(inner) =
                        expand::nested_input(&input, &stack, name, resource).map_err(at)?
                    else {
                        continue;
                    };
                    let below = place_of_nested(&stack, name, resource, place, &inside, tainted);
                    let mut level = self.level(inner, &below, depth + 1)?;
                    let path = format!("{}{name}", place.prefix);
                    level.complete &= !self.input.sizes.contains_key(&path);
                    level.removed = self.flat.removed.get(&path).cloned().unwrap_or_default();
                    let known = known_of_nested(resource, &below.prefix, &level);
                    input.resources.insert(name.clone(), known);
                    if level.complete {
                        ready_names.insert(name.clone());
                    }
                    inside.insert(name.clone(), level);
                } else {
                    let path = format!("{}{name}", place.prefix);
                    let leaf = leaf(&stack, name, resource, place, &inside, true, tainted);
                    render::take_room(&mut self.room, leaf.properties.as_ref().ok())
                        .map_err(stop)?;
                    if let Some(known) = (self.resolve)(&path, &leaf) {
                        input.resources.insert(name.clone(), known);
                        ready_names.insert(name.clone());
                    }
                    self.flat.leaves.insert(path, leaf);
                }
            }
            if !progress {
                break stack;
            }
        };
        Ok(self.finish(&stack, &input, place, inside, &asked, &ready_names))
    }

    /// A group with the member names that it does not use (those that its removal policies name, and
    /// earlier ones if `removal_policies_mode` appends, which is Heat's default), and with the number
    /// of members of the current batch.
    fn current_group(&mut self, prefix: &str, name: &str, group: &Rendered) -> Option<Rendered> {
        if group.resource_type != "OS::Heat::ResourceGroup" {
            return None;
        }
        let mut properties = group.typed.as_ref().ok()?.clone();
        let path = format!("{prefix}{name}");
        let members = self.input.members.get(&path);
        let mut all = BTreeSet::new();
        for given in expand::excluded_members(properties.get("removal_policies")) {
            if let Some(member) = members.and_then(|members| members.get(&given)) {
                let named = self.flat.named.entry(path.clone()).or_default();
                all.insert(member.clone());
                named.insert(given, member.clone());
            } else {
                // Ignored if it is neither a member's name nor a known id.
                all.insert(given);
            }
        }
        if properties.get("removal_policies_mode") != Some(&Value::from("update")) {
            all.extend(self.input.removed.get(&path).into_iter().flatten().cloned());
        }
        properties.insert("removal_policies", json!([{"resource_list": all}]));
        if let Some(size) = self.input.sizes.get(&path) {
            properties.insert("count", Value::from(*size));
        }
        all.retain(|name| name.parse::<usize>().is_ok());
        if !all.is_empty() {
            self.flat.removed.insert(path, all);
        }
        Some(Rendered {
            typed: Ok(properties),
            ..group.clone()
        })
    }

    /// Adds resources that were not reached, and the outputs.
    fn finish(
        &mut self,
        stack: &Stack,
        input: &Input,
        place: &Place,
        inside: BTreeMap<String, Level>,
        asked: &BTreeSet<String>,
        ready_names: &BTreeSet<String>,
    ) -> Level {
        let hidden = masking::tainted(stack, place.hidden);
        let mut level = Level {
            complete: ready_names.len() == stack.resources.len(),
            ..Level::default()
        };
        for (name, resource) in &stack.resources {
            let path = format!("{}{name}", place.prefix);
            if expand::has_nested_stack(resource) {
                if !asked.contains(name) {
                    self.flat.unexpanded.insert(path);
                }
                continue;
            }
            if !asked.contains(name) {
                let tainted = hidden.contains(name);
                let leaf = leaf(stack, name, resource, place, &inside, false, tainted);
                self.flat.leaves.insert(path.clone(), leaf);
            }
            level.leaves.insert(path);
        }
        for (_, inner) in inside {
            level.leaves.extend(inner.leaves);
        }
        masking::add_hidden_parameters(stack, &mut self.flat.secrets);
        level.members = input.resources.clone();
        let masked = masking::tainted_outputs(stack, &hidden, place.hidden);
        for (name, (description, value)) in &stack.outputs {
            // Only outputs of the outermost stack are shown; other stacks need the value.
            let value = if place.prefix.is_empty() && masked.contains(name) {
                Ok(Value::from(MASK))
            } else {
                value.clone()
            };
            let output = Output {
                description: description.clone(),
                value,
            };
            level.outputs.insert(name.clone(), output);
        }
        level
    }
}

/// The place of the nested stack of a resource.
fn place_of_nested(
    stack: &Stack,
    name: &str,
    resource: &Rendered,
    place: &Place,
    inside: &BTreeMap<String, Level>,
    hidden: bool,
) -> Place {
    let prefix = format!("{}{name}{SEPARATOR}", place.prefix);
    let mut batches: Vec<Batch> = place
        .batches
        .iter()
        .map(|batch| Batch {
            // Members of a group are one level below it.
            member: if batch.member.is_empty() {
                format!("{}{name}", place.prefix)
            } else {
                batch.member.clone()
            },
            ..batch.clone()
        })
        .collect();
    // The count in the template, not that of the current batch.
    let own = stack.resources.get(name).unwrap_or(resource);
    let target = own.typed.as_ref().ok();
    let target = target.and_then(|map| map.get("count").and_then(number));
    batches.extend(batch(resource, &prefix, target));
    Place {
        requires: required_paths(stack, name, place, inside),
        prefix,
        batches,
        hidden,
        retain: place.retain || is_retained(resource),
    }
}

fn too_many() -> Stop {
    stop(Error::new(format!(
        "more than {MAX_RESOURCES} resources in all"
    )))
}

fn stop(error: Error) -> Stop {
    Stop {
        stage: "resources",
        error,
    }
}

/// The requirements of `name`; resources with a false condition do not exist.
fn required<'a>(stack: &'a Stack, name: &str) -> impl Iterator<Item = &'a String> {
    let all = stack.graph.requires.get(name).into_iter().flatten();
    all.filter(|required| stack.resources.contains_key(*required))
}

/// The paths of the requirements of `name`: a nested stack stands for all its resources.
fn required_paths(
    stack: &Stack,
    name: &str,
    place: &Place,
    inside: &BTreeMap<String, Level>,
) -> BTreeSet<String> {
    let mut found = place.requires.clone();
    for required in required(stack, name) {
        found.extend(resource_paths(required, place, inside));
    }
    found
}

/// The path of a resource; for a nested stack the paths of all its resources.
fn resource_paths(name: &str, place: &Place, inside: &BTreeMap<String, Level>) -> BTreeSet<String> {
    match inside.get(name) {
        Some(level) => level.leaves.clone(),
        None => BTreeSet::from([format!("{}{name}", place.prefix)]),
    }
}

fn leaf(
    stack: &Stack,
    name: &str,
    resource: &Rendered,
    place: &Place,
    inside: &BTreeMap<String, Level>,
    ready: bool,
    hidden: bool,
) -> Leaf {
    let references = resource.references.iter().map(|(property, names)| {
        let paths = names.iter().flat_map(|n| resource_paths(n, place, inside));
        (property.clone(), paths.collect())
    });
    let batches = place.batches.iter().map(|batch| Batch {
        member: if batch.member.is_empty() {
            format!("{}{name}", place.prefix)
        } else {
            batch.member.clone()
        },
        ..batch.clone()
    });
    // Values from attributes are known only now.
    let valid = if ready && !resource.references.is_empty() {
        validate::constraints(resource, &|_| false)
    } else {
        Ok(())
    };
    Leaf {
        resource_type: resource.resource_type.to_string(),
        properties: valid.and_then(|()| resource.typed.clone()),
        metadata: resource.metadata.clone().unwrap_or_default(),
        references: references.collect(),
        requires: required_paths(stack, name, place, inside),
        ready,
        retain: place.retain || is_retained(resource),
        external_id: resource.external_id.clone(),
        batches: batches.collect(),
        hidden,
    }
}

fn is_retained(resource: &Rendered) -> bool {
    resource.deletion_policy == "Retain"
}

/// The batches of a group, if it has an update policy.
fn batch(resource: &Rendered, prefix: &str, count: Option<f64>) -> Option<Batch> {
    if resource.resource_type != "OS::Heat::ResourceGroup" {
        return None;
    }
    let policy = resource.update_policy.as_ref().ok()?;
    let of = |key: &str| {
        let map = policy.get(key)?.as_object()?;
        let number = |key: &str| map.get(key).and_then(number);
        Some(Policy {
            size: whole(number("max_batch_size").unwrap_or(1.0)).max(1),
            min_in_service: whole(number("min_in_service").unwrap_or(0.0)),
            pause: number("pause_time").unwrap_or(0.0).max(0.0),
        })
    };
    let (create, update) = (of("batch_create"), of("rolling_update"));
    (create.is_some() || update.is_some()).then(|| Batch {
        group: prefix.trim_end_matches(SEPARATOR).to_owned(),
        member: String::new(),
        target: whole(count.unwrap_or(0.0)),
        create,
        update,
    })
}

/// A number of members.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast from a float stays within bounds, and no group is bigger"
)]
fn whole(number: f64) -> usize {
    number as usize
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_f64(),
    }
}

/// Reference id and attributes of a nested stack, for the stack that contains it.
fn known_of_nested(resource: &Rendered, prefix: &str, level: &Level) -> Known {
    let name = prefix.trim_end_matches(SEPARATOR);
    let value = |output: &Output| output.value.clone().unwrap_or_default();
    let outputs: Map = level
        .outputs
        .iter()
        .map(|(name, output)| (name.clone(), value(output)))
        .collect();
    let mut refid = Value::from(name);
    let attributes = match resource.resource_type.as_str() {
        "OS::Heat::ResourceGroup" | "OS::Heat::ResourceChain" => of_members(level),
        "OS::Heat::Stack" => {
            let mut attributes = Map::new();
            attributes.insert("outputs", Value::Object(outputs));
            attributes.insert("stack_name", Value::from(name));
            attributes
        }
        "AWS::CloudFormation::Stack" => outputs
            .into_iter()
            .map(|(name, value)| (format!("Outputs.{name}"), value))
            .collect(),
        _ => {
            if let Some(id) = outputs.get("OS::stack_id") {
                refid = id.clone();
            }
            outputs
        }
    };
    Known {
        refid,
        attributes,
        open: !level.complete,
    }
}

/// Attributes of a group: the attributes of its members, as lists and by member.
fn of_members(level: &Level) -> Map {
    // In numerical order: `10` comes after `9`.
    let mut members: Vec<(&String, &Known)> = level.members.iter().collect();
    members.sort_by_key(|(name, _)| (name.parse::<u64>().unwrap_or(u64::MAX), *name));
    let names: BTreeSet<&Text> = members
        .iter()
        .flat_map(|(_, known)| known.attributes.keys())
        .collect();
    let mut attributes = Map::new();
    let mut by_attribute = Map::new();
    for name in names {
        let value = |known: &Known| known.attributes.get(name).cloned().unwrap_or_default();
        let list: Value = members.iter().map(|(_, known)| value(known)).collect();
        let map: Map = members
            .iter()
            .map(|(member, known)| ((*member).clone(), value(known)))
            .collect();
        attributes.insert(name.clone(), list);
        by_attribute.insert(name.clone(), Value::Object(map));
    }
    for (member, known) in &members {
        attributes.insert(format!("resource.{member}"), known.refid.clone());
        for (name, value) in &known.attributes {
            attributes.insert(format!("resource.{member}.{name}"), value.clone());
        }
    }
    let refs: Vec<&Value> = members.iter().map(|(_, known)| &known.refid).collect();
    attributes.insert("refs", json!(refs));
    let refs: Map = members
        .iter()
        .map(|(member, known)| ((*member).clone(), known.refid.clone()))
        .collect();
    attributes.insert("refs_map", Value::Object(refs));
    attributes.insert("attributes", Value::Object(by_attribute));
    attributes.insert("removed_rsrc_list", json!(level.removed));
    attributes
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
