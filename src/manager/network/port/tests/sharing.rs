//! Ports in Networks of other namespaces, and what of others' making counts.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};

use super::{World, fixed, placed, port};
use crate::network::decision::Deletion;
use crate::network::plan::Plan;
use pileus_api::common::Sharing;
use pileus_api::ip_allocation::allocation_name;
use pileus_api::network::PortSecurity;
use pileus_api::port::AddressPair;
use pileus_api::server::ServerNetwork;
use pileus_api::subnet::AllocationPool;
use pileus_api::{IPAllocation, IPAllocationSpec, Port, Reason, Server, ServerSpec};

/// A Port of the namespace `q` in the Network `n` of `d`.
fn theirs(name: &str) -> Port {
    let mut it = port(name);
    it.metadata.namespace = Some("q".into());
    it.spec.network.namespace = Some("d".into());
    it
}

fn share(world: &mut World, with: &[&str]) {
    world.network.as_mut().unwrap().spec.shared_with = Some(Sharing {
        namespaces: with.iter().map(|n| (*n).to_owned()).collect(),
    });
}

fn shared() -> World {
    let mut world = World::with(&["10.0.0.0/24"]);
    share(&mut world, &["q"]);
    world
}

fn delete<K: Resource>(object: &mut K) {
    object.meta_mut().deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
}

fn delete_subnet(world: &mut World) {
    let mut subnet = (*world.subnets[0]).clone();
    delete(&mut subnet);
    world.subnets[0] = Arc::new(subnet);
}

/// As when the namespace of the Network is deleted: everything in it at once, of which only
/// `IPAllocation`s are gone at once.
fn delete_namespace(world: &mut World) {
    delete(world.network.as_mut().unwrap());
    delete_subnet(world);
    world.allocations.clear();
}

fn change(world: &mut World, name: &str, change: impl Fn(&mut Port)) {
    let mut ports = world.ports.iter_mut();
    let found = ports.find(|port| port.name_any() == name).unwrap();
    let mut changed = Port::clone(found);
    change(&mut changed);
    *found = Arc::new(changed);
}

fn pair() -> AddressPair {
    AddressPair {
        name: "gateway".into(),
        address: "10.0.0.1".into(),
        mac_address: None,
    }
}

fn is_plugged(plan: &Plan) -> bool {
    !plan.desired.ports.is_empty()
}

type Ask = fn(&mut Port);

#[test]
fn what_is_the_owners_to_choose_is_refused_to_others() {
    let cases: [(&str, Ask); 4] = [
        ("portSecurity", |p| {
            p.spec.port_security = Some(PortSecurity::Disabled);
        }),
        ("allowedAddressPairs", |p| {
            p.spec.allowed_address_pairs = vec![pair()];
        }),
        ("macAddress", |p| {
            p.spec.mac_address = Some("fa:16:3e:00:00:01".into());
        }),
        ("fixedIPs", |p| p.spec.fixed_ips = vec![fixed("10.0.0.9")]),
    ];
    for (field, ask) in cases {
        let mut world = shared();
        let mut it = theirs("a");
        ask(&mut it);
        world.add(it);
        let (plan, _) = world.pass();
        let (reason, message) = World::reason(&plan, "a");
        assert_eq!(reason, Reason::Forbidden, "{message}");
        assert!(message.contains(field), "{message}");
        assert!(world.addresses().is_empty() && !is_plugged(&plan));
        // The owner may.
        let mut world = shared();
        let mut it = port("a");
        ask(&mut it);
        world.add(it);
        let (plan, _) = world.pass();
        assert_eq!(World::reason(&plan, "a").0, Reason::Ready, "{field}");
    }
    // A Subnet may be named, as in Neutron.
    let mut world = shared();
    let mut it = theirs("a");
    it.spec.fixed_ips = vec![fixed("")];
    it.spec.fixed_ips[0].address = None;
    it.spec.fixed_ips[0].subnet = Some("s0".into());
    world.add(it);
    assert_eq!(World::reason(&world.pass().0, "a").0, Reason::Ready);
}

#[test]
fn a_port_that_asks_too_much_later_is_unplugged_until_it_does_not() {
    let mut world = shared();
    world.add(theirs("a"));
    assert!(is_plugged(&world.pass().0));
    change(&mut world, "a", |p| {
        p.spec.allowed_address_pairs = vec![pair()];
    });
    let (plan, _) = world.pass();
    assert_eq!(World::reason(&plan, "a").0, Reason::Forbidden);
    assert!(!is_plugged(&plan));
    assert!(plan.deleted.contains("uid-a"));
    change(&mut world, "a", |p| p.spec.allowed_address_pairs.clear());
    assert!(is_plugged(&world.pass().0));
}

