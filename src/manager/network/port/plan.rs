//! Decides about all Ports at once, so that no two ever get one address. Pure.
//!
//! Ports that have their addresses come first, then the older ones. A Port keeps what it has:
//! a later fault of its spec, or of what it refers to, is reported in its condition only.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kube::ResourceExt;

use super::addresses;
use crate::network::address_pool::Holder;
use crate::network::decision::Decision;
use crate::network::kinds::{
    Decided, NetworkKind, Observed, Planning, Users, has_finalizer, is_deleting, key, owner,
};
use crate::network::network::plan::{ParentNetwork, parent_networks};
use crate::network::security_group::plan::existing_groups;
use pileus_api::network::PortSecurity;
use pileus_api::port::AllocatedIp;
use pileus_api::validation;
use pileus_api::{IPAllocation, Network, Port, PortStatus, Reason, SecurityGroup, Server, names};
use pileus_network::northbound::Desired;
use pileus_network::topology::{
    AddressIn, AddressPairIn, Binding, Key, PortIn, Problem, Security, logical_port,
};
use pileus_values::{ClusterId, Mac};

/// Attempts at deriving an Ethernet address that is free in the Network.
const MAC_ATTEMPTS: u32 = 64;

/// A refusal: reason and message.
pub(super) type Refusal = (Reason, String);

impl NetworkKind for Port {
    // Servers wait for them.
    const REPORTED_FIRST: bool = true;

    fn add_users(cluster: &ClusterId, observed: &Observed, users: &mut Users) {
        for port in observed.ports.iter().filter(|port| has_finalizer(&***port)) {
            let Key { namespace, name } = key(&**port);
            users.add::<Network>(network_key(port), format!("Port {namespace}/{name}"));
        }
        for (port, user) in servers_of_ports(cluster, observed) {
            users.add::<Self>(port, user);
        }
    }

    fn plan(planning: &mut Planning<'_>) -> Decided<Self> {
        let observed = planning.observed;
        let mut held: HashMap<Key, Vec<Arc<IPAllocation>>> = HashMap::new();
        for allocation in &observed.allocations {
            if let Holder::Port {
                namespace, name, ..
            } = Holder::of(allocation)
            {
                let of_port = held.entry(Key { namespace, name }).or_default();
                of_port.push(allocation.clone());
            }
        }
        let mut sorted: Vec<&Arc<Port>> = observed
            .ports
            .iter()
            .filter(|port| has_finalizer(&***port))
            .collect();
        sorted.sort_by_cached_key(|p| {
            (
                p.status.as_ref().is_none_or(|s| s.mac_address.is_none()),
                p.metadata.creation_timestamp.as_ref().map(|t| t.0),
                p.namespace(),
                p.name_any(),
            )
        });
        let mut planner = Planner {
            networks: parent_networks(&planning.decisions.networks),
            groups: existing_groups(observed),
            macs: HashMap::new(),
            held,
            planning,
        };
        let decide = |port: &Arc<Port>| {
            let decision = planner.decide(port);
            if decision.stays() {
                planner.add_group_users(port);
                planner.add_input(port, &decision.status);
            }
            (port.clone(), decision)
        };
        sorted.into_iter().map(decide).collect()
    }

    fn revert(
        cluster: &ClusterId,
        port: &Self,
        decision: &mut Decision<PortStatus>,
        desired: &mut Desired,
    ) {
        if port
            .status
            .as_ref()
            .is_some_and(|s| s.mac_address.is_some())
        {
            return;
        }
        decision.status = port.status.clone().unwrap_or_default();
        let id = logical_port(cluster, &key(port));
        desired.ports.remove(&id);
        for group in desired.port_groups.values_mut() {
            group.ports.remove(&id);
        }
    }
}

fn network_key(port: &Port) -> Key {
    let network = &port.spec.network;
    let namespace = network.namespace.clone().or_else(|| port.namespace());
    Key {
        namespace: namespace.unwrap_or_default(),
        name: network.name.clone(),
    }
}

