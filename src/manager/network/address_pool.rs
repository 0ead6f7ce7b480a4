//! The addresses of a Subnet: which are in use, by whom, and which are free. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kube::{Resource, ResourceExt};
use sha2::{Digest, Sha256};

use pileus_api::ip_allocation::{IPAllocation, allocation_name};
use pileus_api::{IPAllocationSpec, Port, Subnet, names};
use pileus_network::topology::Key;
use pileus_values::{AddressRange, Mac};

/// Who holds an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The Subnet itself: gateway or service address.
    Subnet,
    /// An `IPAllocation` of somebody else's making is in the way.
    Unknown,
    /// A Port.
    Port {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
    },
}

impl Holder {
    /// Who an `IPAllocation` is for.
    #[must_use]
    pub fn of(allocation: &IPAllocation) -> Self {
        let spec = &allocation.spec;
        match &spec.port {
            None => Self::Subnet,
            Some(name) => Self::Port {
                namespace: spec
                    .port_namespace
                    .clone()
                    .or_else(|| allocation.namespace())
                    .unwrap_or_default(),
                name: name.clone(),
                uid: spec.port_uid.clone().unwrap_or_default(),
            },
        }
    }
}

impl Holder {
    /// Who that is, for people of the namespace `reader`, in a Subnet of the namespace `owner`.
    /// The owner sees which namespace it is and no more, anybody else not even that.
    #[must_use]
    pub fn describe(&self, reader: &str, owner: &str) -> String {
        match self {
            Self::Subnet => "the Subnet itself (gateway or service address)".to_owned(),
            Self::Unknown => "an IPAllocation that Pileus did not make; delete it".to_owned(),
            Self::Port {
                namespace, name, ..
            } => describe_port(&Key::new(namespace, name), reader, owner),
        }
    }
}

/// A Port in a Network of the namespace `owner`, for people of the namespace `reader`.
#[must_use]
pub fn describe_port(port: &Key, reader: &str, owner: &str) -> String {
    let Key { namespace, name } = port;
    if namespace == reader {
        format!("Port {namespace}/{name}")
    } else if reader == owner {
        format!("a Port of namespace {namespace}")
    } else {
        "another Port".to_owned()
    }
}

/// An accepted Subnet with its addresses.
#[derive(Clone, Debug)]
pub struct AddressPool {
    /// The Subnet.
    pub subnet: Arc<Subnet>,
    /// Its range.
    pub cidr: IpNet,
    /// The addresses that hosts can have.
    pub hosts: AddressRange,
    /// The ranges that free addresses are allocated from.
    pub ranges: Vec<AddressRange>,
    /// Whether addresses may be allocated: not while the Subnet is being deleted.
    pub open: bool,
    /// The addresses in use.
    pub allocated: HashMap<IpAddr, Holder>,
    /// Addresses that rows in OVN have, with their port ids: guests may be using them though
    /// their Ports have yet to be applied again.
    pub in_ovn: HashMap<IpAddr, String>,
}

impl AddressPool {
    /// Name of the Subnet.
    #[must_use]
    pub fn name(&self) -> String {
        self.subnet.name_any()
    }

    /// Whether an address can be allocated on request: one that hosts can have.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        self.hosts.contains(address)
    }

    fn nth(&self, mut index: u128) -> Option<IpAddr> {
        for range in &self.ranges {
            if index < range.len() {
                return range.nth(index);
            }
            index -= range.len();
        }
        None
    }

    /// Number of addresses in the ranges.
    #[must_use]
    pub fn size(&self) -> u128 {
        self.ranges
            .iter()
            .fold(0, |sum: u128, range| sum.saturating_add(range.len()))
    }

    /// A free address for the port of this id: the one at an index that follows from the
    /// id, or the next free one after it, so that a Port applied again after a loss mostly
    /// gets what it had. Addresses that OVN has for other ports come last.
    #[must_use]
    pub fn free(&self, port_id: &str) -> Option<IpAddr> {
        let size = self.size();
        if size == 0 {
            return None;
        }
        let digest = Sha256::digest(port_id.as_bytes());
        let mut bytes = [0; 16];
        bytes[8..].copy_from_slice(&digest[..8]);
        let start = u128::from_be_bytes(bytes) % size;
        let find = |avoid_ovn: bool| {
            let others = self.allocated.len() + if avoid_ovn { self.in_ovn.len() } else { 0 };
            let tries = size.min(
                u128::try_from(others)
                    .unwrap_or(u128::MAX)
                    .saturating_add(1),
            );
            (0..tries)
                .filter_map(|step| self.nth((start + step) % size))
                .find(|address| {
                    let of_another = self.in_ovn.get(address).is_some_and(|id| id != port_id);
                    let in_use = self.allocated.contains_key(address);
                    !(in_use || avoid_ovn && of_another)
                })
        };
        find(true).or_else(|| find(false))
    }

    /// The `IPAllocation` of an address for a Port.
    #[must_use]
    pub fn allocation(&self, address: IpAddr, port: &Port, mac: Mac) -> IPAllocation {
        allocation(&self.subnet, address, Some((port, mac)))
    }
}

