mod sharing;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use kube::{Resource, ResourceExt};
use proptest::prelude::*;

use crate::network::decision::Deletion;
use crate::network::kinds::Observed;
use crate::network::ovn_addresses::OvnAddresses;
use crate::network::plan::{Plan, plan};
use pileus_api::names::MANAGER_FINALIZER;
use pileus_api::port::FixedIp;
use pileus_api::server::ServerNetwork;
use pileus_api::{
    IPAllocation, Network, NetworkSpec, ObjectName, Port, PortSpec, Reason, SecurityGroup,
    SecurityGroupSpec, Server, ServerSpec, Subnet, SubnetSpec,
};
use pileus_values::ClusterId;

/// A namespace `d` with the Network `n`, and `default` groups there and in `q`.
struct World {
    network: Option<Network>,
    subnets: Vec<Arc<Subnet>>,
    ports: Vec<Arc<Port>>,
    allocations: BTreeMap<String, Arc<IPAllocation>>,
    servers: Vec<Arc<Server>>,
}

/// Puts an object into the namespace, with our finalizer.
fn placed<K: Resource>(mut object: K, uid: &str) -> K {
    let meta = object.meta_mut();
    meta.namespace = Some("d".into());
    meta.uid = Some(uid.into());
    meta.finalizers = Some(vec![MANAGER_FINALIZER.into()]);
    object
}

fn port(name: &str) -> Port {
    let port = Port::new(
        name,
        PortSpec {
            network: ObjectName {
                name: "n".into(),
                namespace: None,
            },
            ..PortSpec::default()
        },
    );
    placed(port, &format!("uid-{name}"))
}

fn fixed(address: &str) -> FixedIp {
    FixedIp {
        name: "a".into(),
        subnet: None,
        address: Some(address.into()),
    }
}

impl World {
    fn with(cidrs: &[&str]) -> Self {
        let mut world = Self {
            network: Some(placed(Network::new("n", NetworkSpec::default()), "network")),
            subnets: Vec::new(),
            ports: Vec::new(),
            allocations: BTreeMap::new(),
            servers: Vec::new(),
        };
        for (at, cidr) in cidrs.iter().enumerate() {
            let subnet = Subnet::new(
                &format!("s{at}"),
                SubnetSpec {
                    network: "n".into(),
                    cidr: (*cidr).into(),
                    ..SubnetSpec::default()
                },
            );
            let subnet = placed(subnet, &format!("subnet{at}"));
            world.subnets.push(Arc::new(subnet));
        }
        world
    }

    fn add(&mut self, port: Port) {
        self.ports.push(Arc::new(port));
    }

    /// One pass with its effects; true if there were any.
    fn pass(&mut self) -> (Plan, bool) {
        let group = SecurityGroup::new("default", SecurityGroupSpec::default());
        let group = placed(group, "group");
        let mut theirs = group.clone();
        theirs.metadata.namespace = Some("q".into());
        let observed = Observed {
            networks: self.network.iter().cloned().map(Arc::new).collect(),
            groups: vec![Arc::new(group), Arc::new(theirs)],
            subnets: self.subnets.clone(),
            ports: self.ports.clone(),
            allocations: self.allocations.values().cloned().collect(),
            servers: self.servers.clone(),
            ..Observed::default()
        };
        let cluster = ClusterId("c".into());
        let plan = plan(&cluster, 1442, &observed, &OvnAddresses::default());
        let before = (
            self.allocations.clone(),
            self.ports.clone(),
            self.subnets.clone(),
        );
        let allocations = &plan.allocations;
        for released in allocations.replaced.iter().chain(&allocations.release) {
            self.allocations.remove(&released.name_any());
        }
        for new in &allocations.allocate {
            let old = self
                .allocations
                .insert(new.name_any(), Arc::new(new.clone()));
            assert!(old.is_none(), "{} was allocated twice", new.name_any());
        }
        let decisions = &plan.decisions;
        let networks = decisions.networks.iter();
        self.network = networks
            .filter(|(_, decision)| decision.stays())
            .map(|(network, decision)| {
                let mut network = Network::clone(network);
                network.status = Some(decision.status.clone());
                network
            })
            .next();
        self.subnets = decisions
            .subnets
            .iter()
            .filter(|(_, decision)| decision.stays())
            .map(|(subnet, decision)| {
                let mut subnet = Subnet::clone(subnet);
                subnet.status = Some(decision.status.clone());
                Arc::new(subnet)
            })
            .collect();
        self.ports = decisions
            .ports
            .iter()
            .filter(|(_, decision)| decision.stays())
            .map(|(port, decision)| {
                let mut port = Port::clone(port);
                port.status = Some(decision.status.clone());
                Arc::new(port)
            })
            .collect();
        let changed = before
            != (
                self.allocations.clone(),
                self.ports.clone(),
                self.subnets.clone(),
            );
        (plan, changed)
    }