/// Who uses which Port: Servers that name it or, once built, that it was made for, while they
/// are not being deleted, and Instances that have it as an interface, as long as they are there.
fn servers_of_ports(cluster: &ClusterId, observed: &Observed) -> Vec<(Key, String)> {
    let mut users = Vec::new();
    let mut servers: HashMap<String, &Arc<Server>> = HashMap::new();
    for server in &observed.servers {
        if is_deleting(&**server) {
            continue;
        }
        let Key { namespace, name } = key(&**server);
        servers.insert(server.uid().unwrap_or_default(), server);
        for port in server.spec.networks.iter().filter_map(|n| n.port.as_ref()) {
            users.push((Key::new(&namespace, port), format!("Server {name}")));
        }
    }
    let mut interfaces: HashMap<&str, &str> = HashMap::new();
    for instance in &observed.instances {
        for nic in &instance.spec.nics {
            interfaces.insert(&nic.port_id, &instance.spec.server.name);
        }
    }
    for port in &observed.ports {
        let made_for = port
            .owner_references()
            .iter()
            .filter(|owner| owner.kind == "Server")
            .filter_map(|owner| servers.get(&owner.uid))
            // Before it is built, its Server may replace the Port by one with another address.
            .filter(|server| server.status.as_ref().is_some_and(|s| s.instance.is_some()))
            .map(|server| server.name_any());
        let id = logical_port(cluster, &key(&**port));
        let plugged = interfaces.get(id.as_str()).map(|name| (*name).to_owned());
        for server in made_for.chain(plugged) {
            users.push((key(&**port), format!("Server {server}")));
        }
    }
    users
}

pub(super) struct Planner<'p, 'a> {
    pub planning: &'p mut Planning<'a>,
    networks: HashMap<Key, ParentNetwork>,
    /// The security groups that exist.
    groups: HashSet<Key>,
    /// Ethernet addresses in use, by Network, with their Ports.
    macs: HashMap<Key, HashMap<Mac, String>>,
    /// Allocations by the Port that holds them.
    pub held: HashMap<Key, Vec<Arc<IPAllocation>>>,
}

fn refuse(status: PortStatus, (reason, message): Refusal) -> Decision<PortStatus> {
    Decision::not_ready(status, reason, message)
}

/// The security groups that a Port is in.
fn security_groups(port: &Port) -> Vec<String> {
    let named = port.spec.security_groups.clone();
    named.unwrap_or_else(|| vec![names::DEFAULT_GROUP.to_owned()])
}

impl Planner<'_, '_> {
    fn decide(&mut self, port: &Arc<Port>) -> Decision<PortStatus> {
        let own = key(&**port);
        let mut status = PortStatus {
            observed_generation: None,
            conditions: Vec::new(),
            ..port.status.clone().unwrap_or_default()
        };
        let network_key = network_key(port);
        if is_deleting(&**port) {
            return self.delete(port, &own, &network_key, status);
        }
        let has_addresses = status.mac_address.is_some();
        // A Port that has its addresses keeps them; its condition is decided below.
        if !has_addresses && let Err(message) = validation::port(&port.spec) {
            return refuse(status, (Reason::InvalidSpec, message));
        }
        let found = find_network(&self.networks, &network_key, &own.namespace, has_addresses);
        let network = match found {
            Ok(network) => network.clone(),
            Err(refusal) => return refuse(status, refusal),
        };
        let mac = match self.mac(port, &own, &network_key, &status) {
            Ok(mac) => mac,
            Err(refusal) => return refuse(status, refusal),
        };
        let id = logical_port(self.planning.cluster, &own);
        let found = match addresses::assign(self, port, &network_key, &id, mac, &status) {
            Ok(found) => found,
            Err(refusal) => return refuse(status, refusal),
        };
        self.macs
            .entry(network_key)
            .or_default()
            .insert(mac, format!("{}/{}", own.namespace, own.name));
        status.port_id = Some(id);
        status.network_uid = network.uid();
        status.mac_address = Some(mac.to_string());
        status.addresses = Some(joined(&found));
        status.fixed_ips = found;
        if let Err(refusal) = self.check(port, &own.namespace, &network, &status) {
            return refuse(status, refusal);
        }
        let addresses = joined(&status.fixed_ips);
        let message = format!("{addresses} in Network {}", network.name_any());
        Decision::ready(status, message)
    }

