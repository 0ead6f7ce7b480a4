//! The compiler's input: parsed values only, nothing of any API.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

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
    /// Security groups.
    pub groups: Vec<GroupIn>,
    /// The rules of all security groups.
    pub rules: Vec<RuleIn>,
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
    /// Which traffic passes.
    pub security: Security,
    /// Which hosts may bind it.
    pub binding: Binding,
}

/// Which hosts may bind a port, which is to say: send and receive as it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Binding {
    /// Any that has an interface with the port's id.
    #[default]
    Anywhere,
    /// The chassis of this name alone; two with a comma during a move.
    Chassis(String),
    /// None, until the port is placed: ovn-controllers do not bind it, and northd makes no flows
    /// that lead to or from it, whoever claims to have it.
    Nowhere,
}

/// What ports that may be bound nowhere request: a name that no chassis has.
pub const NO_CHASSIS: &str = "pileus.dev/unplaced";

/// An address of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressIn {
    /// Name of the Subnet, in the Network's namespace.
    pub subnet: String,
    /// The address.
    pub address: IpAddr,
}

/// Which traffic passes a port.
#[derive(Clone, Debug)]
pub enum Security {
    /// All.
    Disabled,
    /// What comes from the port's own addresses and what its security groups allow.
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
}

/// A rule of a security group.
#[derive(Clone, Debug)]
pub struct RuleIn {
    /// The group, or the object of its own that adds the rule to the group.
    pub owner: Owner,
    /// The group.
    pub group: Key,
    /// Name within the group; empty for an object of its own.
    pub name: String,
    /// What it allows.
    pub rule: Rule,
}

/// What a rule allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Seen from the guest.
    pub direction: Direction,
    /// Family of addresses.
    pub family: Family,
    /// The other side.
    pub remote: Remote,
    /// The protocol, with its ports or types.
    pub protocol: Protocol,
}

/// A direction as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the guest.
    Ingress,
    /// From the guest.
    Egress,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The other side of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    /// Any address of the family.
    Any,
    /// Addresses of this range, which is of the rule's family.
    Net(IpNet),
    /// Members of the group of this name, in the namespace of the rule's group.
    Group(String),
}

/// A protocol above IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Any.
    Any,
    /// One that has ports.
    Transport {
        /// The protocol.
        transport: Transport,
        /// Destination ports; any when absent.
        ports: Option<RangeInclusive<u16>>,
    },
    /// The family's own ICMP; all of its types when absent.
    Icmp(Option<IcmpType>),
    /// Another protocol by its number.
    Number(u8),
}

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A type of ICMP messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpType {
    /// The type's number.
    pub number: u8,
    /// The code; any when absent.
    pub code: Option<u8>,
}

impl Family {
    /// The family of a range.
    #[must_use]
    pub fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }
}
