//! What the compiler takes: parsed values only.

use std::net::IpAddr;

use ipnet::IpNet;

use pileus_api::security_group::SecurityRule;
use pileus_values::{ClusterId, Mac, Owner};

/// Namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Key {
    /// A key.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The key of an owner.
    #[must_use]
    pub fn of(owner: &Owner) -> Self {
        Self::new(&owner.namespace, &owner.name)
    }
}

/// All that is compiled, in any order.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    /// The cluster, from which ids are derived.
    pub cluster: ClusterId,
    /// Networks.
    pub networks: Vec<NetworkIn>,
    /// Subnets.
    pub subnets: Vec<SubnetIn>,
    /// Ports that have their addresses.
    pub ports: Vec<PortIn>,
    /// Security groups with all their rules.
    pub groups: Vec<GroupIn>,
}

/// A Network.
#[derive(Clone, Debug)]
pub struct NetworkIn {
    /// The Network itself.
    pub owner: Owner,
    /// Largest packet of a guest in bytes.
    pub mtu: i32,
}

/// A Subnet.
#[derive(Clone, Debug)]
pub struct SubnetIn {
    /// The Subnet itself.
    pub owner: Owner,
    /// Name of the Network, in the Subnet's namespace.
    pub network: String,
    /// The range.
    pub cidr: IpNet,
    /// Address of the gateway.
    pub gateway: Option<IpAddr>,
    /// Address that DHCP is served from; the gateway's when there is none.
    pub service: Option<IpAddr>,
    /// Name servers.
    pub dns_servers: Vec<IpAddr>,
    /// Routes: destination and next hop.
    pub host_routes: Vec<(IpNet, IpAddr)>,
    /// Whether OVN answers DHCP.
    pub dhcp: bool,
}

/// A Port.
#[derive(Clone, Debug)]
pub struct PortIn {
    /// The Port itself.
    pub owner: Owner,
    /// The Network.
    pub network: Key,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its addresses.
    pub addresses: Vec<AddressIn>,
    /// What it is held to.
    pub security: Security,
    /// The host that alone may bind the port; two with a comma during a move.
    pub requested_chassis: Option<String>,
}

/// An address of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressIn {
    /// Name of the Subnet, in the Network's namespace.
    pub subnet: String,
    /// The address.
    pub address: IpAddr,
}

/// What a port is held to.
#[derive(Clone, Debug)]
pub enum Security {
    /// Everything passes.
    Disabled,
    /// Its own addresses and its security groups.
    Enabled {
        /// Names of groups in the Port's namespace.
        groups: Vec<String>,
        /// Further addresses it may send from.
        pairs: Vec<AddressPairIn>,
    },
}

/// An address that a port may send from besides its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPairIn {
    /// Ethernet address; the port's own when absent.
    pub mac: Option<Mac>,
    /// Address or range.
    pub net: IpNet,
}

/// A security group.
#[derive(Clone, Debug)]
pub struct GroupIn {
    /// The security group itself.
    pub owner: Owner,
    /// All its rules.
    pub rules: Vec<RuleIn>,
}

/// A rule of a group.
#[derive(Clone, Debug)]
pub struct RuleIn {
    /// The group, or the rule object that adds to it.
    pub owner: Owner,
    /// Name within the group; empty for an object of its own.
    pub name: String,
    /// What it allows.
    pub rule: SecurityRule,
}
