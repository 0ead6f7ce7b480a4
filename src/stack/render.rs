//! A template with everything evaluated: what `pileus stack render` shows and
//! what a plan is made from.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::budget::Budget;
use super::environment::Environment;
use super::files::Files;
use super::functions::{Known, References, Scope};
use super::graph::{self, Graph};
use super::parameters::{Identity, Parameters};
use super::registry::{self, ResourceType};
use super::template::{Resource, Source, Template, deletion_policy};
use super::{Error, Result, typed};
use crate::stack::value::{Map, Value, json};

/// Everything a stack is rendered from.
#[derive(Debug, Clone, Default)]
pub struct Input {
    /// The template.
    pub template: Source,
    /// For `get_file` and nested templates.
    pub files: Files,
    /// Parameters, defaults and the registry.
    pub environment: Environment,
    /// Who the stack is.
    pub identity: Identity,
    /// Reference ids and attributes of resources, as far as they are known.
    pub resources: BTreeMap<String, Known>,
    /// Of the resource outside, for a nested stack.
    pub facade: Map,
    /// Parameters that are hidden, whatever the template says of them.
    pub secret: BTreeSet<String>,
    /// Of the whole tree, by the path of a group: names that it has been told before not to use.
    pub removed: BTreeMap<String, BTreeSet<String>>,
    /// What evaluating it, and what is inside of it, may still cost.
    pub budget: Budget,
    /// By the path of a group that changes a few members at a time: how many it has in the
    /// batch that is under way.
    pub sizes: BTreeMap<String, usize>,
    /// By the path of a group: the names of its members by the ids that they are referred to by.
    pub members: BTreeMap<String, BTreeMap<String, String>>,
}

/// One resource, evaluated.
#[derive(Debug, Clone)]
pub struct Rendered {
    /// The type as the template has it.
    pub kind: String,
    /// The type after the environment's registry.
    pub resolved: String,
    /// What the type's properties are, when the type is known.
    pub schema: Option<Arc<ResourceType>>,
    /// Properties, or why there are none.
    pub properties: Result<Option<Map>>,
    /// Properties after the type's schema.
    pub typed: Result<Map>,
    /// Metadata, or null.
    pub metadata: Result<Value>,
    /// Update policy, or null.
    pub update_policy: Result<Value>,
    /// `Delete`, `Retain` or `Snapshot`.
    pub deletion_policy: &'static str,
    /// The name of the condition it has, true for a function, or null.
    pub condition: Value,
    /// The id of something that exists, or null.
    pub external_id: Value,
    /// What it refers to, by property.
    pub references: BTreeMap<String, BTreeSet<String>>,
}

/// A stack, evaluated.
#[derive(Debug, Clone)]
pub struct Stack {
    /// The template it came from.
    pub template: Arc<Template>,
    /// Parameters' values.
    pub parameters: Parameters,
    /// The files it was made with.
    pub files: Files,
    /// Resources that exist, by name.
    pub resources: BTreeMap<String, Rendered>,
    /// What depends on what, Heat's own dependencies among it.
    pub graph: Graph,
    /// The part of the graph that the template does not say.
    pub hidden: BTreeMap<String, BTreeSet<String>>,
    /// One order of creation, or why there is none.
    pub order: Result<Vec<String>>,
    /// Outputs: description, and the value or why there is none.
    pub outputs: BTreeMap<String, (String, Result<Value>)>,
}

/// Where rendering stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// `template`, `parameters`, `resources` or `outputs`.
    pub stage: &'static str,
    /// What is wrong.
    pub error: Error,
}

/// Evaluates `input`. What is wrong in one property or output is told there;
/// what makes the template no template stops it.
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
    let existing = existing(&template, &scope).map_err(stop("resources"))?;
    scope.resources = &input.resources;
    scope.existing = Some(&existing);
    // Maps are made at once of what is in order: large ones take half the room so.
    let mut needed = Vec::with_capacity(existing.len());
    for (name, resource) in &template.resources {
        if existing.contains(name.as_str()) {
            let found = Needs::of(&scope, resource, &existing)
                .map_err(|error| error.below(&format!("resources.{name}")))
                .map_err(stop("resources"))?;
            needed.push((name, resource, found));
        }
    }
    for (name, output) in &template.outputs {
        scope
            .references(&output.value)
            .map_err(|error| error.below(&format!("outputs.{name}.value")))
            .map_err(stop("outputs"))?;
    }
    let mut requires = Vec::with_capacity(needed.len());
    let mut resources = Vec::with_capacity(needed.len());
    for (name, resource, needs) in needed {
        requires.push((name.clone(), needs.all()));
        let rendered = one(input, &scope, &template, name, resource, needs)
            .map_err(|error| error.below(&format!("resources.{name}")))
            .map_err(stop("resources"))?;
        resources.push((name.clone(), rendered));
    }
    let resources: BTreeMap<String, Rendered> = resources.into_iter().collect();
    let mut graph = Graph {
        requires: requires.into_iter().collect(),
    };
    let hidden = graph::hidden(&mut graph, &resources);
    let order = order(&template, &existing, &graph);
    let outputs = outputs(&template, &scope);
    // Who has overspent in one property is done with the whole stack.
    input.budget.pay(1).map_err(stop("resources"))?;
    Ok(Stack {
        template,
        parameters,
        files: input.files.clone(),
        resources,
        graph,
        hidden,
        order,
        outputs,
    })
}

