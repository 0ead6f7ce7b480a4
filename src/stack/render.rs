//! Evaluates a whole template: the result is shown by `pileus stack render`, and plans are made from
//! it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::budget::Budget;
use super::environment::Environment;
use super::files::Files;
use super::functions::{Known, Scope};
use super::graph::{self, Graph};
use super::parameters::{Identity, Parameters};
use super::registry::{self, ResourceType};
use super::requirements::{self, Needs};
use super::template::{Output, Resource, Source, Template, deletion_policy};
use super::{Error, Result, typed};
use crate::value::{Map, Text, Value, weight};

/// How many bytes the properties of all resources of a stack may have, with those of its nested
/// stacks: they are in memory all at once, whatever made them.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// Takes the size of a resource's properties from what is left.
pub(super) fn take_room(room: &mut usize, properties: Option<&Map>) -> Result<()> {
    let size = properties.map_or(0, |map| {
        map.iter()
            .map(|(key, value)| key.len() + weight(value))
            .sum()
    });
    *room = room.checked_sub(size).ok_or_else(|| {
        Error::new(format!(
            "the properties of all resources have more than {} MiB; make another Stack of some",
            MAX_BYTES >> 20
        ))
    })?;
    Ok(())
}

/// The input for rendering a stack.
#[derive(Debug, Clone, Default)]
pub struct Input {
    /// The template.
    pub template: Source,
    /// Files for `get_file` and nested templates.
    pub files: Files,
    /// Parameters, defaults and the registry.
    pub environment: Environment,
    /// Name and ids of the stack.
    pub identity: Identity,
    /// Reference ids and attributes of resources, as far as they are known.
    pub resources: BTreeMap<String, Known>,
    /// For a nested stack: its resource in the outer stack.
    pub facade: Map,
    /// Parameters that are hidden even if the template does not say so.
    pub secret: BTreeSet<String>,
    /// For the whole tree, by the path of a group: member names that removal policies have excluded
    /// before.
    pub removed: BTreeMap<String, BTreeSet<String>>,
    /// The budget for evaluating it with its nested stacks.
    pub budget: Budget,
    /// By the path of a group with batches: the number of members in the current batch.
    pub sizes: BTreeMap<String, usize>,
    /// By the path of a group: names of its members by reference id.
    pub members: BTreeMap<String, BTreeMap<String, String>>,
}

/// One resource, evaluated.
#[derive(Debug, Clone)]
pub struct Rendered {
    /// The type in the template.
    pub declared_type: Text,
    /// The type after the environment's registry.
    pub resource_type: Text,
    /// The schema of the type, if it is known.
    pub schema: Option<Arc<ResourceType>>,
    /// Properties, or the error in them.
    pub properties: Result<Option<Map>>,
    /// Properties converted by the type's schema.
    pub typed: Result<Map>,
    /// Metadata, or null.
    pub metadata: Result<Value>,
    /// Update policy, or null.
    pub update_policy: Result<Value>,
    /// `Delete`, `Retain` or `Snapshot`.
    pub deletion_policy: &'static str,
    /// The name of the condition it has, true for a function, or null.
    pub condition: Value,
    /// The id of an existing object, or null.
    pub external_id: Value,
    /// By property: the resources that it refers to.
    pub references: BTreeMap<String, BTreeSet<String>>,
}

/// A stack, evaluated.
#[derive(Debug, Clone)]
pub struct Stack {
    /// Its template.
    pub template: Arc<Template>,
    /// Parameters' values.
    pub parameters: Parameters,
    /// Its files.
    pub files: Files,
    /// Resources whose condition is true, by name.
    pub resources: BTreeMap<String, Rendered>,
    /// All dependencies, including the implicit ones of Heat's types.
    pub graph: Graph,
    /// The implicit dependencies among them.
    pub implicit: BTreeMap<String, BTreeSet<String>>,
    /// An order of creation, or why there is none.
    pub order: Result<Vec<String>>,
    /// Outputs: description, and the value or the error in it.
    pub outputs: BTreeMap<String, (String, Result<Value>)>,
    /// The first error that prevents a stack, but not the evaluation.
    pub refused: Option<Error>,
}

/// How many parameters without a value a message names.
const MAX_NAMED: usize = 20;

