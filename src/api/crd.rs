//! The CustomResourceDefinitions, as `pileus crds` prints them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::bounds::{bound_spec, bound_status};
use super::conditions::{ConditionType, Reason};

/// Every CustomResourceDefinition, in the order of their names.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    let mut crds = vec![
        super::Server::crd(),
        super::Instance::crd(),
        super::Flavor::crd(),
        super::KeyPair::crd(),
        super::ServerGroup::crd(),
        super::Host::crd(),
        super::HostAggregate::crd(),
        super::SchedulerPolicy::crd(),
        super::Image::crd(),
        super::Network::crd(),
        super::Subnet::crd(),
        super::Port::crd(),
        super::IPAllocation::crd(),
        super::SecurityGroup::crd(),
        super::SecurityGroupRule::crd(),
        super::Stack::crd(),
    ];
    crds.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    for crd in &mut crds {
        give_status_a_default(crd);
        give_spec_a_default(crd);
        drop_defaults_in_lists(crd);
        set_bounds(crd);
    }
    crds
}

/// The schema of the one version.
fn schema(crd: &mut CustomResourceDefinition) -> Option<&mut JSONSchemaProps> {
    let version = crd.spec.versions.first_mut()?;
    version.schema.as_mut()?.open_api_v3_schema.as_mut()
}

fn set_bounds(crd: &mut CustomResourceDefinition) {
    let properties = schema(crd).and_then(|schema| schema.properties.as_mut());
    for (name, part) in properties.into_iter().flat_map(BTreeMap::iter_mut) {
        match name.as_str() {
            "spec" => bound_spec(part),
            "status" => bound_status(part),
            _ => {}
        }
    }
}

/// Gives a `spec` that may be empty the default `{}`: a `kubectl apply --server-side` after one
/// without it leaves `spec: null` behind, which then counts as empty.
fn give_spec_a_default(crd: &mut CustomResourceDefinition) {
    let spec = schema(crd).and_then(|schema| schema.properties.as_mut()?.get_mut("spec"));
    if let Some(spec) = spec
        && spec.required.as_ref().is_none_or(Vec::is_empty)
        // A default is held to the rules as well.
        && spec.x_kubernetes_validations.is_none()
    {
        spec.default = Some(JSON(json!({})));
    }
}

/// Takes the defaults out of the items of lists; readers fill them in (`serde(default)`), and
/// the description says them.
///
/// `kubectl apply` compares whole lists with what it sent, so a list whose items the API server
/// has completed would count as changed each time.
fn drop_defaults_in_lists(crd: &mut CustomResourceDefinition) {
    fn walk(schema: &mut JSONSchemaProps, in_list: bool) {
        if in_list && let Some(JSON(default)) = schema.default.take() {
            let text = match &default {
                Value::String(text) if text.is_empty() => "empty".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let description = schema.description.get_or_insert_default();
            let _ = write!(description, " Defaults to {text}.");
        }
        for inner in schema.properties.iter_mut().flat_map(BTreeMap::values_mut) {
            walk(inner, in_list);
        }
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
            walk(items, true);
        }
        if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
            walk(values, in_list);
        }
    }
    let spec = schema(crd).and_then(|schema| schema.properties.as_mut()?.get_mut("spec"));
    if let Some(spec) = spec {
        walk(spec, false);
    }
}

/// Gives `status` a default with Ready unknown, so that `kubectl wait` has something
/// honest to look at before the first pass; as the Gateway API does.
fn give_status_a_default(crd: &mut CustomResourceDefinition) {
    let Some(status) = schema(crd).and_then(|schema| schema.properties.as_mut()?.get_mut("status"))
    else {
        return;
    };
    // A Host's status belongs to its agent, and has conditions of two writers.
    let mut default = json!({"conditions": [{
        "type": ConditionType::Ready.as_str(),
        "status": "Unknown",
        "reason": Reason::Pending.as_str(),
        "message": "waiting for a controller",
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    }]});
    let has_phase = |p: &BTreeMap<String, JSONSchemaProps>| p.contains_key("phase");
    if status.properties.as_ref().is_some_and(has_phase) {
        default["phase"] = json!("Pending");
    }
    status.default = Some(JSON(default));
}

/// The definition as JSON, keys in order.
///
/// # Errors
/// When the definition cannot be serialised, which no definition of ours does.
pub fn to_json(crd: &CustomResourceDefinition) -> Result<Value, serde_json::Error> {
    let mut value = serde_json::to_value(crd)?;
    value.sort_all_objects();
    Ok(value)
}
