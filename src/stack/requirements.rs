//! The requirements of a resource: what its template refers to.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::functions::python::truthy;
use super::functions::{References, Scope};
use super::render::{self, Rendered};
use super::template::Template;
use super::{Error, Result, typed};
use crate::value::Value;

/// The requirements of a resource by its template.
#[derive(Default)]
pub(super) struct Needs {
    explicit: BTreeSet<String>,
    pub(super) by_property: BTreeMap<String, BTreeSet<String>>,
    metadata: BTreeSet<String>,
    /// It has an `external_id`, and requires nothing.
    external: bool,
    pub(super) refused: Option<Error>,
}

impl Needs {
    /// Requirements of a resource that is evaluated again.
    pub(super) fn known_before(by_property: BTreeMap<String, BTreeSet<String>>) -> Self {
        Self {
            by_property,
            ..Self::default()
        }
    }

    /// The requirements of a resource. If its condition is false only the shape of functions is
    /// checked.
    pub(super) fn of(
        scope: &Scope<'_>,
        template: &Template,
        name: &str,
        existing: &HashSet<&str>,
    ) -> Result<Self> {
        let resource = &template.resources[name];
        let mut needs = Self::default();
        let exists = existing.contains(name);
        if let Value::Object(map) = &resource.external_id
            && !scope.is_call(map)
        {
            return Err(Error::at("external_id", "must be a string, is a map"));
        }
        if exists {
            needs.external = truthy(&scope.evaluate(&resource.external_id)?);
        } else {
            render::policy(scope, resource)?;
        }
        if needs.external && !resource.depends_on.is_empty() {
            return Err(Error::at(
                "depends_on",
                "what exists already (`external_id`) cannot depend on anything; leave one of the two out",
            ));
        }
        let lenient = needs.external || !exists;
        let mut names = |value: &Value| -> Result<BTreeSet<String>> {
            if !value.is_array() && !value.is_object() {
                return Ok(BTreeSet::new());
            }
            let mut found = scope.references(value)?;
            let refused = found.refused.take();
            needs.refused = needs.refused.take().or(refused);
            if lenient {
                Ok(known(found, existing))
            } else {
                resolve(found, template, existing)
            }
        };
        let mut by_property = BTreeMap::new();
        match &resource.properties {
            Value::Object(map) if scope.is_call(map) => {
                let found = names(&resource.properties);
                by_property.insert("*".to_owned(), found.map_err(|e| e.below("properties"))?);
            }
            Value::Object(map) => {
                for (property, value) in map {
                    let found = names(value);
                    let found = found.map_err(|e| e.below(&format!("properties.{property}")))?;
                    if !found.is_empty() {
                        by_property.insert(property.to_string(), found);
                    }
                }
            }
            _ => {}
        }
        let metadata = names(&resource.metadata).map_err(|error| error.below("metadata"))?;
        for value in [&resource.update_policy, &resource.external_id] {
            scope.references(value)?;
        }
        Ok(Self {
            explicit: resource.depends_on.iter().cloned().collect(),
            by_property,
            metadata,
            ..needs
        })
    }

    pub(super) fn all(&self) -> BTreeSet<String> {
        if self.external {
            return BTreeSet::new();
        }
        let inner = self.by_property.values().flatten();
        inner
            .chain(&self.explicit)
            .chain(&self.metadata)
            .cloned()
            .collect()
    }
}

/// The resources that are referred to, all of which must exist.
fn resolve(
    found: References,
    template: &Template,
    existing: &HashSet<&str>,
) -> Result<BTreeSet<String>> {
    if let Some(error) = found.nameless {
        return Err(error);
    }
    // A name that no resource has may be a parameter's.
    let names = found.names.iter();
    let names = names.filter(|name| template.resources.contains_key(*name));
    let mut missing =
        (found.resources.iter().chain(names)).filter(|name| !existing.contains(name.as_str()));
    if let Some(name) = missing.next() {
        return Err(Error::new(format!(
            "refers to the resource `{name}`, which is not in the template or whose condition is false"
        )));
    }
    Ok(known(found, existing))
}

fn known(found: References, existing: &HashSet<&str>) -> BTreeSet<String> {
    let mut all = found.resources;
    all.extend(found.names);
    all.retain(|name| existing.contains(name.as_str()));
    all
}

/// Properties that a type reads before the order is computed; if they are wrong, Heat refuses the
/// whole stack.
const READ_BEFORE_ORDER: [(&str, &str); 5] = [
    ("OS::Heat::RandomString", "sequence"),
    ("OS::Magnum::BayModel", "ssh_authorized_key"),
    ("OS::Neutron::RBACPolicy", "object_type"),
    ("OS::Neutron::Router", "l3_agent_id"),
    ("OS::Nova::Server", "user_data_format"),
];

