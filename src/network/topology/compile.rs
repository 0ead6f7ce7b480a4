//! The compiler itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::dhcp;
use super::input::{
    AddressPairIn, Binding, Direction, GroupIn, Key, NO_CHASSIS, NetworkIn, PortIn, RuleIn,
    Security, SubnetIn, Topology,
};
use super::rules;
use crate::northbound::{
    Acl, AclAction, Desired, DhcpOptions, LogicalSwitch, LogicalSwitchPort, PortGroup, not_carried,
};
use pileus_values::{ClusterId, Mac, Owner, stable_id};

/// Priority of what no rule allows, as in Neutron.
const DROP_PRIORITY: i64 = 1001;
/// Priority of what is allowed, as in Neutron.
const ALLOW_PRIORITY: i64 = 1002;
/// The option of a logical port that names the chassis which may bind it.
pub const REQUESTED_CHASSIS: &str = "requested-chassis";
/// Longest name of an ACL in the Northbound schema, in characters.
const ACL_NAME_MAX: usize = 63;

/// Something that could not be compiled, for a condition on its object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The object that has the problem.
    pub owner: Owner,
    /// The problem, for people.
    pub message: String,
}

/// The compiler's result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// The rows.
    pub desired: Desired,
    /// What was left out, and why; sorted.
    pub problems: Vec<Problem>,
}

/// Name of a Network's logical switch.
#[must_use]
pub fn switch_name(cluster: &ClusterId, network: &Key) -> String {
    let id = stable_id(cluster, "Network", &network.namespace, &network.name);
    format!("pileus-{id}")
}

/// Name of a Port's logical port, which is the interface id on the host.
#[must_use]
pub fn logical_port(cluster: &ClusterId, port: &Key) -> String {
    stable_id(cluster, "Port", &port.namespace, &port.name).to_string()
}

/// Name of a security group's port group. Matches refer to it, so it has no hyphens.
#[must_use]
pub fn group_name(cluster: &ClusterId, group: &Key) -> String {
    let id = stable_id(cluster, "SecurityGroup", &group.namespace, &group.name);
    format!("pg_{}", id.simple())
}

/// Name of the port group of all secured ports.
#[must_use]
pub fn drop_group_name(cluster: &ClusterId) -> String {
    let id = stable_id(cluster, "PortGroup", "", "drop");
    format!("pg_drop_{}", id.simple())
}

/// Compiles a topology. An empty one gives no rows at all.
#[must_use]
pub fn compile(topology: &Topology) -> Compiled {
    let mut compiler = Compiler {
        cluster: &topology.cluster,
        networks: by_key(&topology.networks, |n| &n.owner),
        subnets: by_key(&topology.subnets, |s| &s.owner),
        groups: by_key(&topology.groups, |g| &g.owner),
        out: Compiled::default(),
    };
    compiler.switches();
    compiler.subnets();
    compiler.groups();
    for rule in &topology.rules {
        compiler.rule(rule);
    }
    let mut secured = BTreeSet::new();
    for port in by_key(&topology.ports, |p| &p.owner).values() {
        compiler.port(port, &mut secured);
    }
    if !secured.is_empty() {
        compiler.drop_group(secured);
    }
    compiler.out.problems.sort();
    compiler.out
}

fn by_key<T>(items: &[T], owner: impl Fn(&T) -> &Owner) -> BTreeMap<Key, &T> {
    items
        .iter()
        .map(|item| (Key::of(owner(item)), item))
        .collect()
}

struct Compiler<'a> {
    cluster: &'a ClusterId,
    networks: BTreeMap<Key, &'a NetworkIn>,
    subnets: BTreeMap<Key, &'a SubnetIn>,
    groups: BTreeMap<Key, &'a GroupIn>,
    out: Compiled,
}

