//! Decides about all Ports at once, so that no two ever get one address. Pure.
//!
//! Ports that have their addresses come first, then the older ones. A Port keeps what it has:
//! a later fault of its spec, or of what it refers to, is reported in its condition only. Ports in
//! Networks of other namespaces keep their addresses as well, but are unplugged when the Network
//! is not theirs to use any more.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kube::ResourceExt;

use super::access::{Access, Rows};
use super::{addresses, network_key};
use crate::network::address_pool::{Holder, believed, describe_port};
use crate::network::decision::Decision;
use crate::network::kinds::{
    Decided, NetworkKind, Observed, Planning, Users, has_finalizer, is_deleting, key, owner,
};
use crate::network::network::plan::{ParentNetwork, parent_networks};
use crate::network::network::sharing::{has_addresses, is_foreign};
use crate::network::security_group::plan::existing_groups;
use pileus_api::common::Resolved;
use pileus_api::network::PortSecurity;
use pileus_api::port::AllocatedIp;
use pileus_api::server::ServerNetwork;
use pileus_api::validation;
use pileus_api::{
    IPAllocation, Instance, Network, Port, PortStatus, Reason, SecurityGroup, Server, names,
};
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
        let allocations = believed(&observed.allocations, &observed.subnets);
        let holders: HashSet<_> = allocations
            .into_iter()
            .filter_map(|allocation| allocation.spec.port_uid.as_ref())
            .collect();
        for port in observed.ports.iter().filter(|port| has_finalizer(&***port)) {
            // Ports that hold nothing, and those of other namespaces, keep no Network.
            let holds = has_addresses(port) || port.uid().is_some_and(|uid| holders.contains(&uid));
            if holds && !is_foreign(port) {
                let Key { namespace, name } = key(&**port);
                users.add::<Network>(network_key(port), format!("Port {namespace}/{name}"));
            }
        }
        for (port, user) in servers_of_ports(cluster, observed) {
            users.add::<Self>(port, user);
        }
    }

    fn plan(planning: &mut Planning<'_>) -> Decided<Self> {
        let observed = planning.observed;
        let mut held: HashMap<Key, Vec<Arc<IPAllocation>>> = HashMap::new();
        for allocation in believed(&observed.allocations, &observed.subnets) {
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
        let leaving = planning.decisions.subnets.iter();
        let leaving = leaving.filter(|(_, decision)| !decision.stays());
        let mut planner = Planner {
            networks: parent_networks(&planning.decisions.networks),
            leaving_subnets: leaving.map(|(subnet, _)| key(&**subnet)).collect(),
            groups: existing_groups(observed),
            servers: observed
                .servers
                .iter()
                .filter(|server| !is_deleting(&***server))
                .map(|server| (server.uid().unwrap_or_default(), server))
                .collect(),
            macs: HashMap::new(),
            held,
            planning,
        };
        let decide = |port: &Arc<Port>| {
            let access = planner.access(port);
            let decision = planner.decide(port, &access);
            if decision.stays() {
                planner.add_group_users(port);
                match access.rows {
                    Rows::Wanted => planner.add_input(port, &decision.status),
                    Rows::Removed => {
                        let owner = owner(planner.planning.cluster, &**port);
                        planner.planning.unplugged.push(owner);
                    }
                    Rows::Untouched => {}
                }
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
    for instance in observed.instances.iter().filter(|i| is_of_its_host(i)) {
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

/// Whether an Instance is where Instances are made: anybody may make one elsewhere.
fn is_of_its_host(instance: &Instance) -> bool {
    instance.namespace() == Some(names::host_namespace(&instance.spec.host))
}

pub(super) struct Planner<'p, 'a> {
    pub planning: &'p mut Planning<'a>,
    pub networks: HashMap<Key, ParentNetwork>,
    /// Subnets that are deleted now.
    pub leaving_subnets: HashSet<Key>,
    /// The security groups that exist.
    groups: HashSet<Key>,
    /// Servers by uid.
    servers: HashMap<String, &'a Arc<Server>>,
    /// Ethernet addresses in use, by Network, with their Ports.
    macs: HashMap<Key, HashMap<Mac, Key>>,
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
    fn decide(&mut self, port: &Arc<Port>, access: &Access) -> Decision<PortStatus> {
        let own = key(&**port);
        let mut status = PortStatus {
            observed_generation: None,
            conditions: Vec::new(),
            ..port.status.clone().unwrap_or_default()
        };
        let network_key = network_key(port);
        self.keep_mac(&own, &network_key, &status);
        if is_deleting(&**port) {
            return self.delete(port, &own, status);
        }
        let has_addresses = status.mac_address.is_some();
        if let Some(refusal) = &access.refusal {
            return refuse(status, refusal.clone());
        }
        // A Port that has its addresses keeps them; its condition is decided below.
        if !has_addresses && let Err(message) = validation::port(&port.spec) {
            return refuse(status, (Reason::InvalidSpec, message));
        }
        let network = match find_network(&self.networks, &network_key, has_addresses) {
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
        let macs = self.macs.entry(network_key.clone()).or_default();
        macs.insert(mac, own.clone());
        status.port_id = Some(id);
        status.network_uid = network.uid();
        status.mac_address = Some(mac.to_string());
        status.addresses = Some(joined(&found));
        status.fixed_ips = found;
        if !has_addresses && status.server.is_none() {
            status.server = self.made_for(port);
        }
        if let Err(refusal) = self.check(port, &own.namespace, &network, &status) {
            return refuse(status, refusal);
        }
        if has_addresses && let Some(subnet) = self.missing_subnet(port, &network_key) {
            let message = format!(
                "Subnet {}, which an address of the Port is of, is not in force in Network {}; see \
                 its conditions, or make it again",
                subnet.name, network_key.name
            );
            return refuse(status, (Reason::NoSubnet, message));
        }
        let addresses = joined(&status.fixed_ips);
        let message = format!("{addresses} in Network {}", network.name_any());
        Decision::ready(status, message)
    }

    /// As long as a Port has an Ethernet address, others cannot have it.
    fn keep_mac(&mut self, own: &Key, network: &Key, status: &PortStatus) {
        if let Some(mac) = status.mac_address.as_ref().and_then(|m| m.parse().ok()) {
            let macs = self.macs.entry(network.clone()).or_default();
            macs.entry(mac).or_insert_with(|| own.clone());
        }
    }

    /// The Server that a Port is made for has it from the start, which costs no write of its own.
    fn made_for(&self, port: &Port) -> Option<Resolved> {
        let mut owners = port.owner_references().iter();
        let owner = owners.find(|owner| owner.controller == Some(true))?;
        let server = self.servers.get(&owner.uid)?;
        let name = server.name_any();
        let is_made = |nic: &ServerNetwork| {
            nic.port.is_none() && names::server_port_name(&name, &nic.name) == port.name_any()
        };
        let wanted = server.spec.networks.iter().any(is_made);
        (wanted && server.namespace() == port.namespace()).then(|| Resolved {
            name: name.clone(),
            uid: owner.uid.clone(),
        })
    }

    fn delete(&mut self, port: &Arc<Port>, own: &Key, status: PortStatus) -> Decision<PortStatus> {
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
        let used = self.macs.get(network);
        let holder = |mac: &Mac| used.and_then(|used| used.get(mac)).filter(|h| *h != own);
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
                        "macAddress `{mac}` is held by {} in the same Network {}; choose another, \
                         leave it out, or delete that Port",
                        describe_port(other, &own.namespace, &network.namespace),
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
    has_addresses: bool,
) -> Result<&'n Arc<Network>, Refusal> {
    let Some(ParentNetwork {
        network, usable, ..
    }) = networks.get(key)
    else {
        return Err((
            Reason::NetworkNotFound,
            format!(
                "Network {} does not exist in namespace {}; make it, or correct `network`",
                key.name, key.namespace
            ),
        ));
    };
    if !usable && !has_addresses {
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
