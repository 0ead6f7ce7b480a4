//! A stack and the stacks inside of it as one flat set of resources.
//!
//! Heat gives each nested stack a life of its own; here they are evaluated together, so
//! that a whole tree is created, updated and rolled back as one, with one record of what
//! exists. A resource is named by its path: `group/0/server`.
//!
//! Values become known as resources are made, so a tree is evaluated again and again. The
//! caller is asked for each resource whose requirements are met whether it is as it should
//! be; what depends on it is evaluated with its answer. What holds a stack is looked into
//! once everything that it is made from is known: the size of a group may be an attribute.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::functions::Known;
use super::render::{self, Input, Rendered, Stack, Stop};
use super::rolling::Policy;
use super::template::MAX_RESOURCES;
use super::{Error, Result, expand, masking, validate};
use crate::value::{Map, Text, Value, json};

/// Stands between the names in a path; names of resources cannot have it.
pub const SEPARATOR: char = '/';

/// What is shown in place of a value that is made of hidden parameters.
pub const MASK: &str = "******";

/// A resource that is made, of the stack itself or of one inside.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Its type, after the environment's registry.
    pub resource_type: String,
    /// Properties after the type's schema, or why there are none.
    pub properties: Result<Map>,
    /// Its metadata, or null.
    pub metadata: Value,
    /// By property: paths of the resources it refers to.
    pub references: BTreeMap<String, BTreeSet<String>>,
    /// Paths of the resources that come before it.
    pub requires: BTreeSet<String>,
    /// Everything that it requires is known.
    pub ready: bool,
    /// Kept when the stack lets go of it.
    pub retain: bool,
    /// The name of an object that exists already, or null.
    pub external_id: Value,
    /// The groups it is a member of that change a few members at a time.
    pub batches: Vec<Batch>,
    /// Some of its properties are made of hidden parameters.
    pub hidden: bool,
}

/// How a group changes its members.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Path of the group.
    pub group: String,
    /// Path of the member that the resource belongs to.
    pub member: String,
    /// How many members it is to have.
    pub target: usize,
    /// How its first members are made; all at once when absent.
    pub create: Option<Policy>,
    /// How members are changed.
    pub update: Option<Policy>,
}

/// An output of the stack.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// What the template says of it.
    pub description: String,
    /// Its value, masked if need be, or why there is none.
    pub value: Result<Value>,
}

/// A tree, evaluated as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct Flat {
    /// The resources by path.
    pub leaves: BTreeMap<String, Leaf>,
    /// Paths of resources that hold a stack which cannot be looked into yet.
    pub unexpanded: BTreeSet<String>,
    /// Outputs by name.
    pub outputs: BTreeMap<String, Output>,
    /// Texts that must never be shown.
    pub secrets: BTreeSet<String>,
    /// By the path of a group: names that it does not use any more.
    pub removed: BTreeMap<String, BTreeSet<String>>,
    /// By the path of a group: names of those of its members that it is told to let go of by the
    /// ids that they are referred to by.
    pub named: BTreeMap<String, BTreeMap<String, String>>,
}

impl Flat {
    /// The text without anything that must not be shown.
    #[must_use]
    pub fn masked(&self, text: &str) -> String {
        masking::mask_text(text, &self.secrets)
    }
}