    fn reason(plan: &Plan, name: &str) -> (Reason, String) {
        let mut ports = plan.decisions.ports.iter();
        let (_, decision) = ports.find(|(p, _)| p.name_any() == name).unwrap();
        (decision.ready.reason, decision.ready.message.clone())
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.ports
            .iter()
            .flat_map(|p| p.status.iter().flat_map(|s| s.fixed_ips.clone()))
            .map(|ip| ip.address.parse().unwrap())
            .collect()
    }
}

#[test]
fn a_port_gets_one_address_of_each_family_and_keeps_it() {
    let mut world = World::with(&["10.0.0.0/24", "fd00::/64"]);
    world.add(port("a"));
    world.pass();
    let first = world.addresses();
    assert_eq!(first.len(), 2);
    let (_, changed) = world.pass();
    assert!(!changed);
    assert_eq!(world.addresses(), first);
    // Gateway and service address are reserved, in both families.
    assert_eq!(world.allocations.len(), 6);
}

#[test]
fn after_an_interruption_behind_the_allocation_the_port_gets_the_same_address() {
    let mut world = World::with(&["10.0.0.0/24"]);
    world.add(port("a"));
    world.pass();
    let first = world.addresses();
    world.ports = vec![Arc::new(port("a"))];
    let (_, changed) = world.pass();
    assert!(changed);
    assert_eq!(world.addresses(), first);
    assert_eq!(world.allocations.len(), 3);
}

#[test]
fn a_port_that_replaces_another_of_its_name_gets_its_address() {
    let mut world = World::with(&["10.0.0.0/24"]);
    world.add(port("a"));
    world.pass();
    let first = world.addresses();
    let mut again = port("a");
    again.metadata.uid = Some("other".into());
    world.ports = vec![Arc::new(again)];
    let (plan, _) = world.pass();
    assert_eq!(plan.allocations.replaced.len(), 1);
    world.pass();
    assert_eq!(world.addresses(), first);
}

#[test]
fn bad_addresses_are_refused_by_reason_and_culprit() {
    let mut world = World::with(&["10.0.0.0/24"]);
    let ask = |name: &str, address: &str| {
        let mut it = port(name);
        it.spec.fixed_ips = vec![fixed(address)];
        it
    };
    world.add(ask("a", "10.0.0.9"));
    world.pass();
    world.add(ask("in-use", "10.0.0.9"));
    world.add(ask("outside", "10.0.1.9"));
    world.add(ask("broadcast", "10.0.0.255"));
    world.add(ask("malformed", "10.0.0"));
    world.add(ask("gateway", "10.0.0.1"));
    world.add(ask("service", "10.0.0.254"));
    let (plan, _) = world.pass();
    for (name, reason, part) in [
        ("a", Reason::Ready, "10.0.0.9"),
        ("in-use", Reason::AddressInUse, "Port d/a"),
        (
            "outside",
            Reason::AddressOutsideSubnet,
            "10.0.0.254 in Subnet s0",
        ),
        ("broadcast", Reason::AddressOutsideSubnet, "10.0.0.255"),
        ("malformed", Reason::InvalidSpec, "10.0.0"),
        ("gateway", Reason::AddressInUse, "gateway"),
        ("service", Reason::AddressInUse, "service"),
    ] {
        let (found, message) = World::reason(&plan, name);
        assert_eq!(found, reason, "{name}: {message}");
        assert!(message.contains(part), "{name}: {message}");
    }
    assert_eq!(world.addresses().len(), 1);
}

#[test]
fn of_two_ports_with_one_ethernet_address_the_first_gets_it_and_is_named() {
    let mut world = World::with(&["10.0.0.0/24"]);
    for name in ["a", "b"] {
        let mut it = port(name);
        it.spec.mac_address = Some("fa:16:3e:00:00:01".into());
        world.add(it);
    }
    let (plan, _) = world.pass();
    assert_eq!(World::reason(&plan, "a").0, Reason::Ready);
    let (reason, message) = World::reason(&plan, "b");
    assert_eq!(reason, Reason::MacInUse);
    assert!(message.contains("d/a"), "{message}");
}