/// An error that stopped the rendering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// `template`, `parameters`, `resources` or `outputs`.
    pub stage: &'static str,
    /// What is wrong.
    pub error: Error,
}

/// Evaluates `input`. An error in one property or output is kept there; an error of the template
/// itself stops the rendering.
///
/// # Errors
/// When the template, its parameters or its references are wrong.
pub fn stack(input: &Input) -> std::result::Result<Stack, Stop> {
    let stop = |stage| move |error| Stop { stage, error };
    let template = input.template.read().map_err(stop("template"))?;
    let mut parameters = Parameters::resolve(
        &template.parameters,
        template.version,
        &input.environment.parameters,
        &input.environment.parameter_defaults,
        &input.identity,
    )
    .map_err(stop("parameters"))?;
    let secret = input.secret.iter().cloned();
    parameters.hidden.extend(secret);
    let mut scope = scope(input, &template, &parameters);
    let nothing = BTreeMap::new();
    scope.resources = &nothing;
    for (name, condition) in &template.conditions {
        scope
            .check_condition(condition)
            .map_err(|error| error.below(&format!("conditions.{name}")))
            .map_err(stop("resources"))?;
    }
    let existing = existing(&template, &scope).map_err(stop("resources"))?;
    let shown = shown(&template, &scope).map_err(stop("outputs"))?;
    scope.resources = &input.resources;
    scope.existing = Some(&existing);
    let mut refused = None;
    // Maps are built from sorted lists: large ones need half the memory.
    let mut needed = Vec::with_capacity(existing.len());
    for (name, resource) in &template.resources {
        let below = |error: Error| error.below(&format!("resources.{name}"));
        let mut found = Needs::of(&scope, &template, name, &existing)
            .map_err(below)
            .map_err(stop("resources"))?;
        refused = refused.or_else(|| found.refused.take().map(below));
        if existing.contains(name.as_str()) {
            needed.push((name, resource, found));
        }
    }
    for (name, output) in &shown {
        let below = |error: Error| error.below(&format!("outputs.{name}.value"));
        let found = (scope.references(&output.value)).map_err(below);
        let found = found.map_err(stop("outputs"))?;
        refused = refused.or_else(|| found.refused.map(below));
    }
    let mut requires = Vec::with_capacity(needed.len());
    let mut resources = Vec::with_capacity(needed.len());
    let mut room = MAX_BYTES;
    for (name, resource, needs) in needed {
        requires.push((name.clone(), needs.all()));
        let rendered = one(input, &scope, name, resource, needs)
            .map_err(|error| error.below(&format!("resources.{name}")))
            .map_err(stop("resources"))?;
        take_room(
            &mut room,
            rendered.properties.as_ref().ok().and_then(Option::as_ref),
        )
        .map_err(stop("resources"))?;
        resources.push((name.clone(), rendered));
    }
    let resources: BTreeMap<String, Rendered> = resources.into_iter().collect();
    let mut graph = Graph {
        requires: requires.into_iter().collect(),
    };
    let implicit = graph::add_implicit(&mut graph, &resources);
    let order = match requirements::error_before_order(&scope, &template, &resources) {
        Some(error) => Err(error),
        None => order(&template, &existing, &graph),
    };
    let outputs = outputs(&template, &scope, &shown);
    // When the budget is used up in one property, the whole stack is refused.
    input.budget.spend(1).map_err(stop("resources"))?;
    Ok(Stack {
        template,
        parameters,
        files: input.files.clone(),
        resources,
        graph,
        implicit,
        order,
        outputs,
        refused,
    })
}

/// Evaluates one resource of `stack` again, because more values are known; `existing` are the names
/// of the stack's resources. Dependencies stay the same, except that there may be more implicit ones,
/// which depend on values.
///
/// # Errors
/// As [`stack()`].
pub(super) fn render_again(
    input: &Input,
    stack: &mut Stack,
    existing: &HashSet<&str>,
    name: &str,
) -> std::result::Result<(), Stop> {
    let template = Arc::clone(&stack.template);
    let Some((resource, before)) =
        (template.resources.get(name)).zip(stack.resources.get_mut(name))
    else {
        return Ok(());
    };
    let needs = Needs::known_before(std::mem::take(&mut before.references));
    let mut scope = scope(input, &template, &stack.parameters);
    scope.existing = Some(existing);
    let rendered = one(input, &scope, name, resource, needs);
    let rendered = rendered.map_err(|error| Stop {
        stage: "resources",
        error: error.below(&format!("resources.{name}")),
    })?;
    let waits = graph::may_have_implicit_requirements(&rendered);
    *before = rendered;
    if waits {
        let more = graph::add_implicit(&mut stack.graph, &stack.resources);
        for (name, others) in more {
            stack.implicit.entry(name).or_default().extend(others);
        }
    }
    Ok(())
}

