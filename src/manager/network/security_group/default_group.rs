//! The `default` group of a namespace: made once, the user's from then on.

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use pileus_api::names::{DEFAULT_GROUP, DEFAULT_GROUP_ANNOTATION};
use pileus_api::security_group::{Direction, EtherType, NamedRule, SecurityRule};
use pileus_api::{SecurityGroup, SecurityGroupSpec};
use pileus_kube_ext::{ApiError, find};

/// Everything out; in what comes from the group itself; as Neutron's.
#[must_use]
pub fn spec() -> SecurityGroupSpec {
    let rule = |name: &str, direction, ether_type, remote: Option<&str>| NamedRule {
        name: name.to_owned(),
        rule: SecurityRule {
            direction,
            ether_type,
            remote_group: remote.map(str::to_owned),
            ..SecurityRule::default()
        },
    };
    let (out, into) = (Direction::Egress, Direction::Ingress);
    let same = Some(DEFAULT_GROUP);
    SecurityGroupSpec {
        description: Some("Of every Port that names no group; yours to change".to_owned()),
        rules: vec![
            rule("egress-ipv4", out, EtherType::IPv4, None),
            rule("egress-ipv6", out, EtherType::IPv6, None),
            rule("ingress-ipv4", into, EtherType::IPv4, same),
            rule("ingress-ipv6", into, EtherType::IPv6, same),
        ],
    }
}

/// Makes the group of a namespace unless that has been done before. Returns the group if it
/// was made now.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn ensure(client: &Client, namespace: &str) -> Result<Option<SecurityGroup>, ApiError> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let doing = || format!("make the security group {DEFAULT_GROUP} of namespace {namespace}");
    let Some(object) = find(&namespaces, namespace)
        .await
        .map_err(ApiError::doing(doing()))?
    else {
        return Ok(None);
    };
    if object.annotations().contains_key(DEFAULT_GROUP_ANNOTATION)
        || object.metadata.deletion_timestamp.is_some()
    {
        return Ok(None);
    }
    let mut group = SecurityGroup::new(DEFAULT_GROUP, spec());
    group.metadata.finalizers = Some(vec![pileus_api::names::MANAGER_FINALIZER.to_owned()]);
    let groups: Api<SecurityGroup> = Api::namespaced(client.clone(), namespace);
    let made = match groups.create(&PostParams::default(), &group).await {
        Ok(made) => Some(made),
        // Made by the user, or by a start that was broken off before the mark was set.
        Err(kube::Error::Api(status)) if status.is_already_exists() => None,
        Err(error) => return Err(ApiError::doing(doing())(error)),
    };
    let mark = json!({"metadata": {
        "uid": object.uid(),
        "annotations": {DEFAULT_GROUP_ANNOTATION: "made"},
    }});
    namespaces
        .patch(namespace, &PatchParams::default(), &Patch::Merge(&mark))
        .await
        .map_err(ApiError::doing(doing()))?;
    Ok(made)
}
