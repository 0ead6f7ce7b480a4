//! Ties Ports to the hosts of their Servers, so that no other host can send or receive as them.
//! Pure.
//!
//! A Port that is placed nowhere can be bound nowhere. Once it was tied to a host it stays tied to
//! that one until it is placed again: a Server that is not known is no evidence that its guest does
//! not run.

use std::collections::HashMap;

use kube::ResourceExt;

use crate::network::kinds::{Observed, key};
use crate::network::ovn_addresses::OvnAddresses;
use pileus_api::{Host, Server};
use pileus_network::topology::{Binding, Key, NO_CHASSIS, Topology, logical_port};

/// The host that a Server is placed on.
#[must_use]
pub fn host_of(server: &Server) -> Option<&str> {
    let placement = server.status.as_ref()?.placement.as_ref()?;
    Some(&placement.host)
}

/// The name of a host's chassis in OVN, as its agent reports it.
#[must_use]
pub fn chassis_of(host: &Host) -> Option<&str> {
    host.status.as_ref()?.chassis.as_deref()
}

/// Says for each port which hosts may bind it.
pub fn tie_to_hosts(topology: &mut Topology, observed: &Observed, ovn: &OvnAddresses) {
    let placed = hosts_of_ports(observed);
    let chassis: HashMap<String, &str> = observed
        .hosts
        .iter()
        .filter_map(|host| Some((host.name_any(), chassis_of(host)?)))
        .collect();
    for port in &mut topology.ports {
        let own = Key::of(&port.owner);
        let id = logical_port(&topology.cluster, &own);
        port.binding = match placed.get(&own) {
            // An agent that reports no chassis yet: its guests must have their network.
            Some(host) => chassis.get(*host).map_or(Binding::Anywhere, |name| {
                Binding::Chassis((*name).to_owned())
            }),
            None => match ovn.chassis.get(&id) {
                None => Binding::Nowhere,
                Some(None) => Binding::Anywhere,
                Some(Some(name)) if name == NO_CHASSIS => Binding::Nowhere,
                Some(Some(name)) => Binding::Chassis(name.clone()),
            },
        };
    }
}

/// The host of the Server that has each Port: of the one that holds it; before anyone does, of the
/// Servers that name it the one that is built, else the oldest.
fn hosts_of_ports(observed: &Observed) -> HashMap<Key, &str> {
    let mut placed: Vec<(&Server, &str)> = observed
        .servers
        .iter()
        .filter_map(|server| Some((&**server, host_of(server)?)))
        .collect();
    placed.sort_by_cached_key(|(server, _)| {
        let is_built = server.status.as_ref().is_some_and(|s| s.instance.is_some());
        let made = server.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (!is_built, made, server.uid())
    });
    let mut hosts = HashMap::new();
    let mut by_uid = HashMap::new();
    for (server, host) in placed {
        let namespace = server.namespace().unwrap_or_default();
        for port in server
            .spec
            .networks
            .iter()
            .filter_map(|nic| nic.port.as_ref())
        {
            hosts.entry(Key::new(&namespace, port)).or_insert(host);
        }
        by_uid.insert(server.uid().unwrap_or_default(), host);
    }
    for port in &observed.ports {
        let holder = port.status.as_ref().and_then(|s| s.server.as_ref());
        if let Some(holder) = holder {
            match by_uid.get(&holder.uid) {
                Some(host) => hosts.insert(key(&**port), host),
                // It is not placed, or not known: nobody else has the Port.
                None => hosts.remove(&key(&**port)),
            };
            continue;
        }
        let owners = port.owner_references().iter();
        let mut made_for = owners.filter(|owner| owner.kind == "Server");
        if let Some(host) = made_for.find_map(|owner| by_uid.get(&owner.uid)) {
            hosts.insert(key(&**port), host);
        }
    }
    hosts
}

