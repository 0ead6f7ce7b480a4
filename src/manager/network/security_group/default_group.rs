//! The `default` group of a namespace: created once; from then on it is the user's to change.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::network::kinds::Observed;
use crate::network::requests::all;
use pileus_api::names::{DEFAULT_GROUP, DEFAULT_GROUP_ANNOTATION};
use pileus_api::security_group::{Direction, EtherType, NamedRule, SecurityRule};
use pileus_api::{SecurityGroup, SecurityGroupSpec};
use pileus_kube_ext::objects::{Created, Objects};
use pileus_kube_ext::{ApiError, find};

/// All traffic out; in only from members of the group; as in Neutron.
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

/// The `default` groups of all namespaces with a Port or a Server.
#[derive(Debug, Default)]
pub struct DefaultGroups {
    /// Namespaces that have, or had, their group.
    done: BTreeSet<String>,
}

impl DefaultGroups {
    /// Creates the groups that have not been created before; returns them, and the errors.
    pub async fn create_missing(
        &mut self,
        client: &Client,
        observed: &Observed,
    ) -> (Vec<SecurityGroup>, Vec<ApiError>) {
        let namespaces = tenant_namespaces(observed);
        // A namespace that nothing uses any more may be deleted and created again.
        self.done.retain(|namespace| namespaces.contains(namespace));
        let missing: Vec<String> = namespaces.difference(&self.done).cloned().collect();
        let create = |namespace: String| async move {
            let created = create_once(client, &namespace).await?;
            Ok((namespace, created))
        };
        let (done, errors) = all(missing.into_iter().map(create).collect()).await;
        let mut groups = Vec::new();
        for (namespace, created) in done {
            groups.extend(created);
            self.done.insert(namespace);
        }
        (groups, errors)
    }
}

fn tenant_namespaces(observed: &Observed) -> BTreeSet<String> {
    let ports = observed.ports.iter().filter_map(|p| p.namespace());
    let servers = observed.servers.iter().filter_map(|s| s.namespace());
    ports.chain(servers).collect()
}

/// Creates the group of a namespace unless that has been done before. Returns the group if it
/// was created now.
async fn create_once(client: &Client, namespace: &str) -> Result<Option<SecurityGroup>, ApiError> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let action = || format!("make the security group {DEFAULT_GROUP} of namespace {namespace}");
    let Some(object) = find(&namespaces, namespace)
        .await
        .map_err(ApiError::doing(action()))?
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
    let groups = Objects::<SecurityGroup>::namespaced(client, namespace);
    let created = match groups.create(&group).await? {
        Created::New(created) => Some(created),
        // Created by the user, or by a pass that was interrupted before the annotation was set.
        Created::AlreadyExists => None,
    };
    let annotation = json!({"metadata": {
        "uid": object.uid(),
        "annotations": {DEFAULT_GROUP_ANNOTATION: "made"},
    }});
    namespaces
        .patch(
            namespace,
            &PatchParams::default(),
            &Patch::Merge(&annotation),
        )
        .await
        .map_err(ApiError::doing(action()))?;
    Ok(created)
}
