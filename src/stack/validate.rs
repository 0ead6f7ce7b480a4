//! Validates templates: everything that Heat would refuse before it creates anything.

use super::render::{self, Input, Rendered, Stack, Stop};
use super::template::Template;
use super::{Error, Result, typed};
use super::{expand, registry};
use crate::value::{Map, Value, json};

/// What `pileus stack validate` prints: the resources of the stack and of those
/// inside, in an order of creation, or `{"error": …}`.
#[must_use]
pub fn report(input: &Input) -> Value {
    match expand::expand(input) {
        Ok(tree) => {
            let resources = tree.resources().into_iter().map(|(path, kind)| {
                let mut path = path.into_iter();
                let first = path.next().unwrap_or_default();
                let path = path.fold(first, |path, name| format!("{path}.{name}"));
                json!({"path": path, "type": kind})
            });
            json!({
                "valid": true,
                "resources": resources.collect::<Vec<_>>(),
                "notes": input.environment.notes,
            })
        }
        Err(stop) => stop.to_json(),
    }
}

/// Checks one rendered stack, without its nested stacks.
///
/// # Errors
/// For the first thing that stands in the way.
pub fn stack(stack: &Stack) -> std::result::Result<(), Stop> {
    let at = |stage| move |error| Stop { stage, error };
    template(&stack.template).map_err(at("template"))?;
    // What lacks its value is wrong wherever it is used.
    stack.complete()?;
    if let Some(error) = &stack.refused {
        return Err(at("template")(error.clone()));
    }
    stack.order.as_ref().map_err(|error| Stop {
        stage: "dependencies",
        error: error.clone(),
    })?;
    for (name, resource) in &stack.resources {
        properties(resource)
            .map_err(|error| error.below(&format!("resources.{name}")))
            .map_err(at("properties"))?;
    }
    Ok(())
}

fn template(template: &Template) -> Result<()> {
    if let Some(name) = template.unknown.first() {
        return Err(Error::at(
            name,
            "there is no such section in this template version",
        ));
    }
    Ok(())
}

fn properties(resource: &Rendered) -> Result<()> {
    if resource.schema.is_none() {
        return Err(Error::at(
            "type",
            if render::is_template_name(&resource.resource_type) {
                format!(
                    "the template `{}` is not among the files",
                    resource.resource_type
                )
            } else {
                format!(
                    "the resource type `{}` is not known",
                    resource.declared_type
                )
            },
        ));
    }
    let unknown_yet = |name: &str| {
        let found = |key: &str| resource.references.get(key).is_some_and(|r| !r.is_empty());
        found(name) || found("*")
    };
    constraints(resource, &unknown_yet)
}

