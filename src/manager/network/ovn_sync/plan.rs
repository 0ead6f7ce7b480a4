//! The whole network at once: objects in, decisions, effects and OVN's rows out. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use kube::{Resource, ResourceExt};

use crate::network::decision::{Decision, Deletion};
use crate::network::from_api::{Objects, from_api};
use crate::network::network;
use crate::network::port::plan as ports;
use crate::network::security_group::plan as groups;
use crate::network::subnet::ledger::Ledger;
use crate::network::subnet::plan as subnets;
use pileus_api::names::{DEFAULT_GROUP, MANAGER_FINALIZER};
use pileus_api::{
    IPAllocation, Instance, Network, NetworkStatus, Port, PortStatus, SecurityGroup,
    SecurityGroupRule, SecurityGroupRuleStatus, SecurityGroupStatus, Server, Subnet, SubnetStatus,
};
use pileus_network::northbound::Desired;
use pileus_network::topology::compile;
use pileus_values::{ClusterId, Mac};

type Key = (String, String);

/// Everything the network is made of.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Networks.
    pub networks: Vec<Arc<Network>>,
    /// Subnets.
    pub subnets: Vec<Arc<Subnet>>,
    /// Ports.
    pub ports: Vec<Arc<Port>>,
    /// Addresses in use.
    pub allocations: Vec<Arc<IPAllocation>>,
    /// Security groups.
    pub groups: Vec<Arc<SecurityGroup>>,
    /// Security group rules.
    pub rules: Vec<Arc<SecurityGroupRule>>,
    /// Servers.
    pub servers: Vec<Arc<Server>>,
    /// Instances.
    pub instances: Vec<Arc<Instance>>,
}

/// Addresses that OVN's rows have: of guests that may run although their objects are yet to
/// be applied again.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// Ethernet addresses by port id.
    pub macs: HashMap<String, Mac>,
    /// IP addresses by the switch's name, each with its port id.
    pub addresses: HashMap<String, HashMap<IpAddr, String>>,
}

/// Objects with what was decided about each.
pub type Decisions<K, S> = Vec<(Arc<K>, Decision<S>)>;

/// What is to be done.
#[derive(Debug, Default)]
pub struct Plan {
    /// About Networks.
    pub networks: Decisions<Network, NetworkStatus>,
    /// About Subnets.
    pub subnets: Decisions<Subnet, SubnetStatus>,
    /// About Ports.
    pub ports: Decisions<Port, PortStatus>,
    /// About security groups.
    pub groups: Decisions<SecurityGroup, SecurityGroupStatus>,
    /// About rules.
    pub rules: Decisions<SecurityGroupRule, SecurityGroupRuleStatus>,
    /// Addresses to take first of all.
    pub create: Vec<IPAllocation>,
    /// Addresses to give up once the API server says that their Port is no more; before any
    /// is taken.
    pub stale: Vec<Arc<IPAllocation>>,
    /// Addresses to give up after OVN has forgotten them.
    pub release: Vec<Arc<IPAllocation>>,
    /// OVN's rows.
    pub desired: Desired,
    /// uids of objects whose deletion was observed and whose rows are to go.
    pub removed: BTreeSet<String>,
}

/// Whether an object takes part: it has our finalizer.
fn ours<K: Resource>(object: &Arc<K>) -> bool {
    object.finalizers().iter().any(|f| f == MANAGER_FINALIZER)
}

/// Objects that lack our finalizer and should have it before anything is made for them.
#[must_use]
pub fn unmarked<K: Resource>(objects: &[Arc<K>]) -> Vec<Arc<K>> {
    let lacks = |o: &&Arc<K>| !ours(o) && o.meta().deletion_timestamp.is_none();
    objects.iter().filter(lacks).cloned().collect()
}

/// Namespaces that need a `default` group: those with a Port or a Server.
#[must_use]
pub fn tenant_namespaces(snapshot: &Snapshot) -> BTreeSet<String> {
    let ports = snapshot.ports.iter().filter_map(|p| p.namespace());
    let servers = snapshot.servers.iter().filter_map(|s| s.namespace());
    ports.chain(servers).collect()
}

fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Decides. `max_mtu` is what a guest's packet may have in bytes.
#[must_use]
pub fn plan(cluster: &ClusterId, max_mtu: i32, snapshot: &Snapshot, hints: &Hints) -> Plan {
    let mut plan = Plan::default();
    let all_ports: Vec<_> = snapshot.ports.iter().filter(|p| ours(p)).cloned().collect();
    let all_subnets: Vec<_> = snapshot
        .subnets
        .iter()
        .filter(|s| ours(s))
        .cloned()
        .collect();
    let all_groups: Vec<_> = snapshot
        .groups
        .iter()
        .filter(|g| ours(g))
        .cloned()
        .collect();

    plan_networks(max_mtu, snapshot, &all_ports, &mut plan);
    let parents: HashMap<Key, subnets::Parent> = plan
        .networks
        .iter()
        .map(|(network, decision)| {
            let usable =
                decision.status.mtu.is_some() && network.metadata.deletion_timestamp.is_none();
            (
                key(&**network),
                subnets::Parent {
                    network: network.clone(),
                    usable,
                },
            )
        })
        .collect();
    let mut found = subnets::plan(&all_subnets, &parents, &snapshot.allocations);
    for (network, ledgers) in &mut found.ledgers {
        let owner = pileus_network::topology::Key::new(&network.0, &network.1);
        if let Some(hinted) = hints
            .addresses
            .get(&pileus_network::topology::switch_name(cluster, &owner))
        {
            for ledger in ledgers {
                let inside =
                    |(address, _): &(&IpAddr, &String)| ledger.parsed.cidr.contains(*address);
                ledger.hinted = hinted
                    .iter()
                    .filter(inside)
                    .map(|(a, p)| (*a, p.clone()))
                    .collect();
            }
        }
    }
    let networks = parents
        .iter()
        .map(|(k, p)| (k.clone(), (p.network.clone(), p.usable)))
        .collect();
    let existing = all_groups.iter().map(|g| key(&**g)).collect();
    let decided = ports::plan(
        &ports::Input {
            cluster,
            ports: &all_ports,
            networks: &networks,
            groups: &existing,
            allocations: &snapshot.allocations,
            users: &port_users(cluster, snapshot),
            hinted_macs: &hints.macs,
        },
        &mut found.ledgers,
    );
    plan.subnets = found.decisions;
    plan.ports = decided.decisions;
    plan.create = found.create;
    plan.create
        .extend(decided.create.into_iter().map(|(_, allocation)| allocation));
    plan.stale = decided.stale;
    plan.release = found.delete;
    plan.release.extend(decided.release);

    let group_users = group_users(&all_groups, snapshot, &plan.ports);
    let problems = compile_rows(
        cluster,
        snapshot,
        &all_groups,
        &group_users,
        &found.ledgers,
        &mut plan,
    );
    plan_groups(
        snapshot,
        &all_groups,
        &existing,
        &group_users,
        &problems,
        &mut plan,
    );
    apply_problems(&problems, &mut plan);
    plan.removed = released(&plan.networks)
        .chain(released(&plan.subnets))
        .chain(released(&plan.ports))
        .chain(released(&plan.groups))
        .collect();
    plan
}

fn released<K: Resource, S>(decisions: &Decisions<K, S>) -> impl Iterator<Item = String> + '_ {
    decisions
        .iter()
        .filter(|(_, decision)| decision.deletion == Deletion::Allowed)
        .filter_map(|(object, _)| object.uid())
}

fn plan_networks(max_mtu: i32, snapshot: &Snapshot, ports: &[Arc<Port>], plan: &mut Plan) {
    let mut users: HashMap<Key, Vec<String>> = HashMap::new();
    for subnet in &snapshot.subnets {
        let (namespace, name) = key(&**subnet);
        let network = (namespace, subnet.spec.network.clone());
        users
            .entry(network)
            .or_default()
            .push(format!("Subnet {name}"));
    }
    for port in ports {
        let (namespace, name) = key(&**port);
        let network = &port.spec.network;
        let owner = network
            .namespace
            .clone()
            .unwrap_or_else(|| namespace.clone());
        users
            .entry((owner, network.name.clone()))
            .or_default()
            .push(format!("Port {namespace}/{name}"));
    }
    plan.networks = snapshot
        .networks
        .iter()
        .filter(|n| ours(n))
        .map(|network| {
            let users = users.remove(&key(&**network)).unwrap_or_default();
            (
                network.clone(),
                network::plan::plan(network, max_mtu, users),
            )
        })
        .collect();
}