/// The `IPAllocation` of an address of a Subnet, owned by the Subnet: for a Port, or for the
/// Subnet itself.
#[must_use]
pub fn allocation(subnet: &Subnet, address: IpAddr, port: Option<(&Port, Mac)>) -> IPAllocation {
    let uid = subnet.uid().unwrap_or_default();
    let mut object = IPAllocation::new(
        &allocation_name(&uid, address),
        IPAllocationSpec {
            address: address.to_string(),
            subnet: subnet.name_any(),
            ..IPAllocationSpec::default()
        },
    );
    object.metadata.namespace = subnet.namespace();
    object.metadata.owner_references = subnet.owner_ref(&()).map(|reference| vec![reference]);
    object
        .labels_mut()
        .insert(names::SUBNET_UID_LABEL.to_owned(), uid);
    if let Some((port, mac)) = port {
        object.spec.port = Some(port.name_any());
        object.spec.port_namespace = port
            .namespace()
            .filter(|n| Some(n) != subnet.namespace().as_ref());
        object.spec.port_uid = port.uid();
        object.spec.mac_address = Some(mac.to_string());
        object.labels_mut().insert(
            names::PORT_UID_LABEL.to_owned(),
            port.uid().unwrap_or_default(),
        );
    }
    object
}

/// What the name of an `IPAllocation` says: uid of the Subnet, and the address. Names are what
/// makes an address unique.
#[must_use]
pub fn named(allocation: &IPAllocation) -> Option<(&str, IpAddr)> {
    let name = allocation.metadata.name.as_deref()?;
    let (uid, digits) = name.rsplit_once('-')?;
    let bytes = hex::decode(digits).ok()?;
    let address = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?),
    };
    Some((uid, address))
}

/// uid of the Subnet that an `IPAllocation` belongs to, by its name.
#[must_use]
pub fn subnet_uid(allocation: &IPAllocation) -> &str {
    named(allocation).map_or("", |(uid, _)| uid)
}

/// Whether an `IPAllocation` says what Pileus says in one for this Subnet: it is beside the Subnet
/// and owned by it, and its name is that of its address. What others make counts for nothing
/// elsewhere, and beside the Subnet as an address that is not free.
#[must_use]
pub fn is_ours(allocation: &IPAllocation, subnet: &Subnet) -> bool {
    let address = allocation.spec.address.parse::<IpAddr>().ok();
    let owned = |uid: &str| {
        let owners = allocation.owner_references();
        owners.iter().any(|owner| owner.uid == uid)
    };
    named(allocation).is_some_and(|(uid, named)| {
        Some(uid) == subnet.metadata.uid.as_deref() && Some(named) == address && owned(uid)
    }) && is_beside(allocation, subnet)
        && allocation.spec.subnet == subnet.name_any()
}

/// Whether an `IPAllocation` is where those of the Subnet are.
#[must_use]
pub fn is_beside(allocation: &IPAllocation, subnet: &Subnet) -> bool {
    allocation.metadata.namespace == subnet.metadata.namespace
}

/// The `IPAllocation`s that Pileus has made.
#[must_use]
pub fn believed<'o>(
    allocations: &'o [Arc<IPAllocation>],
    subnets: &[Arc<Subnet>],
) -> Vec<&'o Arc<IPAllocation>> {
    let subnets: HashMap<&str, &Arc<Subnet>> = subnets
        .iter()
        .filter_map(|subnet| Some((subnet.metadata.uid.as_deref()?, subnet)))
        .collect();
    let is_believed = |allocation: &&Arc<IPAllocation>| {
        let subnet = subnets.get(subnet_uid(allocation));
        subnet.is_some_and(|subnet| is_ours(allocation, subnet))
    };
    allocations.iter().filter(is_believed).collect()
}
