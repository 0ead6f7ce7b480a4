//! Plans: steps with dependencies. Only decisions, no side effects.
//!
//! Create, update, delete and rollback are the same: a plan from what exists to what is wanted
//! (nothing for a deletion, the last good template for a rollback). A replacement is created before
//! the old resource is deleted. Resources that an interrupted plan has left are existing resources
//! like others. Check, suspend and resume are one action on everything that exists, in order.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::graph::{Graph, Numbered};
use super::registry;
use super::render::{Stack, is_template_name};
use super::{Error, Result};
use crate::value::Map;

/// How a type handles a change of a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The resource is updated in place.
    InPlace,
    /// The resource is replaced.
    Replace,
    /// The change is an error.
    Refuse,
}

/// A resource as the template wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted<'a> {
    /// Its type.
    pub resource_type: &'a str,
    /// Properties; references to other resources may not be evaluated yet.
    pub properties: Cow<'a, Map>,
    /// By property: the resources it refers to.
    pub references: &'a BTreeMap<String, BTreeSet<String>>,
}

/// One incarnation of a resource; a replacement has the next number.
pub type Key = (String, u32);

/// An existing incarnation.
#[derive(Debug, Clone, PartialEq)]
pub struct Existing {
    /// Its type.
    pub resource_type: String,
    /// Properties that it was created or last updated with, as in [`Wanted`].
    pub properties: Map,
    /// Which incarnation of each required resource it uses.
    pub requires: BTreeMap<String, u32>,
    /// Its creation or last update is complete.
    pub complete: bool,
    /// Its objects are kept when it is removed (`deletion_policy: Retain`).
    pub retain: bool,
}

/// What one step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Create the incarnation.
    Create,
    /// Update it in place.
    Update,
    /// Delete it.
    Delete,
    /// Remove it from the stack without deleting it.
    Release,
    /// Check whether it is as it should be.
    Check,
    /// Stop it.
    Suspend,
    /// Start it again.
    Resume,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The action.
    pub action: Action,
    /// The incarnation.
    pub key: Key,
    /// Which incarnation of each required resource it uses.
    pub requires: BTreeMap<String, u32>,
    /// Properties that have changed; only for updates.
    pub changed: BTreeSet<String>,
    /// Indexes of the steps that must come before it.
    pub after: BTreeSet<usize>,
}

/// Steps from what exists to what is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps, ordered: those in `after` come earlier in the list.
    pub steps: Vec<Step>,
    /// Resources without changes, with the incarnation of each required resource that they use from
    /// now on: a resource that is only in `depends_on` may be replaced without a change here.
    pub unchanged: BTreeMap<Key, BTreeMap<String, u32>>,
}

/// The resources that a rendered stack wants.
#[must_use]
pub fn wanted(stack: &Stack) -> BTreeMap<String, Wanted<'_>> {
    let mut all = Vec::with_capacity(stack.resources.len());
    for (name, resource) in &stack.resources {
        // Properties that cannot be evaluated yet are as written. To give the default of a property
        // is no change, so properties converted by the schema come first.
        let raw = || stack.template.resources.get(name)?.properties.as_object();
        let evaluated = || resource.properties.as_ref().ok()?.as_ref();
        let typed = resource.typed.as_ref().ok();
        let properties = typed.or_else(evaluated).or_else(raw);
        let wanted = Wanted {
            resource_type: &resource.resource_type,
            properties: properties.map_or_else(Cow::default, Cow::Borrowed),
            references: &resource.references,
        };
        all.push((name.clone(), wanted));
    }
    all.into_iter().collect()
}

/// How a type handles a change of a property in Heat; for a nested stack its resources decide.
#[must_use]
pub fn change(resource_type: &str, property: &str) -> Change {
    let Some(found) = registry::find(resource_type) else {
        return if is_template_name(resource_type) {
            Change::InPlace
        } else {
            Change::Replace
        };
    };
    match found.properties.get(property) {
        Some(property) if property.immutable => Change::Refuse,
        Some(property) if property.update => Change::InPlace,
        None if found.mapped.is_some() => Change::InPlace,
        _ => Change::Replace,
    }
}

/// The plan from `existing` to `wanted`. Incarnations that an earlier plan has replaced and left behind
/// are deleted, as in Heat, which does that before an update begins.
///
/// # Errors
/// When a property changes that must not change, or the graph has a cycle.
pub fn plan(
    wanted: &BTreeMap<String, Wanted<'_>>,
    graph: &Graph,
    existing: &BTreeMap<Key, Existing>,
    change: impl Fn(&str, &str) -> Change,
) -> Result<Plan> {
    plan_steps(wanted, graph, existing, change, false)
}

/// The same for a rollback: an incarnation that was replaced and still exists is used again, as in Heat
/// (`StackUpdate._create_resource` restores the backup resource).
///
/// # Errors
/// As [`plan`].
pub fn plan_rollback(
    wanted: &BTreeMap<String, Wanted<'_>>,
    graph: &Graph,
    existing: &BTreeMap<Key, Existing>,
    change: impl Fn(&str, &str) -> Change,
) -> Result<Plan> {
    plan_steps(wanted, graph, existing, change, true)
}