#[test]
fn a_full_subnet_is_reported_and_has_addresses_again_once_a_port_is_deleted() {
    let mut world = World::with(&["10.0.0.0/29"]);
    for name in ["a", "b", "c", "d", "e"] {
        world.add(port(name));
    }
    let (plan, _) = world.pass();
    assert_eq!(world.addresses().len(), 4);
    let (reason, message) = World::reason(&plan, "e");
    assert_eq!(reason, Reason::SubnetExhausted);
    assert!(message.contains("10.0.0.0/29"), "{message}");
    let mut a = Port::clone(&world.ports[0]);
    a.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
    ));
    world.ports[0] = Arc::new(a);
    world.pass();
    world.pass();
    assert_eq!(world.addresses().len(), 4);
    assert_eq!(world.allocations.len(), 6);
}

#[test]
fn the_deletion_of_a_port_in_use_waits() {
    let mut world = World::with(&["10.0.0.0/24"]);
    let mut it = port("a");
    it.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
    ));
    world.add(it);
    let server = Server::new(
        "web",
        ServerSpec {
            networks: vec![ServerNetwork {
                name: "n".into(),
                port: Some("a".into()),
                ..ServerNetwork::default()
            }],
            ..ServerSpec::default()
        },
    );
    world.servers.push(Arc::new(placed(server, "server")));
    let (plan, _) = world.pass();
    assert_eq!(plan.decisions.ports[0].1.deletion, Deletion::Blocked);
    let (reason, message) = World::reason(&plan, "a");
    assert_eq!(reason, Reason::InUse);
    assert!(message.contains("Server web"), "{message}");
}

#[test]
fn a_subnet_that_overlaps_one_in_force_is_not_accepted() {
    let mut world = World::with(&["10.0.0.0/24", "10.0.0.128/25"]);
    world.pass();
    let accepted: Vec<_> = world
        .subnets
        .iter()
        .map(|s| s.status.as_ref().unwrap().service_ip.is_some())
        .collect();
    assert_eq!(accepted, [true, false]);
}

#[test]
fn a_thousand_ports_fill_a_slash_22_with_addresses_of_their_own() {
    let mut world = World::with(&["10.0.0.0/22"]);
    for n in 0..1000 {
        world.add(port(&format!("p{n}")));
    }
    let start = std::time::Instant::now();
    world.pass();
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    let addresses = world.addresses();
    assert_eq!(addresses.len(), 1000);
    assert_eq!(addresses.iter().collect::<HashSet<_>>().len(), 1000);
    assert!(!world.pass().1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_address_is_ever_held_twice_and_passes_come_to_an_end(
        steps in proptest::collection::vec((0..12_usize, any::<bool>(), 0..10_u8), 1..30),
    ) {
        let mut world = World::with(&["10.0.0.0/28", "fd00::/124"]);
        for (at, delete, host) in steps {
            let name = format!("p{at}");
            let place = world.ports.iter().position(|p| p.name_any() == name);
            match (place, delete) {
                (Some(place), true) => { world.ports.remove(place); }
                (None, false) => {
                    let mut it = port(&name);
                    it.metadata.uid = Some(format!("uid-{name}-{host}"));
                    if host > 6 { it.spec.fixed_ips = vec![fixed(&format!("10.0.0.{host}"))]; }
                    world.add(it);
                }
                _ => {}
            }
            // The first pass releases what a removed Port held, the next allocates it again, the
            // third sees that in the Subnet; then nothing is left to do.
            let passes = (1..).take_while(|_| world.pass().1).take(4).count();
            prop_assert!(passes < 4, "still changing things after {passes} passes");
            let addresses = world.addresses();
            let distinct: HashSet<_> = addresses.iter().collect();
            prop_assert_eq!(addresses.len(), distinct.len());
            let ports: HashSet<_> = world.ports.iter()
                .filter_map(|p| p.status.as_ref()?.mac_address.clone()).collect();
            let with = world.ports.iter().filter(|p| p.status.as_ref().is_some_and(|s| s.mac_address.is_some())).count();
            prop_assert_eq!(ports.len(), with);
        }
    }
}
