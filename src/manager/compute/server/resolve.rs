//! Reads from the caches what a Server refers to. No decisions.

use kube::ResourceExt;

use super::BY_PORT;
use super::plan::refused::withdrawn;
use super::plan::{Observed, ObservedNic, UserData};
use crate::Manager;
use crate::caches::Caches;
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
            let used_by = if made {
                None
            } else {
                other_user(server, caches, &port_name)
            };
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

/// Another Server that uses a named Port and came first.
fn other_user(server: &Server, caches: &Caches, port: &str) -> Option<String> {
    let rank = |s: &Server| {
        let built = s.status.as_ref().is_some_and(|s| s.instance.is_some());
        (!built, s.creation_timestamp().map(|t| t.0), s.uid())
    };
    let namespace = server.namespace().unwrap_or_default();
    caches
        .servers
        .by(&BY_PORT, &namespaced(&namespace, port))
        .iter()
        .filter(|other| other.uid() != server.uid() && rank(other) < rank(server))
        .map(|other| other.name_any())
        .next()
}