fn plan_steps(
    wanted: &BTreeMap<String, Wanted<'_>>,
    graph: &Graph,
    existing: &BTreeMap<Key, Existing>,
    change: impl Fn(&str, &str) -> Change,
    is_rollback: bool,
) -> Result<Plan> {
    let mut plan = Plan::default();
    let graph = graph.numbered();
    if existing.is_empty() {
        plan.steps.reserve(wanted.len());
    }
    // By number: the wanted incarnation, and the step that creates or updates it.
    let mut target: Vec<Option<u32>> = vec![None; graph.names.len()];
    let mut step_of: Vec<Option<usize>> = vec![None; graph.names.len()];
    for at in graph.order()? {
        let name = graph.names[at];
        let Some(want) = wanted.get(name) else {
            continue;
        };
        let before = || graph.requires(at).iter();
        let requires: BTreeMap<String, u32> = before()
            .filter_map(|other| Some((graph.names[*other].clone(), target[*other]?)))
            .collect();
        let decision = match newest(existing, name) {
            None => Decision::Create(1),
            Some((number, have)) => {
                let decision = decide(name, want, have, number, &requires, &change)?;
                match (decision, number) {
                    // Older incarnations exist only after a replacement.
                    (Decision::Create(next), 2..) if is_rollback => {
                        let older = fitting_older(existing, name, number, want, &requires);
                        older.map_or(Decision::Create(next), Decision::Keep)
                    }
                    (decision, _) => decision,
                }
            }
        };
        let (action, number, changed) = match decision {
            Decision::Keep(number) => {
                plan.unchanged.insert((name.clone(), number), requires);
                target[at] = Some(number);
                continue;
            }
            Decision::Update(number, changed) => (Action::Update, number, changed),
            Decision::Create(number) => (Action::Create, number, BTreeSet::new()),
        };
        target[at] = Some(number);
        step_of[at] = Some(plan.steps.len());
        plan.steps.push(Step {
            action,
            key: (name.clone(), number),
            requires,
            changed,
            after: before().filter_map(|other| step_of[*other]).collect(),
        });
    }
    remove(&mut plan, &graph, &target, &step_of, existing)?;
    Ok(plan)
}

enum Decision {
    Keep(u32),
    Update(u32, BTreeSet<String>),
    Create(u32),
}

fn newest<'a>(existing: &'a BTreeMap<Key, Existing>, name: &str) -> Option<(u32, &'a Existing)> {
    if existing.is_empty() {
        return None;
    }
    existing
        .range(..=(name.to_owned(), u32::MAX))
        .next_back()
        .filter(|((found, _), _)| found == name)
        .map(|((_, number), have)| (*number, have))
}

/// An older incarnation that is exactly what is wanted.
fn fitting_older(
    existing: &BTreeMap<Key, Existing>,
    name: &str,
    number: u32,
    want: &Wanted<'_>,
    requires: &BTreeMap<String, u32>,
) -> Option<u32> {
    let older = existing.range((name.to_owned(), 0)..(name.to_owned(), number));
    let referred = || want.references.values().flatten();
    let fits = |have: &Existing| {
        have.complete
            && have.resource_type == want.resource_type
            && have.properties == *want.properties
            && referred().all(|other| requires.get(other) == have.requires.get(other))
    };
    let mut fitting = older.rev().filter(|(_, have)| fits(have));
    fitting.next().map(|((_, number), _)| *number)
}

/// The plan of an action on everything that exists: for a suspend users come before what they use, for
/// other actions after it.
///
/// # Errors
/// When the requirements have a cycle.
pub fn plan_action(existing: &BTreeMap<Key, Existing>, action: Action) -> Result<Plan> {
    let label = |(name, number): &Key| format!("{name}#{number}");
    let backwards = action == Action::Suspend;
    let mut graph = Graph::default();
    for key in existing.keys() {
        graph.requires.insert(label(key), BTreeSet::new());
    }
    for (key, have) in existing {
        let used = have.requires.iter().map(|(name, at)| (name.clone(), *at));
        for used in used.filter(|used| existing.contains_key(used)) {
            let (first, then) = if backwards {
                (label(key), label(&used))
            } else {
                (label(&used), label(key))
            };
            graph.requires.entry(then).or_default().insert(first);
        }
    }
    let keys: BTreeMap<String, &Key> = existing.keys().map(|key| (label(key), key)).collect();
    let mut plan = Plan::default();
    let mut steps: BTreeMap<String, usize> = BTreeMap::new();
    for name in graph.order()? {
        let before = graph.requires[&name].iter();
        let key = keys[&name];
        plan.steps.push(Step {
            action,
            key: key.clone(),
            requires: existing[key].requires.clone(),
            changed: BTreeSet::new(),
            after: before
                .filter_map(|other| steps.get(other).copied())
                .collect(),
        });
        steps.insert(name, plan.steps.len() - 1);
    }
    Ok(plan)
}

