//! Decides about the Subnets of all Networks. Pure.
//!
//! Of two Subnets that overlap, the one in force stays, else the older one. The service
//! address (DHCP, metadata) is the last address that hosts can have and that is neither the
//! gateway nor held by a Port when the Subnet is accepted; it stays for the Subnet's life.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kube::ResourceExt;

use super::ledger::{Holder, Ledger, allocation, subnet_uid};
use super::spec::{self, Parsed};
use crate::network::decision::Decision;
use pileus_api::{IPAllocation, Network, Reason, Subnet, SubnetStatus};
use pileus_values::range::to_number;

/// A Network as far as its Subnets are concerned.
#[derive(Clone, Debug)]
pub struct Parent {
    /// The Network.
    pub network: Arc<Network>,
    /// Whether it has its MTU and lives.
    pub usable: bool,
}

/// What is to be done for Subnets.
#[derive(Debug, Default)]
pub struct Subnets {
    /// A decision for each Subnet.
    pub decisions: Vec<(Arc<Subnet>, Decision<SubnetStatus>)>,
    /// Accepted Subnets by namespace and Network, oldest first.
    pub ledgers: HashMap<(String, String), Vec<Ledger>>,
    /// Reservations to make.
    pub create: Vec<IPAllocation>,
    /// Reservations to give up.
    pub delete: Vec<Arc<IPAllocation>>,
}

/// Decides about all Subnets. `parents` has the Networks by namespace and name.
#[must_use]
#[allow(clippy::implicit_hasher, reason = "only our own maps come here")]
pub fn plan(
    subnets: &[Arc<Subnet>],
    parents: &HashMap<(String, String), Parent>,
    allocations: &[Arc<IPAllocation>],
) -> Subnets {
    let mut held: HashMap<&str, Vec<&Arc<IPAllocation>>> = HashMap::new();
    for allocation in allocations {
        held.entry(subnet_uid(allocation))
            .or_default()
            .push(allocation);
    }
    let mut sorted: Vec<&Arc<Subnet>> = subnets.iter().collect();
    sorted.sort_by_cached_key(|s| {
        (
            !is_accepted(s),
            s.metadata.creation_timestamp.as_ref().map(|t| t.0),
            s.namespace(),
            s.name_any(),
        )
    });
    let mut out = Subnets::default();
    for subnet in sorted {
        let uid = subnet.uid().unwrap_or_default();
        let held = held.get(uid.as_str()).map_or(&[][..], Vec::as_slice);
        let decision = one(subnet, parents, held, &mut out);
        out.decisions.push((subnet.clone(), decision));
    }
    out
}

fn is_accepted(subnet: &Subnet) -> bool {
    subnet
        .status
        .as_ref()
        .is_some_and(|s| s.network_uid.is_some())
}

fn bare(subnet: &Subnet) -> SubnetStatus {
    SubnetStatus {
        observed_generation: None,
        conditions: Vec::new(),
        ..subnet.status.clone().unwrap_or_default()
    }
}

fn one(
    subnet: &Arc<Subnet>,
    parents: &HashMap<(String, String), Parent>,
    held: &[&Arc<IPAllocation>],
    out: &mut Subnets,
) -> Decision<SubnetStatus> {
    let accepted = is_accepted(subnet);
    let status = bare(subnet);
    let namespace = subnet.namespace().unwrap_or_default();
    let key = (namespace, subnet.spec.network.clone());
    let taken: HashMap<IpAddr, Holder> = held
        .iter()
        .filter_map(|a| Some((a.spec.address.parse().ok()?, Holder::of(a))))
        .collect();
    if subnet.metadata.deletion_timestamp.is_some() {
        return deleting(subnet, status, accepted, held, taken, key, out);
    }
    let parsed = match spec::parse(&subnet.spec) {
        Ok(parsed) => parsed,
        Err(message) => {
            // In force with what it had, if it was in force.
            if accepted && let Some(parsed) = last_good(subnet) {
                open(subnet, parsed, taken, key, true, out);
            }
            return Decision::not_ready(status, Reason::InvalidSpec, message);
        }
    };
    let Some(parent) = parents.get(&key) else {
        return Decision::not_ready(
            status,
            Reason::NetworkNotFound,
            format!(
                "Network {} does not exist in namespace {}; make it, or correct `network`",
                key.1, key.0
            ),
        );
    };
    if !accepted && !parent.usable {
        return Decision::not_ready(
            status,
            Reason::DependencyNotReady,
            format!("Network {} is not ready; see its conditions", key.1),
        );
    }
    if let Some(other) = overlapping(parsed.cidr, out.ledgers.get(&key)) {
        return Decision::not_ready(
            status,
            Reason::SubnetOverlap,
            format!(
                "cidr `{}` overlaps `{}` of Subnet {}, which is in force in Network {}; take \
                 another range, or delete the other Subnet",
                subnet.spec.cidr,
                other.parsed.cidr,
                other.name(),
                key.1
            ),
        );
    }
    reserve(subnet, parsed, held, taken, parent, key, out)
}