/// Evaluates one resource of `stack` anew, as more is known by now; `existing` are the names
/// of the stack's resources. What depends on what stays as it is but for Heat's own
/// dependencies, which come from values: more of them may show.
///
/// # Errors
/// As [`stack()`].
pub(super) fn again(
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
    let needs = Needs {
        by_property: std::mem::take(&mut before.references),
        ..Needs::default()
    };
    let mut scope = scope(input, &template, &stack.parameters);
    scope.existing = Some(existing);
    let rendered = one(input, &scope, &template, name, resource, needs);
    let rendered = rendered.map_err(|error| Stop {
        stage: "resources",
        error: error.below(&format!("resources.{name}")),
    })?;
    let waits = graph::waits_unsaid(&rendered);
    *before = rendered;
    if waits {
        let more = graph::hidden(&mut stack.graph, &stack.resources);
        for (name, others) in more {
            stack.hidden.entry(name).or_default().extend(others);
        }
    }
    Ok(())
}

/// What values of a template may refer to.
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

/// The resources whose condition holds.
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

/// What a resource waits for, as its template says.
#[derive(Default)]
struct Needs {
    explicit: BTreeSet<String>,
    by_property: BTreeMap<String, BTreeSet<String>>,
    metadata: BTreeSet<String>,
}

impl Needs {
    fn of(scope: &Scope<'_>, resource: &Resource, existing: &HashSet<&str>) -> Result<Self> {
        let mut by_property = BTreeMap::new();
        match &resource.properties {
            Value::Object(map) if scope.is_call(map) => {
                let found = scope.references(&resource.properties);
                let found = found.and_then(|f| resolve(f, existing));
                by_property.insert("*".to_owned(), found.map_err(|e| e.below("properties"))?);
            }
            Value::Object(map) => {
                for (property, value) in map {
                    let found = scope.references(value).and_then(|f| resolve(f, existing));
                    let found = found.map_err(|e| e.below(&format!("properties.{property}")));
                    by_property.insert(property.to_string(), found?);
                }
            }
            _ => {}
        }
        let metadata = scope.references(&resource.metadata);
        let metadata = metadata.and_then(|found| resolve(found, existing));
        Ok(Self {
            explicit: resource.depends_on.iter().cloned().collect(),
            by_property,
            metadata: metadata.map_err(|error| error.below("metadata"))?,
        })
    }

    fn all(&self) -> BTreeSet<String> {
        let inner = self.by_property.values().flatten();
        inner
            .chain(&self.explicit)
            .chain(&self.metadata)
            .cloned()
            .collect()
    }
}

fn resolve(found: References, existing: &HashSet<&str>) -> Result<BTreeSet<String>> {
    if let Some(name) = found
        .resources
        .iter()
        .find(|name| !existing.contains(name.as_str()))
    {
        return Err(Error::new(format!(
            "refers to the resource `{name}`, which is not in the template or whose condition is false"
        )));
    }
    let mut all = found.resources;
    all.extend(
        found
            .names
            .into_iter()
            .filter(|name| existing.contains(name.as_str())),
    );
    Ok(all)
}

fn one(
    input: &Input,
    scope: &Scope<'_>,
    template: &Template,
    name: &str,
    resource: &Resource,
    needs: Needs,
) -> Result<Rendered> {
    let resolved = input.environment.resolve_type(name, &resource.kind);
    let schema = find_type(&input.files, &resolved);
    let properties = match &resource.properties {
        Value::Null => Ok(None),
        value => scope.evaluate(value).and_then(|value| match value {
            Value::Object(map) => Ok(Some(map)),
            Value::Null => Ok(None),
            _ => Err(Error::new("properties must be a map")),
        }),
    };
    let typed = match (&properties, &schema) {
        // What takes no properties does not fail for those that it is given.
        (Err(_), Some(schema)) if schema.properties.is_empty() => Ok(Map::new()),
        (Err(error), _) => Err(error.clone()),
        (Ok(map), schema) => {
            let empty = Map::new();
            let mut map = Cow::Borrowed(map.as_ref().unwrap_or(&empty));
            if map.values().any(Value::is_null) {
                drop_nothing(resource, scope, map.to_mut());
            }
            match schema {
                None if is_template_name(&resolved) => Ok(Map::new()),
                Some(schema) => typed::coerce(&schema.properties, &map),
                None => Ok(registry::without_nulls(map.into_owned())),
            }
        }
    };
    let policy = match scope.evaluate(&resource.deletion_policy)? {
        Value::Null => "Delete",
        other => deletion_policy(other.as_str().unwrap_or_default(), template.version)
            .map_err(|error| error.below("deletion_policy"))?,
    };
    Ok(Rendered {
        kind: resource.kind.clone(),
        resolved,
        schema,
        properties,
        typed,
        metadata: scope.evaluate(&resource.metadata),
        update_policy: scope.evaluate(&resource.update_policy),
        deletion_policy: policy,
        condition: match &resource.condition {
            Value::Object(_) => Value::Bool(true),
            named => named.clone(),
        },
        external_id: scope.evaluate(&resource.external_id)?,
        references: needs.by_property,
    })
}