    fn delete(
        &mut self,
        port: &Arc<Port>,
        own: &Key,
        network: &Key,
        status: PortStatus,
    ) -> Decision<PortStatus> {
        // Until it is deleted, others cannot have its address.
        if let Some(mac) = status.mac_address.as_ref().and_then(|m| m.parse().ok()) {
            self.macs
                .entry(network.clone())
                .or_default()
                .insert(mac, format!("{}/{}", own.namespace, own.name));
        }
        let users = self.planning.users.of(&**port);
        if users.is_empty() {
            let uid = port.uid();
            let held = self.held.get(own).into_iter().flatten();
            self.planning.allocations.release.extend(
                held.filter(|allocation| allocation.spec.port_uid == uid)
                    .cloned(),
            );
        }
        Decision::deleting(status, "Port", users)
    }

    /// The Port's security groups are in use while it stays.
    fn add_group_users(&mut self, port: &Port) {
        let Key { namespace, name } = key(port);
        for group in security_groups(port) {
            let group = Key::new(&namespace, &group);
            let user = format!("Port {name}");
            self.planning.users.add::<SecurityGroup>(group, user);
        }
    }

    /// Adds a Port that has its addresses to the compiler's input.
    fn add_input(&mut self, port: &Port, status: &PortStatus) {
        let Some(mac) = &status.mac_address else {
            return;
        };
        let owner = owner(self.planning.cluster, port);
        match self.input(port, status, mac) {
            Ok((mac, addresses, security)) => self.planning.topology.ports.push(PortIn {
                owner,
                network: network_key(port),
                mac,
                addresses,
                security,
                // Decided when the Servers are known.
                binding: Binding::default(),
            }),
            Err(message) => self.planning.problems.push(Problem { owner, message }),
        }
    }

    fn input(
        &self,
        port: &Port,
        status: &PortStatus,
        mac: &str,
    ) -> Result<(Mac, Vec<AddressIn>, Security), String> {
        let addresses = status.fixed_ips.iter().map(|ip| {
            Ok(AddressIn {
                subnet: ip.subnet.clone(),
                address: ip
                    .address
                    .parse()
                    .map_err(|_| format!("fixedIPs `{}` is not an IP address", ip.address))?,
            })
        });
        let addresses = addresses.collect::<Result<_, String>>()?;
        let network = self.networks.get(&network_key(port));
        let default = network.map(|parent| parent.network.spec.port_security);
        let security = port.spec.port_security.or(default).unwrap_or_default();
        let security = match security {
            PortSecurity::Disabled => Security::Disabled,
            PortSecurity::Enabled => {
                let pairs = port.spec.allowed_address_pairs.iter().map(|pair| {
                    Ok(AddressPairIn {
                        mac: pair.mac_address.as_deref().map(parse_mac).transpose()?,
                        net: parse_range(&pair.address)?,
                    })
                });
                Security::Enabled {
                    groups: security_groups(port),
                    pairs: pairs.collect::<Result<_, String>>()?,
                }
            }
        };
        Ok((parse_mac(mac)?, addresses, security))
    }