#[cfg(test)]
#[allow(
    clippy::option_option,
    reason = "no port in OVN, one that asks for no chassis, one that asks for one"
)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use pileus_api::common::Resolved;
    use pileus_api::host::{HostSpec, HostStatus};
    use pileus_api::port::PortStatus;
    use pileus_api::server::{Placement, ServerNetwork, ServerStatus};
    use pileus_api::{Port, ServerSpec};
    use pileus_network::topology::{PortIn, Security};
    use pileus_values::{ClusterId, Mac, Owner};

    fn server(name: &str, port: &str, host: Option<&str>) -> Arc<Server> {
        let network = ServerNetwork {
            name: "a".into(),
            port: Some(port.into()),
            ..ServerNetwork::default()
        };
        let spec = ServerSpec {
            networks: vec![network],
            ..ServerSpec::default()
        };
        let mut server = Server::new(name, spec);
        server.metadata.namespace = Some("d".into());
        server.metadata.uid = Some(name.into());
        let placement = host.map(|host| Placement {
            host: host.into(),
            ..Placement::default()
        });
        server.status = Some(ServerStatus {
            placement,
            ..ServerStatus::default()
        });
        Arc::new(server)
    }

    fn host(name: &str, chassis: Option<&str>) -> Arc<Host> {
        let mut host = Host::new(name, HostSpec::default());
        host.status = Some(HostStatus {
            chassis: chassis.map(str::to_owned),
            ..HostStatus::default()
        });
        Arc::new(host)
    }

    fn binding(servers: Vec<Arc<Server>>, in_ovn: Option<Option<&str>>) -> Binding {
        binding_of(Vec::new(), servers, in_ovn)
    }

    fn binding_of(
        ports: Vec<Arc<Port>>,
        servers: Vec<Arc<Server>>,
        in_ovn: Option<Option<&str>>,
    ) -> Binding {
        let cluster = ClusterId("c".into());
        let port = PortIn {
            owner: Owner {
                namespace: "d".into(),
                name: "p".into(),
                ..Owner::default()
            },
            network: Key::new("d", "n"),
            mac: Mac::derive("p", 0),
            addresses: vec![],
            security: Security::Disabled,
            binding: Binding::Anywhere,
        };
        let id = logical_port(&cluster, &Key::of(&port.owner));
        let mut ovn = OvnAddresses::default();
        if let Some(chassis) = in_ovn {
            ovn.chassis.insert(id, chassis.map(str::to_owned));
        }
        let observed = Observed {
            ports,
            servers,
            hosts: vec![
                host("h1", Some("c1")),
                host("h2", Some("c2")),
                host("new", None),
            ],
            ..Observed::default()
        };
        let mut topology = Topology {
            cluster,
            ports: vec![port],
            ..Topology::default()
        };
        tie_to_hosts(&mut topology, &observed, &ovn);
        topology.ports.remove(0).binding
    }

    #[test]
    fn a_port_is_tied_to_the_chassis_of_its_servers_host() {
        let tied = Binding::Chassis("c2".into());
        let placed = || vec![server("s", "p", Some("h2"))];
        assert_eq!(binding(placed(), None), tied);
        // A move.
        assert_eq!(binding(placed(), Some(Some("c1"))), tied);
        assert_eq!(binding(placed(), Some(Some(NO_CHASSIS))), tied);
        let other = vec![server("s", "other", Some("h2"))];
        assert_eq!(binding(other, None), Binding::Nowhere);
    }

    #[test]
    fn a_port_that_is_not_placed_can_be_bound_nowhere_and_stays_tied_once_it_was() {
        assert_eq!(binding(vec![], None), Binding::Nowhere);
        assert_eq!(
            binding(vec![server("s", "p", None)], None),
            Binding::Nowhere
        );
        assert_eq!(binding(vec![], Some(Some(NO_CHASSIS))), Binding::Nowhere);
        // The Server is not known: it may run all the same.
        assert_eq!(
            binding(vec![], Some(Some("c1"))),
            Binding::Chassis("c1".into())
        );
        assert_eq!(binding(vec![], Some(None)), Binding::Anywhere);
    }

    #[test]
    fn of_two_servers_with_one_port_the_one_that_is_built_counts() {
        let mut built = Server::clone(&server("z", "p", Some("h2")));
        if let Some(status) = &mut built.status {
            status.instance = Some("i".into());
        }
        let servers = vec![server("a", "p", Some("h1")), Arc::new(built)];
        assert_eq!(binding(servers, None), Binding::Chassis("c2".into()));
    }

    #[test]
    fn the_server_that_holds_a_port_counts_and_nobody_else() {
        let held_by = |uid: &str| {
            let mut port = Port::new("p", Default::default());
            port.metadata.namespace = Some("d".into());
            port.status = Some(PortStatus {
                server: Some(Resolved {
                    uid: uid.into(),
                    ..Resolved::default()
                }),
                ..PortStatus::default()
            });
            vec![Arc::new(port)]
        };
        let servers = || vec![server("a", "p", Some("h1")), server("z", "p", Some("h2"))];
        let on_h2 = Binding::Chassis("c2".into());
        assert_eq!(binding_of(held_by("z"), servers(), None), on_h2);
        let lost = binding_of(held_by("lost"), servers(), Some(Some("c2")));
        assert_eq!(lost, on_h2, "one that is not known may run all the same");
        assert_eq!(
            binding_of(held_by("lost"), servers(), None),
            Binding::Nowhere
        );
    }

    #[test]
    fn guests_of_a_host_that_reports_no_chassis_have_their_network() {
        let placed = vec![server("s", "p", Some("new"))];
        assert_eq!(binding(placed, Some(Some(NO_CHASSIS))), Binding::Anywhere);
    }
}