/// A property whose function gives nothing counts as not given.
fn drop_nothing(resource: &Resource, scope: &Scope<'_>, map: &mut Map) {
    if let Value::Object(raw) = &resource.properties {
        map.retain(|name, value| {
            !value.is_null() || raw.get(name).is_none_or(|raw| !scope.is_nothing(raw))
        });
    }
}

/// The schema of a type, of a template among the files, or nothing.
fn find_type(files: &Files, name: &str) -> Option<Arc<ResourceType>> {
    match registry::find(name) {
        Some(kind) => Some(kind.clone()),
        None if is_template_name(name) => files.kind(name),
        None => None,
    }
}

/// Whether a type's name is that of a template.
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

fn outputs(template: &Template, scope: &Scope<'_>) -> BTreeMap<String, (String, Result<Value>)> {
    let one = |output: &super::template::Output| {
        if !output.condition.is_null() && !scope.condition(&output.condition)? {
            return Ok(Value::Null);
        }
        scope.evaluate(&output.value)
    };
    template
        .outputs
        .iter()
        .map(|(name, output)| (name.clone(), (output.description.clone(), one(output))))
        .collect()
}

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

impl Stack {
    /// The stack as JSON: parameters, resources, outputs, order.
    #[must_use]
    pub fn into_json(self) -> Value {
        let unknown = |resource: &&Rendered| {
            resource.schema.is_none() && !is_template_name(&resource.resolved)
        };
        let unknown = self.resources.values().find(unknown).map(|resource| {
            let error = format!("the resource type `{}` is not known", resource.kind);
            Error::new(error)
        });
        let mut resources = Map::with_capacity(self.resources.len());
        for (name, resource) in self.resources {
            let entry = resource.into_json(&self.graph.requires[&name], self.hidden.get(&name));
            resources.insert(name, entry);
        }
        let mut outputs = Map::new();
        for (name, (description, value)) in self.outputs {
            let mut entry = Map::new();
            entry.insert("description", description.into());
            match value {
                Ok(value) => entry.insert("value", value),
                Err(error) => entry.insert("error", error_json("output", &error)),
            };
            outputs.insert(name, Value::Object(entry));
        }
        let mut result = Map::new();
        result.insert("parameters", self.parameters.values.into());
        result.insert("resources", resources.into());
        result.insert("outputs", outputs.into());
        let error = match self.order {
            Ok(order) => {
                result.insert("order", order.into());
                unknown
            }
            Err(error) => Some(unknown.unwrap_or(error)),
        };
        if let Some(error) = error {
            result.insert("order_error", error_json("dependencies", &error));
        }
        Value::Object(result)
    }
}

impl Rendered {
    fn into_json(self, all: &BTreeSet<String>, hidden: Option<&BTreeSet<String>>) -> Value {
        let mut result = Map::with_capacity(12);
        let mut put = |key: &str, value: Value| {
            if !value.is_null() {
                result.insert(key.to_owned(), value);
            }
        };
        let names = |names: &BTreeSet<String>| names.iter().cloned().collect::<Value>();
        let said = |name: &&String| hidden.is_none_or(|hidden| !hidden.contains(*name));
        put("type", self.kind.into());
        put("requires", all.iter().filter(said).cloned().collect());
        put("waits_for", hidden.map(names).unwrap_or_default());
        put("deletion_policy", self.deletion_policy.into());
        put("condition", self.condition);
        put("external_id", self.external_id);
        match self.properties {
            Ok(Some(map)) if map.is_empty() => {}
            Ok(Some(map)) => put("properties", Value::Object(map)),
            Ok(None) => {}
            Err(error) => put("properties_error", error_json("properties", &error)),
        }
        match self.typed {
            Ok(map) => put("typed_properties", Value::Object(map)),
            Err(error) => put(
                "typed_properties_error",
                error_json("typed_properties", &error),
            ),
        }
        for (key, value) in [
            ("metadata", self.metadata),
            ("update_policy", self.update_policy),
        ] {
            match value {
                Ok(value) => put(key, value),
                Err(error) => put(&format!("{key}_error"), error_json(key, &error)),
            }
        }
        Value::Object(result)
    }
}
