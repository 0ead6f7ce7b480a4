//! A stack with its nested stacks: templates used as types, groups, and chains. Members have the names
//! `0`, `1`, … .

use std::collections::{BTreeMap, BTreeSet};

use super::budget::Budget;
use super::environment::Environment;
use super::render::{self, Input, Rendered, Stack, Stop};
use super::template::{MAX_RESOURCES, Source};
use super::{Error, Result, yaml};
use crate::value::{Map, Value, json};

/// How deep stacks may nest; Heat's `max_nested_stack_depth`.
pub const MAX_NESTING: usize = 5;

/// The version of the templates that are generated for groups.
const MADE: &str = "2015-04-30";

/// A stack and its nested stacks.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The stack itself.
    pub stack: Stack,
    /// By resource: its nested stack.
    pub nested: BTreeMap<String, Tree>,
}

impl Tree {
    /// The resources of this stack and of all nested ones, in an order of creation: path from the
    /// outermost stack, and type. A nested stack comes after its own resources.
    #[must_use]
    pub fn resources(&self) -> Vec<(Vec<String>, String)> {
        let mut found = Vec::new();
        self.walk(&mut Vec::new(), &mut found);
        found
    }

    fn walk(&self, path: &mut Vec<String>, found: &mut Vec<(Vec<String>, String)>) {
        for name in self.stack.order.iter().flatten() {
            path.push(name.clone());
            if let Some(inner) = self.nested.get(name) {
                inner.walk(path, found);
            }
            let resource_type = self.stack.resources[name].resource_type.to_string();
            found.push((path.clone(), resource_type));
            path.pop();
        }
    }
}

/// Renders `input` with its nested stacks, and validates everything.
///
/// # Errors
/// For the first error.
pub fn expand(input: &Input) -> std::result::Result<Tree, Stop> {
    let mut left = MAX_RESOURCES;
    at_depth(input, 0, &mut left)
}

fn at_depth(input: &Input, depth: usize, left: &mut usize) -> std::result::Result<Tree, Stop> {
    let stop = |error| Stop {
        stage: "resources",
        error,
    };
    if depth > MAX_NESTING {
        return Err(stop(Error::new(format!(
            "stacks nest deeper than {MAX_NESTING} levels"
        ))));
    }
    let stack = render::stack(input)?;
    super::validate::stack(&stack)?;
    *left = left.checked_sub(stack.resources.len()).ok_or_else(|| {
        stop(Error::new(format!(
            "more than {MAX_RESOURCES} resources in all"
        )))
    })?;
    let mut nested = BTreeMap::new();
    for (name, resource) in &stack.resources {
        let place = |error: Error| stop(error.below(&format!("resources.{name}")));
        if let Some(inner) = nested_input(input, &stack, name, resource).map_err(place)? {
            let tree = at_depth(&inner, depth + 1, left).map_err(|inner| Stop {
                stage: inner.stage,
                error: inner.error.below(&format!("resources.{name}")),
            })?;
            nested.insert(name.clone(), tree);
        }
    }
    Ok(Tree { stack, nested })
}