/// Whether a resource's properties are such as its type takes. Of those that are
/// `unknown_yet` only the shape is looked at.
///
/// # Errors
/// For the first one that is not.
pub(super) fn constraints(resource: &Rendered, unknown_yet: &dyn Fn(&str) -> bool) -> Result<()> {
    let Some(schema) = &resource.schema else {
        return Ok(());
    };
    let empty = Map::new();
    let given = match &resource.properties {
        Ok(map) => map.as_ref().unwrap_or(&empty),
        Err(error) => return Err(error.clone().below("properties")),
    };
    // What exists already needs no properties.
    if !resource.external_id.is_null() {
        return Ok(());
    }
    if let Err(error) = &resource.typed {
        return Err(error.clone().below("properties"));
    }
    // A type with a builtin template has the properties of that template.
    if schema.mapped.is_some() || registry::takes_anything(&resource.resource_type, schema) {
        return Ok(());
    }
    typed::check(&schema.properties, given, unknown_yet).map_err(|error| error.below("properties"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::{environment::Environment, yaml};
    use super::*;

    fn check(template: &str, files: &[(&str, &str)]) -> Value {
        report(&Input {
            template: yaml::parse(template).unwrap().into(),
            files: files
                .iter()
                .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
                .collect(),
            environment: Environment::default(),
            ..Input::default()
        })
    }

    fn paths(report: &Value) -> Vec<&str> {
        let resources = report["resources"].as_array().unwrap();
        resources
            .iter()
            .filter_map(|r| r["path"].as_str())
            .collect()
    }

    const MEMBER: &str = "heat_template_version: newton\nparameters: {n: {type: string}}\nresources:\n  v: {type: 'OS::Heat::Value', properties: {value: {get_param: n}}}\n";

    #[test]
    fn a_group_of_templates_is_expanded() {
        let report = check(
            "heat_template_version: newton\nresources:\n  g:\n    type: OS::Heat::ResourceGroup\n    properties:\n      count: 2\n      removal_policies: [{resource_list: ['0']}]\n      resource_def: {type: m.yaml, properties: {n: 'x-%index%'}}\n",
            &[("m.yaml", MEMBER)],
        );
        assert_eq!(
            paths(&report),
            ["g.1.v", "g.1", "g.2.v", "g.2", "g"],
            "{report}"
        );
    }

    #[test]
    fn errors_that_heat_reports_are_reported_with_their_place() {
        let report = check(
            "heat_template_version: newton\nresources:\n  s: {type: 'OS::Nova::Server', properties: {flavour: x, flavor: m1}}\n",
            &[],
        );
        assert_eq!(report["error"]["path"], "resources.s.properties.flavour");
        let report = check(
            "heat_template_version: newton\nresources:\n  s: {type: 'OS::No::Thing'}\n",
            &[],
        );
        assert_eq!(report["error"]["path"], "resources.s.type");
        let report = check(
            "heat_template_version: newton\nresources:\n  s: {type: m.yaml}\n",
            &[("m.yaml", MEMBER)],
        );
        assert_eq!(report["error"]["path"], "resources.s.properties.n");
    }

    #[test]
    fn all_parameters_without_a_value_are_reported_together() {
        let error = |template: &str| check(template, &[])["error"].to_string();
        assert!(error(MEMBER).contains(r#""path":"parameters.n""#));
        let cfn = "AWSTemplateFormatVersion: 2010-09-09\nParameters: {Key: {Type: String}}\n\
            Resources: {S: {Type: 'OS::Heat::Value', Properties: {value: {Ref: Key}}}}\n";
        assert!(error(cfn).contains(r#""path":"parameters.Key""#));
        let many: Vec<String> = (10..40)
            .map(|n| format!("p{n}: {{type: string}}"))
            .collect();
        let many = many.join(", ");
        let many = error(&format!(
            "heat_template_version: newton\nparameters: {{{many}}}"
        ));
        assert!(
            many.contains("p10, p11, ") && many.contains("p29 and 10 more have"),
            "{many}"
        );
    }

    #[test]
    fn a_template_that_contains_itself_is_refused() {
        let own = "heat_template_version: newton\nresources: {r: {type: own.yaml}}\n";
        let report = check(own, &[("own.yaml", own)]);
        assert!(
            report["error"]["message"]
                .as_str()
                .unwrap()
                .contains("nest"),
            "{report}"
        );
    }

    #[test]
    fn groups_of_groups_have_a_limit() {
        let report = check(
            "heat_template_version: newton\nresources:\n  g:\n    type: OS::Heat::ResourceGroup\n    properties:\n      count: 100\n      resource_def: {type: 'OS::Heat::ResourceGroup', properties: {count: 100, resource_def: {type: 'OS::Heat::None'}}}\n",
            &[],
        );
        assert!(
            report["error"]["message"]
                .as_str()
                .unwrap()
                .contains("1000"),
            "{report}"
        );
    }

    #[test]
    fn the_resources_of_a_chain_are_created_in_order() {
        let report = check(
            "heat_template_version: newton\nresources:\n  c: {type: 'OS::Heat::ResourceChain', properties: {resources: ['OS::Heat::None', 'OS::Heat::RandomString']}}\n",
            &[],
        );
        assert_eq!(paths(&report), ["c.0", "c.1", "c"]);
    }
}
