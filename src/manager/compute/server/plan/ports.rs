//! The Ports that are created for a Server.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use super::ObservedNic;
use pileus_api::conditions::{self, ConditionType};
use pileus_api::names::{MANAGER_FINALIZER, SERVER_UID_LABEL};
use pileus_api::port::{FixedIp, PortSpec};
use pileus_api::{ObjectName, Port, Server};
use pileus_kube_ext::finalize;

pub(super) fn is_owned_by(port: &Port, server: &Server) -> bool {
    port.owner_references()
        .iter()
        .any(|o| Some(&o.uid) == server.uid().as_ref())
}

/// Whether a Port that was created for the Server has to be created again: it could not be given
/// what it asks for, and the Server, which was never built, asks for something else now.
pub(super) fn needs_recreation(server: &Server, nic: &ObservedNic) -> bool {
    let Some(made) = nic.port.as_ref().filter(|_| nic.made) else {
        return false;
    };
    let was_built = server.status.as_ref().is_some_and(|s| s.instance.is_some());
    if was_built || is_port_ready(nic) || finalize::is_deleting(made) || !is_owned_by(made, server)
    {
        return false;
    }
    let (has, wanted) = (&made.spec, port(server, nic).spec);
    (&has.network, &has.fixed_ips) != (&wanted.network, &wanted.fixed_ips)
}

/// A Port that was created for the Server, as it should be now, if it differs: its security
/// groups are the Server's to say.
pub(super) fn changed(server: &Server, nic: &ObservedNic) -> Option<Port> {
    let made = nic.port.as_ref().filter(|_| nic.made)?;
    if finalize::is_deleting(made) || !is_owned_by(made, server) || needs_recreation(server, nic) {
        return None;
    }
    let groups = port(server, nic).spec.security_groups;
    let mut wanted = made.clone();
    wanted.spec.security_groups = groups;
    (wanted.spec != made.spec).then_some(wanted)
}

pub(super) fn is_port_ready(nic: &ObservedNic) -> bool {
    let Some(status) = nic.port.as_ref().and_then(|p| p.status.as_ref()) else {
        return false;
    };
    conditions::is_true(&status.conditions, ConditionType::Ready)
        && status.port_id.is_some()
        && status.mac_address.is_some()
        && nic
            .network
            .as_ref()
            .and_then(|n| n.status.as_ref())
            .is_some_and(|s| s.mtu.is_some())
}

/// Whether all that the guest's network data says of the Subnets of its addresses is known. It is written once, on
/// its config drive: what is missing there, such as the default route, is missing for good.
pub(super) fn are_subnets_known(nic: &ObservedNic) -> bool {
    let status = nic.port.as_ref().and_then(|p| p.status.as_ref());
    let mut ips = status.iter().flat_map(|status| &status.fixed_ips);
    ips.all(|ip| {
        let subnet = nic.subnets.iter().find(|s| s.name_any() == ip.subnet);
        let status = subnet.and_then(|subnet| subnet.status.as_ref());
        status.is_some_and(|status| status.network_uid.is_some())
    })
}

/// The Port for an inline network.
pub(super) fn port(server: &Server, nic: &ObservedNic) -> Port {
    let wanted = server.spec.networks.iter().find(|n| n.name == nic.name);
    let network = wanted.and_then(|n| n.network.clone()).unwrap_or_default();
    let fixed = wanted.and_then(|n| n.fixed_ip.clone());
    let mut port = Port::new(
        &nic.port_name,
        PortSpec {
            network: ObjectName {
                name: network.name,
                namespace: network.namespace,
            },
            fixed_ips: fixed
                .map(|address| FixedIp {
                    name: "fixed".into(),
                    subnet: None,
                    address: Some(address),
                })
                .into_iter()
                .collect(),
            security_groups: wanted.and_then(|n| n.security_groups.clone()),
            ..PortSpec::default()
        },
    );
    port.metadata.namespace = server.namespace();
    port.metadata.finalizers = Some(vec![MANAGER_FINALIZER.to_owned()]);
    port.metadata.labels = Some(
        [(
            SERVER_UID_LABEL.to_owned(),
            server.uid().unwrap_or_default(),
        )]
        .into(),
    );
    port.metadata.owner_references = server.controller_owner_ref(&()).map(|owner| {
        // The Server's own finalizer deletes its Ports in order; the garbage collector
        // need not hold the Server back for them.
        vec![OwnerReference {
            block_owner_deletion: None,
            ..owner
        }]
    });
    port
}