/// Evaluates `input` and everything inside. `settle` is asked once for each resource whose
/// requirements are met, and says what is known of it if it is as it should be.
///
/// # Errors
/// When a template, its parameters or its references are wrong.
pub fn flatten(
    input: &Input,
    settle: &mut dyn FnMut(&str, &Leaf) -> Option<Known>,
) -> std::result::Result<Flat, Stop> {
    let mut walk = Walk {
        flat: Flat::default(),
        left: MAX_RESOURCES,
        input,
        settle,
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

/// Where a stack stands in the tree.
#[derive(Debug, Clone, Default)]
struct Place {
    /// Path with a separator at the end, or nothing.
    prefix: String,
    /// What the resource that holds it requires.
    requires: BTreeSet<String>,
    batches: Vec<Batch>,
    /// The parameters come from hidden ones.
    hidden: bool,
    /// What holds it is kept when the stack lets go of it, and so is what is in it.
    retain: bool,
}

/// One stack of the tree.
#[derive(Debug, Default)]
struct Level {
    /// Paths of every resource in it and in those inside.
    leaves: BTreeSet<String>,
    /// Everything in it is as it should be.
    complete: bool,
    members: BTreeMap<String, Known>,
    outputs: BTreeMap<String, Output>,
    /// Of a group: names that it does not use any more.
    removed: BTreeSet<String>,
}

struct Walk<'a> {
    flat: Flat,
    /// How many resources there may be more.
    left: usize,
    /// The outermost.
    input: &'a Input,
    settle: &'a mut dyn FnMut(&str, &Leaf) -> Option<Known>,
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
        let mut settled: BTreeSet<String> = BTreeSet::new();
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
            let evaluated = settled.clone();
            for name in &order {
                let met = |stack: &Stack, by: &BTreeSet<String>| {
                    required(stack, name).all(|required| by.contains(required))
                };
                if asked.contains(name) || !met(&stack, &settled) {
                    continue;
                }
                // What it is made from has settled in this very round.
                if !met(&stack, &evaluated) {
                    render::again(&input, &mut stack, &existing, name)?;
                    if !met(&stack, &settled) {
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
                    let now = self.as_it_is_now(&place.prefix, name, resource);
                    let resource = now.as_ref().unwrap_or(resource);
                    let at = |error: Error| stop(error.below(&format!("resources.{name}")));
                    let Some(inner) = expand::inner(&input, &stack, name, resource).map_err(at)?
                    else {
                        continue;
                    };
                    let below = below(&stack, name, resource, place, &inside, tainted);
                    let mut level = self.level(inner, &below, depth + 1)?;
                    let path = format!("{}{name}", place.prefix);
                    level.complete &= !self.input.sizes.contains_key(&path);
                    level.removed = self.flat.removed.get(&path).cloned().unwrap_or_default();
                    let known = outside(resource, &below.prefix, &level);
                    input.resources.insert(name.clone(), known);
                    if level.complete {
                        settled.insert(name.clone());
                    }
                    inside.insert(name.clone(), level);
                } else {
                    let path = format!("{}{name}", place.prefix);
                    let leaf = leaf(&stack, name, resource, place, &inside, true, tainted);
                    if let Some(known) = (self.settle)(&path, &leaf) {
                        input.resources.insert(name.clone(), known);
                        settled.insert(name.clone());
                    }
                    self.flat.leaves.insert(path, leaf);
                }
            }
            if !progress {
                break stack;
            }
        };
        Ok(self.finish(&stack, &input, place, inside, &asked, &settled))
    }

    /// A group with the names that it does not use: those that its policies name, and those
    /// that it has been told before where its policy appends, as by Heat's default. And with as
    /// many members as it has in the batch that is under way.
    fn as_it_is_now(&mut self, prefix: &str, name: &str, group: &Rendered) -> Option<Rendered> {
        if group.resource_type != "OS::Heat::ResourceGroup" {
            return None;
        }
        let mut properties = group.typed.as_ref().ok()?.clone();
        let path = format!("{prefix}{name}");
        let members = self.input.members.get(&path);
        let mut all = BTreeSet::new();
        for given in expand::listed(properties.get("removal_policies")) {
            if let Some(member) = members.and_then(|members| members.get(&given)) {
                let named = self.flat.named.entry(path.clone()).or_default();
                all.insert(member.clone());
                named.insert(given, member.clone());
            } else {
                // What is neither a name nor known as an id is nobody's, and costs nothing.
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

    /// What was not reached, and what the stack says to the outside.
    fn finish(
        &mut self,
        stack: &Stack,
        input: &Input,
        place: &Place,
        inside: BTreeMap<String, Level>,
        asked: &BTreeSet<String>,
        settled: &BTreeSet<String>,
    ) -> Level {
        let hidden = masking::tainted(stack, place.hidden);
        let mut level = Level {
            complete: settled.len() == stack.resources.len(),
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
        masking::secrets(stack, &mut self.flat.secrets);
        level.members = input.resources.clone();
        let masked = masking::outputs(stack, &hidden, place.hidden);
        for (name, (description, value)) in &stack.outputs {
            // Only what is shown is masked; a stack around this one works with the value.
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

/// Where the stack inside of a resource stands.
fn below(
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
            // The group's own members are the first level below it.
            member: if batch.member.is_empty() {
                format!("{}{name}", place.prefix)
            } else {
                batch.member.clone()
            },
            ..batch.clone()
        })
        .collect();
    // The template's own count, whatever it is in the batch that is under way.
    let own = stack.resources.get(name).unwrap_or(resource);
    let target = own.typed.as_ref().ok();
    let target = target.and_then(|map| map.get("count").and_then(number));
    batches.extend(batch(resource, &prefix, target));
    Place {
        requires: paths(stack, name, place, inside),
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

/// Names that come before `name`; one whose condition is false is not there to wait for.
fn required<'a>(stack: &'a Stack, name: &str) -> impl Iterator<Item = &'a String> {
    let all = stack.graph.requires.get(name).into_iter().flatten();
    all.filter(|required| stack.resources.contains_key(*required))
}

/// The paths that stand for the requirements of `name`.
fn paths(
    stack: &Stack,
    name: &str,
    place: &Place,
    inside: &BTreeMap<String, Level>,
) -> BTreeSet<String> {
    let mut found = place.requires.clone();
    for required in required(stack, name) {
        found.extend(standing_for(required, place, inside));
    }
    found
}

fn standing_for(name: &str, place: &Place, inside: &BTreeMap<String, Level>) -> BTreeSet<String> {
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
        let paths = names.iter().flat_map(|n| standing_for(n, place, inside));
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
    // What is made from attributes is known only now.
    let within = if ready && !resource.references.is_empty() {
        validate::constraints(resource, &|_| false)
    } else {
        Ok(())
    };
    Leaf {
        resource_type: resource.resource_type.to_string(),
        properties: within.and_then(|()| resource.typed.clone()),
        metadata: resource.metadata.clone().unwrap_or_default(),
        references: references.collect(),
        requires: paths(stack, name, place, inside),
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

/// A group's way of changing members, if it has one.
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

/// How many members a figure stands for.
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

/// What a resource that holds a stack says to the stack around it.
fn outside(resource: &Rendered, prefix: &str, level: &Level) -> Known {
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

/// Attributes of a group: those of its members, as lists and by member.
fn of_members(level: &Level) -> Map {
    // `10` comes after `9`, as members were made.
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