/// Who uses which Port: Servers that name it or, once built, that it was made for, while they
/// are not being deleted, and Instances that have it as an interface, as long as they are there.
fn port_users(cluster: &ClusterId, snapshot: &Snapshot) -> HashMap<Key, BTreeSet<String>> {
    let mut users: HashMap<Key, BTreeSet<String>> = HashMap::new();
    let mut owners: HashMap<String, &Arc<Server>> = HashMap::new();
    for server in &snapshot.servers {
        if server.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let (namespace, name) = key(&**server);
        owners.insert(server.uid().unwrap_or_default(), server);
        for port in server.spec.networks.iter().filter_map(|n| n.port.clone()) {
            let users = users.entry((namespace.clone(), port)).or_default();
            users.insert(format!("Server {name}"));
        }
    }
    let mut nics: HashMap<&str, String> = HashMap::new();
    for instance in &snapshot.instances {
        for nic in &instance.spec.nics {
            nics.insert(
                &nic.port_id,
                format!("Server {}", instance.spec.server.name),
            );
        }
    }
    for port in &snapshot.ports {
        let made_for = port
            .owner_references()
            .iter()
            .filter(|owner| owner.kind == "Server")
            .filter_map(|owner| owners.get(&owner.uid))
            // Until it was built, its Server may make the Port anew with another address.
            .filter(|server| server.status.as_ref().is_some_and(|s| s.instance.is_some()))
            .map(|server| format!("Server {}", server.name_any()));
        let plugged = nics.get(ports::port_id(cluster, port).as_str()).cloned();
        let all: BTreeSet<String> = made_for.chain(plugged).collect();
        if !all.is_empty() {
            users.entry(key(&**port)).or_default().extend(all);
        }
    }
    users
}

fn group_users(
    groups: &[Arc<SecurityGroup>],
    snapshot: &Snapshot,
    ports: &Decisions<Port, PortStatus>,
) -> HashMap<Key, Vec<String>> {
    let mut users: HashMap<Key, Vec<String>> = HashMap::new();
    let default = [DEFAULT_GROUP.to_owned()];
    for (port, decision) in ports {
        if decision.deletion == Deletion::Allowed {
            continue;
        }
        let (namespace, name) = key(&**port);
        for group in port.spec.security_groups.as_deref().unwrap_or(&default) {
            let group = (namespace.clone(), group.clone());
            users.entry(group).or_default().push(format!("Port {name}"));
        }
    }
    // A group that is going itself holds no other back, or two that refer to each other
    // would stay for ever.
    let staying: Vec<_> = groups
        .iter()
        .filter(|g| g.metadata.deletion_timestamp.is_none())
        .cloned()
        .collect();
    let live: HashSet<Key> = staying.iter().map(|g| key(&**g)).collect();
    let rules: Vec<_> = snapshot
        .rules
        .iter()
        .filter(|rule| {
            let group = (
                rule.namespace().unwrap_or_default(),
                rule.spec.security_group.clone(),
            );
            live.contains(&group)
        })
        .cloned()
        .collect();
    for (group, names) in groups::remote_groups(&staying, &rules) {
        users.entry(group).or_default().extend(names);
    }
    users
}