/// The input of a resource's nested stack, if it has one.
///
/// # Errors
/// When its template is malformed, or not among the files.
pub(super) fn nested_input(
    input: &Input,
    stack: &Stack,
    name: &str,
    resource: &Rendered,
) -> Result<Option<Input>> {
    // A resource with an `external_id` exists already.
    if !resource.external_id.is_null() {
        return Ok(None);
    }
    let properties = resource.typed.clone()?;
    let get = |key: &str| properties.get(key);
    let child = |template: Source, parameters: Map| {
        let mut identity = input.identity.clone();
        identity.name = format!("{}-{name}", identity.name);
        Input {
            template,
            files: input.files.clone(),
            environment: Environment {
                parameters,
                parameter_defaults: input.environment.parameter_defaults.clone(),
                registry: input.environment.registry.clone(),
                notes: Vec::new(),
            },
            identity,
            resources: BTreeMap::new(),
            facade: facade(resource),
            secret: BTreeSet::new(),
            // Those are only needed for the outermost stack.
            removed: BTreeMap::new(),
            budget: input.budget.clone(),
            sizes: BTreeMap::new(),
            members: BTreeMap::new(),
        }
    };
    if render::is_template_name(&resource.resource_type) {
        let template = input.files.template(&resource.resource_type)?;
        return Ok(Some(child(template, properties)));
    }
    if let Some(text) = super::builtin::template(&resource.resource_type) {
        return Ok(Some(child(yaml::parse(text)?.into(), Map::new())));
    }
    let made = match resource.resource_type.as_str() {
        "OS::Heat::ResourceGroup" => group(&properties, &input.budget)?,
        "OS::Heat::AutoScalingGroup" => {
            let size = get("desired_capacity").or_else(|| get("min_size"));
            let member = get("resource").cloned().unwrap_or_default();
            let all = (0..count(size)?).map(|at| (at.to_string(), member.clone()));
            members(&input.budget, all)?
        }
        "OS::Heat::InstanceGroup" | "AWS::AutoScaling::AutoScalingGroup" => {
            let size = get("Size")
                .or_else(|| get("DesiredCapacity"))
                .or_else(|| get("MinSize"));
            let member = json!({"type": "OS::Heat::ScaledResource", "properties": launched(stack, get("LaunchConfigurationName"))});
            let all = (0..count(size)?).map(|at| (at.to_string(), member.clone()));
            members(&input.budget, all)?
        }
        "OS::Heat::ResourceChain" => chain(&properties, &input.budget)?,
        "OS::Heat::SoftwareDeploymentGroup" | "OS::Heat::StructuredDeploymentGroup" => {
            deployments(&resource.resource_type, &properties, &input.budget)?
        }
        "OS::Heat::Stack" => {
            let text = get("template").and_then(Value::as_str).unwrap_or_default();
            let template = yaml::parse(text).map_err(|error| error.below("template"))?;
            let parameters = get("parameters").and_then(Value::as_object);
            return Ok(Some(child(
                template.into(),
                parameters.cloned().unwrap_or_default(),
            )));
        }
        "AWS::CloudFormation::Stack" => {
            let url = get("TemplateURL")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let template = input.files.template(url);
            let template = template.map_err(|error| error.below("TemplateURL"))?;
            let parameters = get("Parameters").and_then(Value::as_object);
            return Ok(Some(child(
                template,
                parameters.cloned().unwrap_or_default(),
            )));
        }
        _ => return Ok(None),
    };
    Ok(Some(child(made.into(), Map::new())))
}

/// Whether a resource is a nested stack, a group or a chain.
#[must_use]
pub fn has_nested_stack(resource: &Rendered) -> bool {
    resource.external_id.is_null()
        && (render::is_template_name(&resource.resource_type)
            || super::builtin::template(&resource.resource_type).is_some()
            || resource.resource_type == "OS::Heat::Stack"
            || resource
                .schema
                .as_ref()
                .is_some_and(|resource_type| resource_type.stack))
}

fn facade(resource: &Rendered) -> Map {
    let mut facade = Map::new();
    let value = |value: &Result<Value>| match value {
        Ok(Value::Null) | Err(_) => Value::Object(Map::new()),
        Ok(value) => value.clone(),
    };
    facade.insert("metadata", value(&resource.metadata));
    facade.insert("update_policy", value(&resource.update_policy));
    facade.insert("deletion_policy", Value::from(resource.deletion_policy));
    facade
}

fn count(value: Option<&Value>) -> Result<usize> {
    let count = value.and_then(Value::as_u64).unwrap_or(0);
    usize::try_from(count)
        .ok()
        .filter(|count| *count <= MAX_RESOURCES)
        .ok_or_else(|| Error::new(format!("a group may have {MAX_RESOURCES} members")))
}

/// A generated template with the members of a group.
fn members(budget: &Budget, members: impl Iterator<Item = (String, Value)>) -> Result<Value> {
    let resources = members.map(|(name, member)| {
        budget.spend(super::functions::weight(&member))?;
        Ok((name, member))
    });
    let resources: Map = resources.collect::<Result<_>>()?;
    Ok(json!({"heat_template_version": MADE, "resources": resources}))
}