#[test]
fn a_network_that_is_not_shared_any_more_is_unplugged_and_the_addresses_are_kept() {
    let mut world = shared();
    world.add(theirs("a"));
    world.pass();
    let first = world.addresses();
    let (plan, _) = world.pass();
    assert!(is_plugged(&plan));
    let status = world.network.as_ref().unwrap().status.clone().unwrap();
    assert_eq!(status.attached_namespaces, ["q"]);

    share(&mut world, &[]);
    let (plan, _) = world.pass();
    let (reason, message) = World::reason(&plan, "a");
    assert_eq!(reason, Reason::NetworkNotFound);
    assert!(message.contains("unplugged"), "{message}");
    assert!(!is_plugged(&plan));
    assert_eq!(plan.unplugged[0].name, "a");
    let status = world.network.as_ref().unwrap().status.clone().unwrap();
    assert_eq!(status.unplugged_namespaces, ["q"]);
    // Nobody gets them meanwhile.
    for n in 0..300 {
        world.add(port(&format!("p{n}")));
    }
    world.pass();
    let addresses = world.addresses();
    assert_eq!(addresses.iter().filter(|a| **a == first[0]).count(), 1);

    share(&mut world, &["*"]);
    let (plan, _) = world.pass();
    assert_eq!(World::reason(&plan, "a").0, Reason::Ready);
    let a = world.ports.iter().find(|p| p.name_any() == "a").unwrap();
    let address = a.status.as_ref().unwrap().addresses.clone().unwrap();
    assert_eq!(address.parse::<IpAddr>().unwrap(), first[0]);
}

#[test]
fn the_owners_deletion_goes_through_and_unplugs_others() {
    let mut world = shared();
    world.add(theirs("a"));
    world.pass();
    delete_namespace(&mut world);
    let (plan, _) = world.pass();
    assert_eq!(plan.decisions.networks[0].1.deletion, Deletion::Allowed);
    assert_eq!(plan.decisions.subnets[0].1.deletion, Deletion::Allowed);
    assert!(plan.deleted.contains("uid-a") && !is_plugged(&plan));
    let (reason, message) = World::reason(&plan, "a");
    assert_eq!(reason, Reason::NetworkNotFound);
    assert!(message.contains("unplugged"), "{message}");
    assert!(plan.allocations.allocate.is_empty());
    assert!(world.network.is_none() && world.subnets.is_empty());
    // The Port is its own owner's to delete.
    let (plan, _) = world.pass();
    assert_eq!(World::reason(&plan, "a").0, Reason::NetworkNotFound);
    assert_eq!(world.ports.len(), 1);
}

#[test]
fn a_subnet_does_not_go_while_its_own_ports_use_it_nor_before_its_network() {
    let mut world = shared();
    world.add(theirs("a"));
    world.add(port("b"));
    world.pass();
    delete_namespace(&mut world);
    let (plan, _) = world.pass();
    assert_eq!(plan.decisions.networks[0].1.deletion, Deletion::Blocked);
    assert_eq!(plan.decisions.subnets[0].1.deletion, Deletion::Blocked);
    let message = &plan.decisions.networks[0].1.ready.message;
    assert!(
        message.contains("Port d/b") && !message.contains("q/"),
        "{message}"
    );
    // Guests go on with addresses and DHCP as long as anybody does.
    assert_eq!(plan.desired.ports.len(), 2);
    assert_eq!(plan.desired.dhcp_options.len(), 1);
    assert!(
        plan.allocations.allocate.is_empty(),
        "nothing can be made there"
    );
    world.ports.retain(|port| port.name_any() != "b");
    world.pass();
    assert!(world.network.is_none() && world.subnets.is_empty());
}

#[test]
fn refused_ports_keep_nobodys_network() {
    let mut world = World::with(&["10.0.0.0/24"]);
    world.add(theirs("stranger"));
    world.pass();
    delete_namespace(&mut world);
    world.pass();
    assert!(world.network.is_none() && world.subnets.is_empty());
}

#[test]
fn strangers_do_not_learn_what_exists() {
    let mut world = World::with(&["10.0.0.0/24"]);
    world.add(theirs("a"));
    let there = World::reason(&world.pass().0, "a");
    world.network = None;
    let missing = World::reason(&world.pass().0, "a");
    assert_eq!(there, missing);
}

#[test]
fn nobody_is_told_the_names_of_ports_in_other_namespaces() {
    let mut world = shared();
    world.add(theirs("secret"));
    world.pass();
    let address = world.addresses()[0].to_string();
    let mut it = port("b");
    it.spec.fixed_ips = vec![fixed(&address)];
    world.add(it);
    let (reason, message) = World::reason(&world.pass().0, "b");
    assert_eq!(reason, Reason::AddressInUse);
    assert!(message.contains("a Port of namespace q"), "{message}");
    assert!(!message.contains("secret"), "{message}");
}

/// An `IPAllocation` that somebody makes in `namespace`, of the name for `named`.
fn forged(namespace: &str, named: &str, address: &str, holder: &str) -> IPAllocation {
    let name = allocation_name("subnet0", named.parse().unwrap());
    let it = IPAllocation::new(
        &name,
        IPAllocationSpec {
            address: address.into(),
            subnet: "s0".into(),
            port: Some(holder.to_owned()),
            port_namespace: Some("d".into()),
            port_uid: Some(format!("uid-{holder}")),
            ..IPAllocationSpec::default()
        },
    );
    let mut it = placed(it, &format!("forged-{named}"));
    it.metadata.namespace = Some(namespace.into());
    it
}