impl Compiler<'_> {
    fn problem(&mut self, owner: &Owner, message: String) {
        self.out.problems.push(Problem {
            owner: owner.clone(),
            message,
        });
    }

    fn switches(&mut self) {
        for (key, network) in &self.networks {
            self.out.desired.switches.insert(
                switch_name(self.cluster, key),
                LogicalSwitch {
                    owner: network.owner.clone(),
                    // Multicast is flooded, as on a plain switch and in Neutron.
                    other_config: BTreeMap::from([("mcast_snoop".into(), "false".into())]),
                },
            );
        }
    }

    fn subnets(&mut self) {
        for (key, subnet) in self.subnets.clone() {
            let network = Key::new(&key.namespace, &subnet.network);
            let Some(network) = self.networks.get(&network) else {
                let message = format!("network {} does not exist", subnet.network);
                self.problem(&subnet.owner, message);
                continue;
            };
            match dhcp::options(self.cluster, subnet, network.mtu) {
                Ok(Some(row)) => {
                    let key = DhcpOptions::key(&subnet.owner);
                    self.out.desired.dhcp_options.insert(key, row);
                }
                Ok(None) => {}
                Err(message) => self.problem(&subnet.owner, message),
            }
        }
    }

    fn groups(&mut self) {
        for (key, group) in self.groups.clone() {
            let row = PortGroup {
                owner: group.owner.clone(),
                ports: BTreeSet::new(),
                acls: BTreeMap::new(),
            };
            let name = group_name(self.cluster, &key);
            self.out.desired.port_groups.insert(name, row);
        }
    }

    fn rule(&mut self, rule: &RuleIn) {
        let name = group_name(self.cluster, &rule.group);
        let acl = self.acl(&name, rule);
        let Some(row) = self.out.desired.port_groups.get_mut(&name) else {
            let message = format!("security group {} does not exist", rule.group.name);
            self.problem(&rule.owner, message);
            return;
        };
        match acl {
            Ok((part, acl)) => {
                row.acls.insert(part, acl);
            }
            Err(message) => self.problem(&rule.owner, message),
        }
    }

    fn acl(&self, group_row: &str, rule: &RuleIn) -> Result<(String, Acl), String> {
        let group = &rule.group;
        // Rules of the group and rules of their own may have the same name.
        let (part, label) = if rule.name.is_empty() {
            (format!("object/{}", rule.owner.name), &rule.owner.name)
        } else {
            (format!("rule/{}", rule.name), &rule.name)
        };
        if let Some(problem) = not_carried(label) {
            return Err(format!("rule {}: name {problem}", label.escape_debug()));
        }
        let remote = |name: &str| {
            let key = Key::new(&group.namespace, name);
            self.groups
                .contains_key(&key)
                .then(|| group_name(self.cluster, &key))
        };
        let matches = rules::match_of(group_row, &rule.rule, remote)
            .map_err(|message| format!("rule {label}: {message}"))?;
        let acl = Acl {
            owner: rule.owner.clone(),
            name: shorten(&format!("{}/{}/{label}", group.namespace, group.name)),
            from_port: rule.rule.direction == Direction::Egress,
            priority: ALLOW_PRIORITY,
            matches,
            action: AclAction::AllowRelated,
        };
        Ok((part, acl))
    }

    fn port(&mut self, port: &PortIn, secured: &mut BTreeSet<String>) {
        if !self.networks.contains_key(&port.network) {
            let message = format!(
                "network {}/{} does not exist",
                port.network.namespace, port.network.name
            );
            self.problem(&port.owner, message);
            return;
        }
        let name = logical_port(self.cluster, &Key::of(&port.owner));
        let own = address_text(
            port.mac,
            port.addresses.iter().map(|a| a.address.to_string()),
        );
        let mut row = LogicalSwitchPort {
            owner: port.owner.clone(),
            switch: switch_name(self.cluster, &port.network),
            addresses: BTreeSet::from([own]),
            port_security: BTreeSet::new(),
            disabled: port.binding == Binding::Nowhere,
            options: requested_chassis(&port.binding),
            dhcpv4: self.dhcp_of(port, true),
            dhcpv6: self.dhcp_of(port, false),
        };
        match &port.security {
            Security::Disabled => {
                row.addresses.insert("unknown".to_owned());
            }
            Security::Enabled { groups, pairs } => {
                row.port_security = port_security(port, pairs);
                secured.insert(name.clone());
                for group in groups.iter().collect::<BTreeSet<_>>() {
                    self.join_group(port, &name, group);
                }
            }
        }
        self.out.desired.ports.insert(name, row);
    }

    fn join_group(&mut self, port: &PortIn, name: &str, group: &str) {
        let key = Key::new(&port.owner.namespace, group);
        let row = group_name(self.cluster, &key);
        if let Some(row) = self.out.desired.port_groups.get_mut(&row) {
            row.ports.insert(name.to_owned());
        } else {
            self.problem(
                &port.owner,
                format!("security group {group} does not exist"),
            );
        }
    }

    /// A port has one row of options for each family: those of its first address, in order
    /// of addresses, whose subnet is served.
    fn dhcp_of(&self, port: &PortIn, v4: bool) -> Option<String> {
        let mut addresses: Vec<_> = port
            .addresses
            .iter()
            .filter(|a| a.address.is_ipv4() == v4)
            .collect();
        addresses.sort_by_key(|a| a.address);
        addresses.iter().find_map(|a| {
            let subnet = self
                .subnets
                .get(&Key::new(&port.network.namespace, &a.subnet))?;
            let key = DhcpOptions::key(&subnet.owner);
            self.out
                .desired
                .dhcp_options
                .contains_key(&key)
                .then_some(key)
        })
    }

    fn drop_group(&mut self, ports: BTreeSet<String>) {
        let name = drop_group_name(self.cluster);
        let owner = Owner {
            cluster: self.cluster.clone(),
            kind: "Cluster".to_owned(),
            namespace: String::new(),
            name: "drop".to_owned(),
            uid: self.cluster.0.clone(),
        };
        let acl = |label: &str, from_port, priority, action, rest: &str| Acl {
            owner: owner.clone(),
            name: format!("pileus/{label}"),
            from_port,
            priority,
            matches: format!(
                "{} == @{name} && {rest}",
                if from_port { "inport" } else { "outport" }
            ),
            action,
        };
        let allow = AclAction::Allow;
        let acls = [
            ("drop-from", true, DROP_PRIORITY, AclAction::Drop, "ip"),
            ("drop-to", false, DROP_PRIORITY, AclAction::Drop, "ip"),
            // Requests only: replies pass by northd's own flows.
            (
                "dhcpv4",
                true,
                ALLOW_PRIORITY,
                allow,
                "ip4 && udp && udp.src == 68 && udp.dst == 67",
            ),
            (
                "dhcpv6",
                true,
                ALLOW_PRIORITY,
                allow,
                "ip6 && udp && udp.src == 546 && udp.dst == 547",
            ),
        ]
        .map(|(label, from, priority, action, rest)| {
            (label.to_owned(), acl(label, from, priority, action, rest))
        });
        let row = PortGroup {
            acls: BTreeMap::from(acls),
            owner,
            ports,
        };
        self.out.desired.port_groups.insert(name, row);
    }
}