fn overlapping(cidr: IpNet, others: Option<&Vec<Ledger>>) -> Option<&Ledger> {
    others?
        .iter()
        .find(|other| other.parsed.cidr.contains(&cidr) || cidr.contains(&other.parsed.cidr))
}

fn reserve(
    subnet: &Arc<Subnet>,
    mut parsed: Parsed,
    held: &[&Arc<IPAllocation>],
    mut taken: HashMap<IpAddr, Holder>,
    parent: &Parent,
    key: (String, String),
    out: &mut Subnets,
) -> Decision<SubnetStatus> {
    let mut status = bare(subnet);
    let old_gateway = address(status.gateway_ip.as_ref());
    let mut trouble = None;
    if let Some(gateway) = parsed.gateway
        && let Some(holder @ Holder::Port { .. }) = taken.get(&gateway)
    {
        trouble = Some(format!(
            "gatewayIP `{gateway}` is held by {holder}; delete that Port, or choose another gateway"
        ));
        parsed.gateway = old_gateway;
    }
    let service = address(status.service_ip.as_ref())
        .filter(|service| Some(*service) != parsed.gateway)
        .or_else(|| choose_service(&parsed, &taken));
    let Some(service) = service else {
        return Decision::not_ready(
            status,
            Reason::SubnetExhausted,
            format!(
                "no address of `{}` is left for DHCP and metadata",
                subnet.spec.cidr
            ),
        );
    };
    let own: Vec<IpAddr> = parsed.gateway.into_iter().chain([service]).collect();
    for address in &own {
        if !taken.contains_key(address) {
            out.create.push(allocation(subnet, *address, None));
            taken.insert(*address, Holder::Subnet);
        }
    }
    for allocation in held {
        if allocation.spec.port.is_none()
            && let Ok(address) = allocation.spec.address.parse::<IpAddr>()
            && !own.contains(&address)
        {
            out.delete.push((*allocation).clone());
            taken.remove(&address);
        }
    }
    status.network_uid = parent.network.uid();
    status.gateway_ip = parsed.gateway.map(|a| a.to_string());
    status.service_ip = Some(service.to_string());
    open(subnet, parsed, taken, key, true, out);
    match trouble {
        Some(message) => Decision::not_ready(status, Reason::AddressInUse, message),
        None => {
            let message = format!("addresses of {} are handed out", subnet.spec.cidr);
            Decision::ready(status, message)
        }
    }
}

fn address(text: Option<&String>) -> Option<IpAddr> {
    text?.parse().ok()
}

/// What an accepted Subnet goes on with when its spec has become unusable: its range, which
/// cannot change, and no pool, so that nobody gets an address by a rule that is wrong.
fn last_good(subnet: &Subnet) -> Option<Parsed> {
    let cidr = spec::cidr(&subnet.spec.cidr).ok()?;
    Some(Parsed {
        cidr,
        hosts: pileus_values::range::AddressRange::hosts(cidr),
        gateway: address(subnet.status.as_ref().and_then(|s| s.gateway_ip.as_ref())),
        pools: Vec::new(),
    })
}

fn choose_service(parsed: &Parsed, taken: &HashMap<IpAddr, Holder>) -> Option<IpAddr> {
    let hosts = &parsed.hosts;
    let length = to_number(hosts.last()) - to_number(hosts.first());
    let tries = u128::try_from(taken.len()).ok()?.saturating_add(2);
    (0..tries.min(length + 1))
        .filter_map(|step| hosts.nth(length - step))
        .find(|address| {
            Some(*address) != parsed.gateway
                && !matches!(taken.get(address), Some(Holder::Port { .. }))
        })
}

fn open(
    subnet: &Arc<Subnet>,
    parsed: Parsed,
    taken: HashMap<IpAddr, Holder>,
    key: (String, String),
    open: bool,
    out: &mut Subnets,
) {
    out.ledgers.entry(key).or_default().push(Ledger {
        subnet: subnet.clone(),
        parsed,
        open,
        taken,
        hinted: HashMap::new(),
    });
}

fn deleting(
    subnet: &Arc<Subnet>,
    status: SubnetStatus,
    accepted: bool,
    held: &[&Arc<IPAllocation>],
    taken: HashMap<IpAddr, Holder>,
    key: (String, String),
    out: &mut Subnets,
) -> Decision<SubnetStatus> {
    let users: Vec<String> = taken
        .values()
        .filter(|holder| **holder != Holder::Subnet)
        .map(ToString::to_string)
        .collect();
    if users.is_empty() {
        out.delete.extend(held.iter().map(|a| (*a).clone()));
    } else if accepted
        && let Some(parsed) = spec::parse(&subnet.spec).ok().or_else(|| last_good(subnet))
    {
        open(subnet, parsed, taken, key, false, out);
    }
    Decision::deleting(status, "Subnet", users)
}