#[test]
fn allocations_of_others_hold_nothing_elsewhere() {
    let mut world = World::with(&["10.0.0.0/29"]);
    for host in 1..7 {
        let address = format!("10.0.0.{host}");
        let it = forged("q", &address, &address, "x");
        world.allocations.insert(format!("q/{host}"), Arc::new(it));
    }
    for name in ["a", "b", "c", "e"] {
        world.add(port(name));
    }
    world.pass();
    assert_eq!(world.addresses().len(), 4);
    // Nor do they keep a Subnet.
    world.ports.clear();
    delete_subnet(&mut world);
    let (plan, _) = world.pass();
    assert_eq!(plan.decisions.subnets[0].1.deletion, Deletion::Allowed);
    let mut releases = plan.allocations.release.iter();
    assert!(releases.all(|a| a.namespace().as_deref() == Some("d")));
}

#[test]
fn what_lies_in_the_way_beside_a_subnet_is_passed_by() {
    let mut world = World::with(&["10.0.0.0/29"]);
    // Of the name for one address and with another inside; and one that is not owned as ours.
    for (named, inside) in [("10.0.0.2", "10.0.0.3"), ("10.0.0.6", "10.0.0.6")] {
        let it = forged("d", named, inside, "a");
        world.allocations.insert(it.name_any(), Arc::new(it));
    }
    for name in ["a", "b", "c"] {
        world.add(port(name));
    }
    // Each name is allocated at most once, or the world ends the test.
    world.pass();
    world.pass();
    let mut addresses = world.addresses();
    addresses.sort();
    let free: Vec<IpAddr> = [3, 4].map(|n| IpAddr::from([10, 0, 0, n])).into();
    assert_eq!(addresses, free);
    let status = world.subnets[0].status.as_ref().unwrap();
    assert_eq!(status.service_ip.as_deref(), Some("10.0.0.5"));
    assert!(!world.pass().1);
}

fn with_pool(start: &str, end: &str) -> World {
    let mut world = World::with(&["10.32.0.0/24"]);
    let mut subnet = (*world.subnets[0]).clone();
    subnet.spec.allocation_pools = vec![AllocationPool {
        name: "all".into(),
        start: start.into(),
        end: end.into(),
    }];
    world.subnets[0] = Arc::new(subnet);
    world
}

#[test]
fn what_the_cloud_takes_comes_out_of_the_pool() {
    let mut world = with_pool("10.32.0.10", "10.32.0.250");
    let mut router = port("router");
    router.spec.fixed_ips = vec![fixed("10.32.0.254")];
    world.add(router);
    let (plan, _) = world.pass();
    assert_eq!(World::reason(&plan, "router").0, Reason::Ready);
    let status = world.subnets[0].status.clone().unwrap();
    assert_eq!(status.service_ip.as_deref(), Some("10.32.0.250"));
    // One that is in force keeps what it has.
    let mut world = with_pool("10.32.0.10", "10.32.0.250");
    let mut subnet = (*world.subnets[0]).clone();
    let mut old = status;
    old.service_ip = Some("10.32.0.254".into());
    subnet.status = Some(old);
    world.subnets[0] = Arc::new(subnet);
    world.pass();
    let status = world.subnets[0].status.clone().unwrap();
    assert_eq!(status.service_ip.as_deref(), Some("10.32.0.254"));
}

#[test]
fn a_port_is_not_ready_without_the_subnet_of_its_address() {
    let mut world = World::with(&["10.0.0.0/24"]);
    world.add(port("a"));
    world.pass();
    world.subnets.clear();
    let (plan, _) = world.pass();
    let (reason, message) = World::reason(&plan, "a");
    assert_eq!(reason, Reason::NoSubnet);
    assert!(message.contains("s0"), "{message}");
    // What runs is not cut off by what is merely not there.
    assert!(is_plugged(&plan) && plan.deleted.is_empty());
}

#[test]
fn a_port_made_for_a_server_has_it_as_holder_from_the_start() {
    let mut world = World::with(&["10.0.0.0/24"]);
    let mut spec = ServerSpec::default();
    spec.networks.push(ServerNetwork {
        name: "a".into(),
        ..ServerNetwork::default()
    });
    let server = placed(Server::new("web", spec), "server-uid");
    let mut made = port("web-a");
    made.metadata.owner_references = server.controller_owner_ref(&()).map(|owner| vec![owner]);
    // A Server that does not want the Port does not have it.
    let mut other = port("other");
    other
        .metadata
        .owner_references
        .clone_from(&made.metadata.owner_references);
    world.servers.push(Arc::new(server));
    world.add(made);
    world.add(other);
    world.pass();
    let holder = |name: &str| {
        let port = world.ports.iter().find(|p| p.name_any() == name).unwrap();
        let holder = port.status.as_ref().unwrap().server.clone();
        holder.map(|holder| holder.uid)
    };
    assert_eq!(holder("web-a").as_deref(), Some("server-uid"));
    assert_eq!(holder("other"), None);
}
