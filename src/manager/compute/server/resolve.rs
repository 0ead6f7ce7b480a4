//! Reads from the caches what a Server refers to. No decisions.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use super::INSTANCES_BY_PORT;
use super::plan::claim::holder;
use super::plan::refused::withdrawn;
use super::plan::{Observed, ObservedNic, UserData};
use crate::Manager;
use crate::caches::Caches;
use crate::network::port::BY_HOLDER;
use pileus_api::conditions::{self, ConditionType};
use pileus_api::names::server_port_name;
use pileus_api::{Instance, Port, Server};
use pileus_kube_ext::cache::namespaced;

/// What is known of everything that `server` refers to.
#[must_use]
pub fn resolve(
    server: &Server,
    manager: &Manager,
    instances: Vec<Instance>,
    owned_ports: Vec<Port>,
    user_data: UserData,
) -> Observed {
    let caches = &manager.caches;
    let namespace = server.namespace().unwrap_or_default();
    let spec = &server.spec;
    let image_namespace = spec.image.namespace.as_ref().unwrap_or(&namespace);
    let nics = spec
        .networks
        .iter()
        .map(|nic| {
            let made = nic.port.is_none();
            let port_name = nic
                .port
                .clone()
                .unwrap_or_else(|| server_port_name(&server.name_any(), &nic.name));
            let port = caches.ports.get(&namespace, &port_name);
            let network = match (&nic.network, &port) {
                (Some(network), _) => Some(network.clone()),
                (None, Some(port)) => Some(port.spec.network.clone()),
                (None, None) => None,
            };
            let network = network.and_then(|n| {
                let at = n.namespace.as_ref().unwrap_or(&namespace);
                caches.networks.get(at, &n.name)
            });
            let subnets = port
                .iter()
                .flat_map(|p| p.status.iter())
                .flat_map(|s| s.fixed_ips.iter())
                .filter_map(|ip| {
                    let at = network.as_ref().and_then(|n| n.namespace())?;
                    caches.subnets.get(&at, &ip.subnet)
                })
                .map(|s| (*s).clone())
                .collect();
            let used_by = port
                .as_ref()
                .and_then(|port| other_user(server, caches, port));
            ObservedNic {
                name: nic.name.clone(),
                port_name,
                made,
                port: port.map(|p| (*p).clone()),
                network: network.map(|n| (*n).clone()),
                subnets,
                used_by,
            }
        })
        .collect();
    let placed = server.status.as_ref().and_then(|s| s.placement.as_ref());
    let host = placed.and_then(|p| caches.hosts.get("", &p.host));
    Observed {
        crd_deleting: false,
        cluster: manager.context.cluster.clone(),
        flavor: spec
            .flavor
            .as_ref()
            .and_then(|name| caches.flavors.get("", name))
            .map(|f| (*f).clone()),
        image: caches
            .images
            .get(image_namespace, &spec.image.name)
            .map(|i| (*i).clone()),
        key_pairs: spec
            .key_pairs
            .iter()
            .map(|name| {
                let pair = caches.key_pairs.get(&namespace, name);
                (name.clone(), pair.map(|p| (*p).clone()))
            })
            .collect(),
        nics,
        user_data,
        instances,
        all_instances: None,
        held_ports: caches
            .ports
            .by(&BY_HOLDER, &server.uid().unwrap_or_default())
            .iter()
            .filter(|port| port.namespace() == server.namespace())
            .map(|port| (**port).clone())
            .collect(),
        owned_ports,
        withdrawn: withdrawn(server)
            .into_iter()
            .filter_map(|(at, name)| caches.instances.get(&at, &name))
            .map(|instance| (*instance).clone())
            .collect(),
        host_lost: host.and_then(|host| {
            let status = host.status.as_ref()?;
            let ready = conditions::find(&status.conditions, ConditionType::Ready)?;
            (ready.reason == "HeartbeatLost").then(|| ready.message.clone())
        }),
    }
}

/// Another Server that exists and has the Port.
fn other_user(server: &Server, caches: &Caches, port: &Port) -> Option<String> {
    let namespace = server.namespace().unwrap_or_default();
    let own = server.uid().unwrap_or_default();
    let exists = |name: &str, uid: &str| {
        let found = caches.servers.get(&namespace, name);
        found.is_some_and(|found| found.uid().as_deref() == Some(uid))
    };
    let named = holder(port).map(|holder| (holder.name.clone(), holder.uid.clone()));
    let made_for = made_for(port).map(|owner| (owner.name.clone(), owner.uid.clone()));
    let by_word = [named, made_for].into_iter().flatten();
    let by_word = by_word.filter(|(name, uid)| exists(name, uid));
    // Whatever the Port says: a guest is plugged in.
    let plugged = caches.instances.by(
        &INSTANCES_BY_PORT,
        &namespaced(&namespace, &port.name_any()),
    );
    let plugged = plugged.iter().map(|instance| {
        let server = &instance.spec.server;
        (server.name.clone(), server.uid.clone())
    });
    by_word
        .chain(plugged)
        .find(|(_, uid)| *uid != own)
        .map(|(name, _)| name)
}

/// The Server that a Port was made for.
fn made_for(port: &Port) -> Option<&OwnerReference> {
    let mut owners = port.owner_references().iter();
    owners.find(|owner| owner.controller == Some(true) && owner.kind == Server::kind(&()))
}