    /// The Ethernet address: the one it has, the one it asks for, or one derived from its
    /// id; free in its Network.
    fn mac(
        &self,
        port: &Port,
        own: &Key,
        network: &Key,
        status: &PortStatus,
    ) -> Result<Mac, Refusal> {
        let id = logical_port(self.planning.cluster, own);
        let own = format!("{}/{}", own.namespace, own.name);
        let used = self.macs.get(network);
        let holder = |mac: &Mac| used.and_then(|used| used.get(mac)).filter(|h| **h != own);
        let fixed = match (&status.mac_address, &port.spec.mac_address) {
            (Some(text), _) | (None, Some(text)) => Some(
                text.parse::<Mac>()
                    .map_err(|error| (Reason::InvalidSpec, format!("macAddress: {error}")))?,
            ),
            (None, None) => None,
        };
        if let Some(mac) = fixed {
            return match holder(&mac) {
                None => Ok(mac),
                Some(other) => Err((
                    Reason::MacInUse,
                    format!(
                        "macAddress `{mac}` is held by Port {other} of the same Network {}; choose \
                         another, leave it out, or delete that Port",
                        network.name
                    ),
                )),
            };
        }
        let in_ovn = self.planning.ovn.macs.get(&id).copied();
        in_ovn
            .into_iter()
            .chain((0..MAC_ATTEMPTS).map(|attempt| Mac::derive(&id, attempt)))
            .find(|mac| holder(mac).is_none())
            .ok_or_else(|| {
                (
                    Reason::MacInUse,
                    format!(
                        "no free Ethernet address was found in Network {}; set macAddress",
                        network.name
                    ),
                )
            })
    }

    /// What is wrong with a Port that has its addresses.
    fn check(
        &self,
        port: &Port,
        namespace: &str,
        network: &Network,
        status: &PortStatus,
    ) -> Result<(), Refusal> {
        let spec = &port.spec;
        let security = spec.port_security.unwrap_or(network.spec.port_security);
        let invalid = |message: String| Err((Reason::InvalidSpec, message));
        if let Err(message) = validation::port(spec) {
            return invalid(message);
        }
        if let Some(asked) = addresses::changed(port, status) {
            return invalid(asked);
        }
        if security == PortSecurity::Disabled {
            return match spec.security_groups.as_deref() {
                None | Some([]) => Ok(()),
                Some(groups) => invalid(format!(
                    "securityGroups {} cannot be enforced with portSecurity Disabled; leave them out, \
                     or enable it",
                    groups.join(", ")
                )),
            };
        }
        let missing: Vec<String> = security_groups(port)
            .into_iter()
            .filter(|group| !self.groups.contains(&Key::new(namespace, group)))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err((
            Reason::SecurityGroupNotFound,
            format!(
                "SecurityGroup {} does not exist in namespace {namespace}; make it, or name others in \
                 securityGroups",
                missing.join(", ")
            ),
        ))
    }
}

fn find_network<'n>(
    networks: &'n HashMap<Key, ParentNetwork>,
    key: &Key,
    namespace: &str,
    has_addresses: bool,
) -> Result<&'n Arc<Network>, Refusal> {
    let Some(ParentNetwork { network, usable }) = networks.get(key) else {
        return Err((
            Reason::NetworkNotFound,
            format!(
                "Network {} does not exist in namespace {}; make it, or correct `network`",
                key.name, key.namespace
            ),
        ));
    };
    if has_addresses {
        return Ok(network);
    }
    let shared = network.spec.shared_with.as_ref();
    if key.namespace != namespace && !shared.is_some_and(|s| s.allows(namespace)) {
        return Err((
            Reason::NetworkNotShared,
            format!(
                "Network {}/{} is not shared with namespace {namespace}; its owner can add that to \
                 sharedWith.namespaces",
                key.namespace, key.name
            ),
        ));
    }
    if !usable {
        return Err((
            Reason::DependencyNotReady,
            format!("Network {} is not ready; see its conditions", key.name),
        ));
    }
    Ok(network)
}

fn joined(ips: &[AllocatedIp]) -> String {
    let texts: Vec<&str> = ips.iter().map(|ip| ip.address.as_str()).collect();
    texts.join(",")
}

fn parse_mac(text: &str) -> Result<Mac, String> {
    text.parse()
        .map_err(|error: pileus_values::mac::MacError| error.to_string())
}

fn parse_range(text: &str) -> Result<IpNet, String> {
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| format!("allowedAddressPairs `{text}` is not a range such as 10.0.0.0/24"))
}