/// Everything that values of a template may refer to.
fn scope<'a>(input: &'a Input, template: &'a Template, parameters: &'a Parameters) -> Scope<'a> {
    Scope {
        version: template.version,
        parameters: &parameters.values,
        resources: &input.resources,
        existing: None,
        files: &input.files,
        mappings: &template.mappings,
        conditions: &template.conditions,
        facade: &input.facade,
        budget: input.budget.clone(),
        held: RefCell::default(),
    }
}

/// The resources whose condition is true.
fn existing<'t>(template: &'t Template, scope: &Scope<'_>) -> Result<HashSet<&'t str>> {
    let mut existing = HashSet::with_capacity(template.resources.len());
    for (name, resource) in &template.resources {
        let exists = resource.condition.is_null()
            || scope
                .condition(&resource.condition)
                .map_err(|error| error.below(&format!("resources.{name}.condition")))?;
        if exists {
            existing.insert(name.as_str());
        }
    }
    Ok(existing)
}

/// The outputs whose condition is true.
fn shown<'t>(template: &'t Template, scope: &Scope<'_>) -> Result<BTreeMap<&'t str, &'t Output>> {
    let mut shown = BTreeMap::new();
    for (name, output) in &template.outputs {
        let below = |error: Error| error.below(&format!("outputs.{name}.condition"));
        if output.condition.is_null() || scope.condition(&output.condition).map_err(below)? {
            shown.insert(name.as_str(), output);
        }
    }
    Ok(shown)
}

fn one(
    input: &Input,
    scope: &Scope<'_>,
    name: &str,
    resource: &Resource,
    needs: Needs,
) -> Result<Rendered> {
    let environment = &input.environment;
    let resource_type = if environment.registry.is_empty() {
        resource.declared_type.clone()
    } else {
        environment
            .resolve_type(name, &resource.declared_type)
            .into()
    };
    let schema = find_type(&input.files, &resource_type);
    let properties = match &resource.properties {
        Value::Null => Ok(None),
        value => scope.evaluate(value).and_then(|value| match value {
            Value::Object(map) => Ok(Some(map)),
            Value::Null => Ok(None),
            _ => Err(Error::new("properties must be a map")),
        }),
    };
    let typed = match (&properties, &schema) {
        // An error in a property that the type does not have is ignored.
        (Err(_), Some(schema)) => {
            let taken = properties_of_type(scope, resource, schema);
            taken.and_then(|map| typed::coerce(&schema.properties, &map))
        }
        (Err(error), None) => Err(error.clone()),
        (Ok(map), schema) => {
            let empty = Map::new();
            let mut map = Cow::Borrowed(map.as_ref().unwrap_or(&empty));
            if map.values().any(Value::is_null) {
                remove_empty_results(resource, scope, map.to_mut());
            }
            match schema {
                None if is_template_name(&resource_type) => Ok(Map::new()),
                Some(schema) => {
                    let typed = typed::coerce(&schema.properties, &map);
                    typed.map(|typed| with_description(typed, schema, resource))
                }
                None => Ok(registry::without_nulls(map.into_owned())),
            }
        }
    };
    Ok(Rendered {
        declared_type: resource.declared_type.clone(),
        resource_type,
        schema,
        properties,
        typed,
        metadata: scope.evaluate(&resource.metadata),
        update_policy: scope.evaluate(&resource.update_policy),
        deletion_policy: policy(scope, resource)?,
        condition: match &resource.condition {
            Value::Object(_) => Value::Bool(true),
            named => named.clone(),
        },
        external_id: scope.evaluate(&resource.external_id)?,
        references: needs.by_property,
    })
}