/// The members of a group, with `%index%` replaced by the name at any depth.
fn group(properties: &Map, budget: &Budget) -> Result<Value> {
    let definition = properties.get("resource_def").and_then(Value::as_object);
    let definition: Map = super::registry::without_nulls(definition.cloned().unwrap_or_default());
    let index = properties.get("index_var").and_then(Value::as_str);
    let index = index.filter(|text| !text.is_empty()).unwrap_or("%index%");
    let removed = excluded_members(properties.get("removal_policies"));
    let total = count(properties.get("count"))?;
    let names = (0..).map(|at: usize| at.to_string());
    let names = names.filter(|name| !removed.contains(name)).take(total);
    let all = names.map(|name| {
        let mut member = definition.clone();
        for key in ["properties", "type"] {
            if let Some(value) = member.get_mut(key) {
                *value = indexed(value, index, &name);
            }
        }
        (name, Value::Object(member))
    });
    members(budget, all)
}

/// The members that removal policies exclude, by name or by reference id.
pub(super) fn excluded_members(policies: Option<&Value>) -> Vec<String> {
    let lists = policies.and_then(Value::as_array).into_iter().flatten();
    let names = lists.filter_map(|policy| policy.get("resource_list")?.as_array());
    names
        .flatten()
        .filter_map(|name| match name {
            Value::String(name) => Some(name.to_string()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        })
        .collect()
}

fn indexed(value: &Value, index: &str, name: &str) -> Value {
    match value {
        Value::String(text) => Value::from(text.as_str().replace(index, name)),
        Value::Array(items) => items
            .iter()
            .map(|item| indexed(item, index, name))
            .collect(),
        Value::Object(map) => map
            .iter()
            .map(|(key, item)| {
                (
                    key.as_str().replace(index, name),
                    indexed(item, index, name),
                )
            })
            .collect(),
        plain => plain.clone(),
    }
}

/// A chain: one resource of each type, one after the other unless `concurrent` is set.
fn chain(properties: &Map, budget: &Budget) -> Result<Value> {
    let kinds = properties.get("resources").and_then(Value::as_array);
    let kinds = kinds.cloned().unwrap_or_default();
    let concurrent = properties.get("concurrent") == Some(&Value::Bool(true));
    let shared = properties.get("resource_properties").cloned();
    let shared = shared.filter(Value::is_object).unwrap_or_else(|| json!({}));
    let all = kinds.into_iter().enumerate().map(|(at, resource_type)| {
        let mut member = json!({"type": resource_type, "properties": shared});
        if at > 0 && !concurrent {
            member["depends_on"] = json!([(at - 1).to_string()]);
        }
        (at.to_string(), member)
    });
    members(budget, all)
}

/// A deployment group: one deployment for each server.
fn deployments(resource_type: &str, properties: &Map, budget: &Budget) -> Result<Value> {
    let resource_type = resource_type.strip_suffix("Group").unwrap_or(resource_type);
    let servers = properties.get("servers").and_then(Value::as_object);
    let shared: Map = properties
        .iter()
        .filter(|(key, _)| *key != "servers")
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let all = servers.into_iter().flatten().map(|(name, server)| {
        let mut own = shared.clone();
        own.insert("server", server.clone());
        (
            name.to_string(),
            json!({"type": resource_type, "properties": own}),
        )
    });
    members(budget, all)
}

/// The properties of instances in a launch configuration of the same stack.
fn launched(stack: &Stack, name: Option<&Value>) -> Value {
    let name = name.and_then(Value::as_str).unwrap_or_default();
    let Some(configuration) = stack.resources.get(name) else {
        return json!({});
    };
    let Ok(properties) = &configuration.typed else {
        return json!({});
    };
    let known = [
        "ImageId",
        "InstanceType",
        "KeyName",
        "SecurityGroups",
        "UserData",
    ];
    let kept = properties
        .iter()
        .filter(|(key, _)| known.contains(&key.as_str()));
    Value::Object(
        kept.map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    )
}