/// The error of a property that is read before the order is computed.
pub(super) fn error_before_order(
    scope: &Scope<'_>,
    template: &Template,
    resources: &BTreeMap<String, Rendered>,
) -> Option<Error> {
    let wrong = resources
        .iter()
        .filter(|(_, rendered)| rendered.typed.is_err());
    wrong
        .flat_map(|(name, rendered)| {
            READ_BEFORE_ORDER
                .iter()
                .map(move |early| (name, rendered, early))
        })
        .filter(|(_, rendered, (resource_type, _))| rendered.resource_type == *resource_type)
        .find_map(|(name, rendered, (_, property))| {
            let value = template.resources[name].properties.get(property)?;
            let schema = rendered.schema.as_ref()?.properties.get(*property)?;
            let value = scope.evaluate(value);
            let error = value
                .and_then(|value| typed::convert(schema, Some(&value)))
                .err()?;
            Some(error.below(&format!("resources.{name}.properties.{property}")))
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use crate::value::json;

    use super::*;

    fn rendered(template: &Value) -> Value {
        super::super::cases::rendered(json!({"template": template}))
    }

    fn error_of(template: &Value) -> String {
        let result = rendered(template);
        let error = &result["error"];
        let part = |key: &str| error[key].as_str().unwrap_or_default();
        format!("{}: {}", part("path"), part("message"))
    }

    #[test]
    fn functions_of_resources_with_a_false_condition_are_checked() {
        let template = |condition: Value, resource: Value, output: Value| {
            json!({"heat_template_version": "pike", "conditions": {"no": {"equals": [1, 2]}, "c": condition},
                "resources": {"r": resource}, "outputs": {"o": output}})
        };
        let fine = json!({"type": "OS::Heat::None", "condition": "no"});
        let output = json!({"value": 1});
        let burn = json!({"if": [true, "burn", "Delete"]});
        let burnt = json!({"type": "OS::Heat::None", "condition": "no", "deletion_policy": burn});
        assert!(error_of(&template(json!(true), burnt, output.clone())).contains("burn"));
        let wrong = json!({"type": "OS::Heat::None", "condition": "no", "properties": {"p": {"list_join": "x"}}});
        let unused = json!({"equals": [1]});
        assert!(
            error_of(&template(unused, fine.clone(), output.clone()))
                .starts_with("conditions.c.equals")
        );
        let refused = error_of(&template(json!(true), wrong, output));
        assert!(
            refused.starts_with("resources.r.properties.p.list_join"),
            "{refused}"
        );
        // An output with a false condition is not evaluated, but its condition is.
        let hidden = json!({"value": {"list_join": "x"}, "condition": "no"});
        let shown = rendered(&template(json!(true), fine.clone(), hidden));
        assert_eq!(shown["outputs"]["o"]["value"], Value::Null);
        let missing = json!({"value": 1, "condition": {"equals": [{"get_param": "nope"}, 1]}});
        assert!(error_of(&template(json!(true), fine, missing)).starts_with("outputs.o.condition"));
    }

    #[test]
    fn external_resources_require_nothing_and_are_retained() {
        let template = |more: Value| {
            let mut external = json!({"type": "OS::Heat::Value", "external_id": "x", "deletion_policy": "Delete",
                "properties": {"value": [{"get_resource": "gone"}, {"get_resource": "there"}]}});
            if let (Value::Object(map), Value::Object(more)) = (&mut external, more) {
                map.extend(more);
            }
            json!({"heat_template_version": "pike", "resources": {
                "external": external, "there": {"type": "OS::Heat::None"},
                "gone": {"type": "OS::Heat::None", "condition": false}}})
        };
        let result = &rendered(&template(json!({})))["resources"]["external"];
        assert_eq!(result["requires"], json!([]));
        assert_eq!(result["deletion_policy"], "Retain");
        let refused = error_of(&template(json!({"depends_on": "there"})));
        assert!(
            refused.starts_with("resources.external.depends_on"),
            "{refused}"
        );
        let refused = error_of(&template(json!({"external_id": {"no": "function"}})));
        assert!(
            refused.starts_with("resources.external.external_id"),
            "{refused}"
        );
    }

    #[test]
    fn a_reference_that_is_not_a_name_is_no_resource() {
        let template = |value: Value| {
            json!({"heat_template_version": "pike", "outputs": {"o": {"value": value.clone()}},
                "resources": {"r": {"type": "OS::Heat::Value", "properties": {"value": value}}}})
        };
        for value in [json!({"get_attr": [[], "x"]}), json!({"get_resource": 1.5})] {
            let refused = error_of(&template(value));
            assert!(refused.contains("names no resource"), "{refused}");
        }
        let cfn = json!({"AWSTemplateFormatVersion": "2010-09-09", "Conditions": {"no": {"Fn::Equals": [1, 2]}},
            "Resources": {"a": {"Type": "OS::Heat::None", "Condition": "no"},
                "b": {"Type": "OS::Heat::Value", "Properties": {"value": {"Ref": "a"}}}}});
        assert!(error_of(&cfn).contains("whose condition is false"));
    }

    #[test]
    fn a_wrong_property_that_is_read_first_refuses_the_stack() {
        let template = |property: &str| {
            json!({"heat_template_version": "pike", "resources": {
                "s": {"type": "OS::Nova::Server", "properties": {"flavor": "f", property: {"a": 1}}}}})
        };
        assert!(
            rendered(&template("user_data_format"))
                .get("order_error")
                .is_some()
        );
        assert!(rendered(&template("name")).get("order").is_some());
    }
}