fn requested_chassis(binding: &Binding) -> BTreeMap<String, String> {
    let chassis = match binding {
        Binding::Anywhere => return BTreeMap::new(),
        Binding::Chassis(name) => name.as_str(),
        Binding::Nowhere => NO_CHASSIS,
    };
    BTreeMap::from([(REQUESTED_CHASSIS.to_owned(), chassis.to_owned())])
}

/// `MAC IP…` with the addresses sorted and each of them once.
fn address_text(mac: Mac, addresses: impl Iterator<Item = String>) -> String {
    let addresses: BTreeSet<String> = addresses.collect();
    std::iter::once(mac.to_string())
        .chain(addresses)
        .collect::<Vec<_>>()
        .join(" ")
}

fn port_security(port: &PortIn, pairs: &[AddressPairIn]) -> BTreeSet<String> {
    let mut by_mac: HashMap<Mac, Vec<String>> = HashMap::new();
    let own = port.addresses.iter().map(|a| a.address.to_string());
    by_mac.entry(port.mac).or_default().extend(own);
    for pair in pairs {
        by_mac
            .entry(pair.mac.unwrap_or(port.mac))
            .or_default()
            .push(net_text(pair.net));
    }
    by_mac
        .into_iter()
        .map(|(mac, addresses)| address_text(mac, addresses.into_iter()))
        .collect()
}

/// A range of one address is written as the address: OVN reads `/32` as a host, too, but
/// writes it in its own form elsewhere.
fn net_text(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.trunc().to_string()
    }
}

/// Shortens a name to the length of an ACL's name; a hash keeps it unique.
fn shorten(name: &str) -> String {
    if name.chars().count() <= ACL_NAME_MAX {
        return name.to_owned();
    }
    let hash = hex::encode(&Sha256::digest(name.as_bytes())[..4]);
    let cut: String = name.chars().take(ACL_NAME_MAX - 9).collect();
    format!("{cut}~{hash}")
}
