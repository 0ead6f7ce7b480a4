//! From API objects to the compiler's input: parsing only, each fault with its culprit.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use pileus_api::network::PortSecurity;
use pileus_api::subnet::Dhcp;
use pileus_api::{Network, Port, SecurityGroup, SecurityGroupRule, Subnet, names};
use pileus_network::topology::compile::Problem;
use pileus_network::topology::input::{
    AddressIn, AddressPairIn, GroupIn, Key, NetworkIn, PortIn, RuleIn, Security, SubnetIn, Topology,
};
use pileus_values::{ClusterId, Owner};

/// The objects, from caches; in any order.
#[derive(Clone, Copy, Debug)]
pub struct Objects<'a> {
    /// Networks.
    pub networks: &'a [&'a Network],
    /// Subnets.
    pub subnets: &'a [&'a Subnet],
    /// Ports.
    pub ports: &'a [&'a Port],
    /// Security groups.
    pub groups: &'a [&'a SecurityGroup],
    /// Rules of their own.
    pub rules: &'a [&'a SecurityGroupRule],
}

/// The marks of an object's rows.
#[must_use]
pub fn owner<K: kube::Resource<DynamicType = ()>>(cluster: &ClusterId, object: &K) -> Owner {
    let meta = object.meta();
    Owner {
        cluster: cluster.clone(),
        kind: K::kind(&()).into_owned(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
    }
}

/// Reads the objects. A Network without an MTU in its status and a Port without its
/// addresses are not ready and are left out without a word; what cannot be read is left
/// out with a [`Problem`].
#[must_use]
pub fn from_api(cluster: &ClusterId, objects: Objects<'_>) -> (Topology, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut note = |owner: &Owner, message: String| {
        problems.push(Problem {
            owner: owner.clone(),
            message,
        });
    };
    let mut topology = Topology {
        cluster: cluster.clone(),
        ..Topology::default()
    };
    for network in objects.networks {
        if let Some(mtu) = network.status.as_ref().and_then(|s| s.mtu) {
            topology.networks.push(NetworkIn {
                owner: owner(cluster, *network),
                mtu,
            });
        }
    }
    for subnet in objects.subnets {
        let owner = owner(cluster, *subnet);
        match read_subnet(subnet, &owner) {
            Ok(subnet) => topology.subnets.push(subnet),
            Err(message) => note(&owner, message),
        }
    }
    let defaults: HashMap<Key, PortSecurity> = objects
        .networks
        .iter()
        .map(|n| (Key::of(&owner(cluster, *n)), n.spec.port_security))
        .collect();
    for port in objects.ports {
        let owner = owner(cluster, *port);
        let network = &port.spec.network;
        let namespace = network.namespace.as_deref().unwrap_or(&owner.namespace);
        let key = Key::new(namespace, &network.name);
        let default = defaults.get(&key).copied().unwrap_or_default();
        match read_port(port, &owner, key, default) {
            Ok(Some(port)) => topology.ports.push(port),
            Ok(None) => {}
            Err(message) => note(&owner, message),
        }
    }
    for group in objects.groups {
        let owner = owner(cluster, *group);
        let rules = group.spec.rules.iter().map(|named| RuleIn {
            owner: owner.clone(),
            name: named.name.clone(),
            rule: named.rule.clone(),
        });
        topology.groups.push(GroupIn {
            rules: rules.collect(),
            owner,
        });
    }
    add_rules(cluster, objects.rules, &mut topology, &mut note);
    (topology, problems)
}

fn add_rules(
    cluster: &ClusterId,
    rules: &[&SecurityGroupRule],
    topology: &mut Topology,
    note: &mut impl FnMut(&Owner, String),
) {
    let index: HashMap<Key, usize> = topology
        .groups
        .iter()
        .enumerate()
        .map(|(at, group)| (Key::of(&group.owner), at))
        .collect();
    for rule in rules {
        let owner = owner(cluster, *rule);
        let name = &rule.spec.security_group;
        let Some(at) = index.get(&Key::new(&owner.namespace, name)) else {
            note(&owner, format!("security group {name} does not exist"));
            continue;
        };
        topology.groups[*at].rules.push(RuleIn {
            owner,
            name: String::new(),
            rule: rule.spec.rule.clone(),
        });
    }
}

fn address(field: &str, text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| format!("{field} `{text}` is not an IP address"))
}

fn range(field: &str, text: &str) -> Result<IpNet, String> {
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| format!("{field} `{text}` is not a range such as 10.0.0.0/24"))
}

fn read_subnet(subnet: &Subnet, owner: &Owner) -> Result<SubnetIn, String> {
    let spec = &subnet.spec;
    let status = subnet.status.as_ref();
    let optional = |field, text: Option<&String>| {
        text.filter(|text| !text.is_empty())
            .map(|text| address(field, text))
            .transpose()
    };
    Ok(SubnetIn {
        owner: owner.clone(),
        network: spec.network.clone(),
        cidr: range("cidr", &spec.cidr)?,
        gateway: optional("gatewayIP", status.and_then(|s| s.gateway_ip.as_ref()))?,
        service: optional("serviceIP", status.and_then(|s| s.service_ip.as_ref()))?,
        dns_servers: spec
            .dns_servers
            .iter()
            .map(|text| address("dnsServers", text))
            .collect::<Result<_, _>>()?,
        host_routes: spec
            .host_routes
            .iter()
            .map(|route| {
                Ok((
                    range("destination", &route.destination)?,
                    address("nextHop", &route.next_hop)?,
                ))
            })
            .collect::<Result<_, String>>()?,
        dhcp: spec.dhcp == Dhcp::Enabled,
    })
}

fn read_port(
    port: &Port,
    owner: &Owner,
    network: Key,
    default: PortSecurity,
) -> Result<Option<PortIn>, String> {
    let Some(status) = &port.status else {
        return Ok(None);
    };
    let Some(mac) = &status.mac_address else {
        return Ok(None);
    };
    let spec = &port.spec;
    let addresses = status.fixed_ips.iter().map(|ip| {
        Ok(AddressIn {
            subnet: ip.subnet.clone(),
            address: address("fixedIPs", &ip.address)?,
        })
    });
    let addresses = addresses.collect::<Result<_, String>>()?;
    let security = match spec.port_security.unwrap_or(default) {
        PortSecurity::Disabled => Security::Disabled,
        PortSecurity::Enabled => {
            let pairs = spec.allowed_address_pairs.iter().map(|pair| {
                let mac = pair.mac_address.as_ref().map(|mac| mac.parse()).transpose();
                Ok(AddressPairIn {
                    mac: mac.map_err(|error: pileus_values::mac::MacError| error.to_string())?,
                    net: range("allowedAddressPairs", &pair.address)?,
                })
            });
            Security::Enabled {
                groups: spec
                    .security_groups
                    .clone()
                    .unwrap_or_else(|| vec![names::DEFAULT_GROUP.to_owned()]),
                pairs: pairs.collect::<Result<_, String>>()?,
            }
        }
    };
    Ok(Some(PortIn {
        owner: owner.clone(),
        network,
        mac: mac
            .parse()
            .map_err(|error: pileus_values::mac::MacError| error.to_string())?,
        addresses,
        security,
        requested_chassis: None,
    }))
}