/// The properties of a resource that its type has; errors in others are ignored.
fn properties_of_type(
    scope: &Scope<'_>,
    resource: &Resource,
    schema: &ResourceType,
) -> Result<Map> {
    let mut taken = Map::new();
    let given = match &resource.properties {
        Value::Object(map) if !scope.is_call(map) => map,
        value => return scope.evaluate(value).map(|_| taken),
    };
    for (name, value) in given {
        if schema.properties.contains_key(name.as_str()) {
            let value = scope.evaluate(value).map_err(|error| error.below(name))?;
            taken.insert(name.clone(), value);
        }
    }
    remove_empty_results(resource, scope, &mut taken);
    Ok(taken)
}

/// The deletion policy of a resource; an external resource is always retained.
pub(super) fn policy(scope: &Scope<'_>, resource: &Resource) -> Result<&'static str> {
    let policy = match scope.evaluate(&resource.deletion_policy)? {
        Value::Null => "Delete",
        other => deletion_policy(other.as_str().unwrap_or_default(), scope.version)
            .map_err(|error| error.below("deletion_policy"))?,
    };
    Ok(if resource.external_id.is_null() {
        policy
    } else {
        "Retain"
    })
}

/// Uses the resource's `description` as the property of that name, if its type has one that can be
/// updated.
fn with_description(mut typed: Map, schema: &ResourceType, resource: &Resource) -> Map {
    let takes = schema
        .properties
        .get("description")
        .is_some_and(|it| it.update);
    if takes && !resource.description.is_empty() && !typed.contains_key("description") {
        typed.insert("description", Value::from(resource.description.clone()));
    }
    typed
}

/// Removes properties whose function returns nothing: they count as not given.
fn remove_empty_results(resource: &Resource, scope: &Scope<'_>, map: &mut Map) {
    if let Value::Object(raw) = &resource.properties {
        map.retain(|name, value| {
            !value.is_null() || raw.get(name).is_none_or(|raw| !scope.is_nothing(raw))
        });
    }
}

/// The schema of a type or of a template among the files.
fn find_type(files: &Files, name: &str) -> Option<Arc<ResourceType>> {
    match registry::find(name) {
        Some(kind) => Some(kind.clone()),
        None if is_template_name(name) => files.resource_type(name),
        None => None,
    }
}

/// Whether the name of a type is the name of a template.
#[must_use]
pub fn is_template_name(name: &str) -> bool {
    [".yaml", ".yml", ".template", ".json"]
        .iter()
        .any(|suffix| name.ends_with(suffix))
        || name.starts_with("http://")
        || name.starts_with("https://")
        || name.starts_with("file://")
}

fn order(template: &Template, existing: &HashSet<&str>, graph: &Graph) -> Result<Vec<String>> {
    let there = |name: &&String| existing.contains(name.as_str());
    for name in template.resources.keys().filter(there) {
        for dependency in &template.resources[name].depends_on {
            if !template.resources.contains_key(dependency) {
                return Err(Error::at(
                    format!("resources.{name}.depends_on"),
                    format!("there is no resource `{dependency}`"),
                ));
            }
        }
    }
    graph.order()
}

fn outputs(
    template: &Template,
    scope: &Scope<'_>,
    shown: &BTreeMap<&str, &Output>,
) -> BTreeMap<String, (String, Result<Value>)> {
    let one = |name: &String| match shown.get(name.as_str()) {
        Some(output) => scope.evaluate(&output.value),
        None => Ok(Value::Null),
    };
    template
        .outputs
        .iter()
        .map(|(name, output)| (name.clone(), (output.description.clone(), one(name))))
        .collect()
}

impl Stack {
    /// Checks that every parameter has a value.
    ///
    /// # Errors
    /// Names the parameters without a value, up to a limit.
    pub fn complete(&self) -> std::result::Result<(), Stop> {
        let missing = &self.parameters.missing;
        let names: Vec<&str> = missing.iter().take(MAX_NAMED).map(String::as_str).collect();
        let error = match names[..] {
            [] => return Ok(()),
            [name] => Error::at(
                format!("parameters.{name}"),
                format!("{}; give one", super::parameters::MISSING),
            ),
            _ => {
                let names = names.join(", ");
                let more = match missing.len().saturating_sub(MAX_NAMED) {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                let error = format!("{names}{more} have no value and no default; give each one");
                Error::at("parameters", error)
            }
        };
        Err(Stop {
            stage: "parameters",
            error,
        })
    }
}