/// Compiles what is to be in force; returns what cannot be, by the owner's uid.
fn compile_rows(
    cluster: &ClusterId,
    snapshot: &Snapshot,
    groups: &[Arc<SecurityGroup>],
    group_users: &HashMap<Key, Vec<String>>,
    ledgers: &HashMap<Key, Vec<Ledger>>,
    plan: &mut Plan,
) -> groups::Problems {
    let networks = planned(&plan.networks, |n, status| n.status = Some(status));
    let accepted: HashSet<String> = ledgers
        .values()
        .flatten()
        .filter_map(|ledger| ledger.subnet.uid())
        .collect();
    let mut subnets = planned(&plan.subnets, |s, status| {
        s.status = Some(status);
        // What cannot be read is left out rather than the whole Subnet.
        s.spec
            .dns_servers
            .retain(|text| text.parse::<IpAddr>().is_ok());
        s.spec.host_routes.retain(|route| {
            route.destination.parse::<ipnet::IpNet>().is_ok()
                && route.next_hop.parse::<IpAddr>().is_ok()
        });
    });
    subnets.retain(|s| s.uid().is_some_and(|uid| accepted.contains(&uid)));
    let ports = planned(&plan.ports, |p, status| p.status = Some(status));
    let groups: Vec<_> = groups
        .iter()
        .filter(|g| {
            g.metadata.deletion_timestamp.is_none()
                || group_users
                    .get(&key(&***g))
                    .is_some_and(|users| !users.is_empty())
        })
        .collect();
    let live: HashSet<Key> = groups.iter().map(|g| key(&***g)).collect();
    let rules: Vec<_> = snapshot
        .rules
        .iter()
        .filter(|r| r.metadata.deletion_timestamp.is_none())
        .filter(|r| {
            live.contains(&(
                r.namespace().unwrap_or_default(),
                r.spec.security_group.clone(),
            ))
        })
        .collect();
    let (topology, unreadable) = from_api(
        cluster,
        Objects {
            networks: &networks.iter().collect::<Vec<_>>(),
            subnets: &subnets.iter().collect::<Vec<_>>(),
            ports: &ports.iter().collect::<Vec<_>>(),
            groups: &groups.iter().map(|g| &***g).collect::<Vec<_>>(),
            rules: &rules.iter().map(|r| &***r).collect::<Vec<_>>(),
        },
    );
    let compiled = compile(&topology);
    plan.desired = compiled.desired;
    let mut problems = groups::Problems::new();
    for problem in unreadable.into_iter().chain(compiled.problems) {
        problems
            .entry(problem.owner.uid)
            .or_default()
            .push(problem.message);
    }
    problems
}

/// The objects that stay, with the status that was decided.
fn planned<K: Clone, S: Clone>(
    decisions: &[(Arc<K>, Decision<S>)],
    set: impl Fn(&mut K, S),
) -> Vec<K> {
    decisions
        .iter()
        .filter(|(_, decision)| decision.deletion != Deletion::Allowed)
        .map(|(object, decision)| {
            let mut object = K::clone(object);
            set(&mut object, decision.status.clone());
            object
        })
        .collect()
}

fn plan_groups(
    snapshot: &Snapshot,
    all: &[Arc<SecurityGroup>],
    existing: &HashSet<Key>,
    users: &HashMap<Key, Vec<String>>,
    problems: &groups::Problems,
    plan: &mut Plan,
) {
    let mut extra: HashMap<Key, Vec<&SecurityGroupRule>> = HashMap::new();
    for rule in &snapshot.rules {
        let group = (
            rule.namespace().unwrap_or_default(),
            rule.spec.security_group.clone(),
        );
        if rule.metadata.deletion_timestamp.is_none() {
            plan.rules.push((
                rule.clone(),
                groups::rule(rule, existing.contains(&group), problems),
            ));
        }
        extra.entry(group).or_default().push(rule);
    }
    plan.groups = all
        .iter()
        .map(|group| {
            let key = key(&**group);
            let extra = extra.get(&key).map_or(&[][..], Vec::as_slice);
            let users = users.get(&key).cloned().unwrap_or_default();
            (group.clone(), groups::group(group, extra, users, problems))
        })
        .collect();
}

/// What the compiler could not use shows in the conditions of Subnets and Ports that would
/// be well otherwise.
fn apply_problems(problems: &groups::Problems, plan: &mut Plan) {
    fn apply<K: Resource, S>(problems: &groups::Problems, decisions: &mut Decisions<K, S>) {
        for (object, decision) in decisions {
            if decision.ready.status == Some(true)
                && let Some(found) = object.uid().and_then(|uid| problems.get(&uid))
            {
                decision.ready.status = Some(false);
                decision.ready.reason = pileus_api::Reason::InvalidSpec;
                decision.ready.message = found.join("; ");
            }
        }
    }
    apply(problems, &mut plan.subnets);
    apply(problems, &mut plan.ports);
}
