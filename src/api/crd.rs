//! The CustomResourceDefinitions, as `pileus crds` prints them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

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
    crds.into_iter().map(with_status_default).collect()
}

/// Gives `status` a default with Ready unknown, so that `kubectl wait` has something
/// honest to look at before the first pass; as the Gateway API does.
fn with_status_default(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        let Some(schema) = version
            .schema
            .as_mut()
            .and_then(|s| s.open_api_v3_schema.as_mut())
        else {
            continue;
        };
        let Some(status) = schema.properties.as_mut().and_then(|p| p.get_mut("status")) else {
            continue;
        };
        // A Host's status belongs to its agent, and has conditions of two writers.
        let mut default = json!({"conditions": [{
            "type": ConditionType::Ready.as_str(),
            "status": "Unknown",
            "reason": Reason::Pending.as_str(),
            "message": "waiting for a controller",
            "lastTransitionTime": "1970-01-01T00:00:00Z",
        }]});
        if status
            .properties
            .as_ref()
            .is_some_and(|p| p.contains_key("phase"))
        {
            default["phase"] = json!("Pending");
        }
        if let Ok(default) = serde_json::from_value(default) {
            status.default = Some(default);
        }
    }
    crd
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