fn decide(
    name: &str,
    want: &Wanted<'_>,
    have: &Existing,
    number: u32,
    requires: &BTreeMap<String, u32>,
    change: &impl Fn(&str, &str) -> Change,
) -> Result<Decision> {
    if have.resource_type != want.resource_type || !have.complete {
        return Ok(Decision::Create(number.saturating_add(1)));
    }
    let mut changed: BTreeSet<String> = want
        .properties
        .keys()
        .chain(have.properties.keys())
        .filter(|key| want.properties.get(key) != have.properties.get(key))
        .map(ToString::to_string)
        .collect();
    // A reference to a replaced resource has another id now. A property that must not change is not
    // counted: an attribute may have the same value as before, which is known only later.
    for (property, names) in want.references {
        let moved = |name: &String| requires.get(name) != have.requires.get(name);
        if names.iter().any(moved) && change(want.resource_type, property) != Change::Refuse {
            changed.insert(property.clone());
        }
    }
    let mut replace = false;
    for property in &changed {
        match change(want.resource_type, property) {
            Change::InPlace => {}
            Change::Replace => replace = true,
            Change::Refuse => {
                return Err(Error::at(
                    format!("resources.{name}.properties.{property}"),
                    "may not change once made; use another resource name",
                ));
            }
        }
    }
    replace |= changed
        .iter()
        .any(|property| replaces(want.resource_type, property, &want.properties));
    // Heat's `NoneResource._needs_update`: a placeholder type without effect never changes.
    let found = registry::find(want.resource_type);
    let inert = || found.is_some_and(|found| registry::takes_anything(want.resource_type, found));
    Ok(match (changed.is_empty() || inert(), replace) {
        (true, _) => Decision::Keep(number),
        (false, true) => Decision::Create(number.saturating_add(1)),
        (false, false) => Decision::Update(number, changed),
    })
}

/// Whether other properties of the resource ask for a replacement when this one changes, as in
/// `needs_replace_with_prop_diff` and `needs_replace` of Heat's plugins.
fn replaces(resource_type: &str, property: &str, properties: &Map) -> bool {
    let given = |name: &str| properties.get(name).filter(|value| !value.is_null());
    match (resource_type, property) {
        ("OS::Nova::Server", "flavor" | "image") => {
            given(&format!("{property}_update_policy")) == Some(&"REPLACE".into())
        }
        ("OS::Nova::Server", "user_data") => {
            given("user_data_update_policy").is_none_or(|policy| policy == "REPLACE")
        }
        ("OS::Neutron::Port", _) => given("replacement_policy") == Some(&"REPLACE_ALWAYS".into()),
        ("OS::Heat::TestResource", "value") => given("update_replace") == Some(&true.into()),
        _ => false,
    }
}

/// Adds removals: after everything else, dependents before their requirements.
fn remove(
    plan: &mut Plan,
    graph: &Numbered<'_>,
    target: &[Option<u32>],
    brought: &[Option<usize>],
    existing: &BTreeMap<Key, Existing>,
) -> Result<()> {
    let stays = |(name, number): &&Key| {
        let at = graph.number(name);
        at.and_then(|at| target[at]) == Some(*number)
    };
    let brought = |name: &str| graph.number(name).and_then(|at| brought[at]);
    let gone: Vec<&Key> = existing.keys().filter(|key| !stays(key)).collect();
    if gone.is_empty() {
        return Ok(());
    }
    let label = |(name, number): &Key| format!("{name}#{number}");
    let labels: BTreeMap<(&str, u32), String> = gone
        .iter()
        .map(|key| ((key.0.as_str(), key.1), label(key)))
        .collect();
    // The reverse graph: a resource is removed after those that require it.
    let mut reversed = Graph::default();
    for label in labels.values() {
        reversed.requires.insert(label.clone(), BTreeSet::new());
    }
    let mut users: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for (key, have) in existing {
        let own = labels.get(&(key.0.as_str(), key.1));
        for (name, number) in &have.requires {
            let Some(required) = labels.get(&(name.as_str(), *number)) else {
                continue;
            };
            if let (Some(own), Some(waits)) = (own, reversed.requires.get_mut(required)) {
                waits.insert(own.clone());
            }
            users.entry(required).or_default().extend(brought(&key.0));
        }
    }
    let keys: BTreeMap<&str, &Key> = gone
        .into_iter()
        .map(|key| (labels[&(key.0.as_str(), key.1)].as_str(), key))
        .collect();
    let mut steps: BTreeMap<String, usize> = BTreeMap::new();
    for name in reversed.order()? {
        let key = keys[name.as_str()];
        let mut after: BTreeSet<usize> = brought(&key.0).into_iter().collect();
        after.extend(users.get(name.as_str()).into_iter().flatten());
        after.extend(
            reversed.requires[&name]
                .iter()
                .filter_map(|user| steps.get(user)),
        );
        steps.insert(name, plan.steps.len());
        let action = if existing[key].retain {
            Action::Release
        } else {
            Action::Delete
        };
        plan.steps.push(Step {
            action,
            key: key.clone(),
            requires: BTreeMap::new(),
            changed: BTreeSet::new(),
            after,
        });
    }
    Ok(())
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
