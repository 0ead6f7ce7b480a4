//! Decides about the Subnets of all Networks. Pure.
//!
//! Of two Subnets that overlap, the one in force stays, else the older one. The service
//! address (DHCP, metadata) comes out of the pools, as Neutron's does: their last address that is
//! free when the Subnet is accepted; it stays for the Subnet's life. What lies outside of the
//! pools is the user's.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kube::ResourceExt;

use super::spec::{self, ParsedSpec};
use crate::network::address_pool::{
    AddressPool, Holder, allocation, believed, is_beside, is_ours, named, subnet_uid,
};
use crate::network::decision::Decision;
use crate::network::kinds::{
    Decided, NetworkKind, Observed, Planning, Users, has_finalizer, is_deleting, key, owner,
};
use crate::network::network::plan::{ParentNetwork, parent_networks};
use crate::network::port;
use pileus_api::subnet::Dhcp;
use pileus_api::{IPAllocation, Network, Reason, Subnet, SubnetStatus};
use pileus_network::topology::{Key, SubnetIn, switch_name};
use pileus_values::ClusterId;
use pileus_values::range::{AddressRange, to_number};

impl NetworkKind for Subnet {
    fn add_users(_cluster: &ClusterId, observed: &Observed, users: &mut Users) {
        // One that is being deleted as well goes together with the Network.
        for subnet in observed.subnets.iter().filter(|s| !is_deleting(&***s)) {
            let user = format!("Subnet {}", subnet.name_any());
            users.add::<Network>(network_key(subnet), user);
        }
    }

    fn plan(planning: &mut Planning<'_>) -> Decided<Self> {
        let observed = planning.observed;
        let mut allocations: HashMap<&str, Vec<&Arc<IPAllocation>>> = HashMap::new();
        let holders = holders_by_subnet(observed);
        for allocation in &observed.allocations {
            let of_subnet = allocations.entry(subnet_uid(allocation)).or_default();
            of_subnet.push(allocation);
        }
        let mut sorted: Vec<&Arc<Subnet>> = observed
            .subnets
            .iter()
            .filter(|subnet| has_finalizer(&***subnet))
            .collect();
        sorted.sort_by_cached_key(|s| {
            (
                !is_accepted(s),
                s.metadata.creation_timestamp.as_ref().map(|t| t.0),
                s.namespace(),
                s.name_any(),
            )
        });
        let networks = parent_networks(&planning.decisions.networks);
        let mut planner = Planner {
            planning,
            networks,
            holders,
        };
        let decide = |subnet: &Arc<Subnet>| {
            let uid = subnet.uid().unwrap_or_default();
            let named = allocations.get(uid.as_str()).into_iter().flatten();
            let beside: Vec<_> = named.copied().filter(|a| is_beside(a, subnet)).collect();
            (subnet.clone(), planner.decide(subnet, &beside))
        };
        sorted.into_iter().map(decide).collect()
    }
}

fn network_key(subnet: &Subnet) -> Key {
    Key {
        namespace: subnet.namespace().unwrap_or_default(),
        name: subnet.spec.network.clone(),
    }
}

fn is_accepted(subnet: &Subnet) -> bool {
    subnet
        .status
        .as_ref()
        .is_some_and(|s| s.network_uid.is_some())
}

/// The status without generation and conditions.
fn bare_status(subnet: &Subnet) -> SubnetStatus {
    SubnetStatus {
        observed_generation: None,
        conditions: Vec::new(),
        ..subnet.status.clone().unwrap_or_default()
    }
}

fn address(text: Option<&String>) -> Option<IpAddr> {
    text?.parse().ok()
}

/// The addresses in use of a Subnet.
type Allocated = HashMap<IpAddr, Holder>;

struct Planner<'p, 'a> {
    planning: &'p mut Planning<'a>,
    networks: HashMap<Key, ParentNetwork>,
    /// The Ports that hold addresses, by Subnet.
    holders: HashMap<Key, BTreeSet<Key>>,
}

/// The Ports that hold addresses, by namespace and name of the Subnet: by their own word, for an
/// `IPAllocation` is deleted at once with everything else in a namespace, and by the
/// `IPAllocation`s of those that do not know it yet.
fn holders_by_subnet(observed: &Observed) -> HashMap<Key, BTreeSet<Key>> {
    let mut found: HashMap<Key, BTreeSet<Key>> = HashMap::new();
    let mut ports: HashMap<String, Key> = HashMap::new();
    for port in &observed.ports {
        ports.insert(port.uid().unwrap_or_default(), key(&**port));
        let namespace = port::network_key(port).namespace;
        for ip in port.status.iter().flat_map(|status| &status.fixed_ips) {
            let subnet = Key::new(&namespace, &ip.subnet);
            found.entry(subnet).or_default().insert(key(&**port));
        }
    }
    for allocation in believed(&observed.allocations, &observed.subnets) {
        let uid = allocation.spec.port_uid.as_ref();
        if let Some(port) = uid.and_then(|uid| ports.get(uid)) {
            let namespace = allocation.namespace().unwrap_or_default();
            let subnet = Key::new(&namespace, &allocation.spec.subnet);
            found.entry(subnet).or_default().insert(port.clone());
        }
    }
    found
}

impl Planner<'_, '_> {
    fn decide(
        &mut self,
        subnet: &Arc<Subnet>,
        allocations: &[&Arc<IPAllocation>],
    ) -> Decision<SubnetStatus> {
        let status = bare_status(subnet);
        let network = network_key(subnet);
        let allocated: Allocated = allocations
            .iter()
            .filter_map(|a| {
                let holder = if is_ours(a, subnet) {
                    Holder::of(a)
                } else {
                    Holder::Unknown
                };
                Some((named(a)?.1, holder))
            })
            .collect();
        let allocations = allocations.iter().filter(|a| is_ours(a, subnet));
        let allocations: Vec<_> = allocations.copied().collect();
        if is_deleting(&**subnet) {
            return self.delete(subnet, status, &allocations, allocated);
        }
        let parsed = match spec::parse(&subnet.spec) {
            Ok(parsed) => parsed,
            Err(message) => {
                // It stays in force with what it had, if it was in force.
                if is_accepted(subnet)
                    && let Some(parsed) = readable_part(subnet)
                {
                    self.accept(subnet, parsed, allocated, &status, true);
                }
                return Decision::not_ready(status, Reason::InvalidSpec, message);
            }
        };
        let Some(parent) = self.networks.get(&network).cloned() else {
            return Decision::not_ready(
                status,
                Reason::NetworkNotFound,
                format!(
                    "Network {} does not exist in namespace {}; make it, or correct `network`",
                    network.name, network.namespace
                ),
            );
        };
        if !is_accepted(subnet) && !parent.usable {
            return Decision::not_ready(
                status,
                Reason::DependencyNotReady,
                format!("Network {} is not ready; see its conditions", network.name),
            );
        }
        if let Some(other) = overlapping(parsed.cidr, self.planning.pools.get(&network)) {
            return Decision::not_ready(
                status,
                Reason::SubnetOverlap,
                format!(
                    "cidr `{}` overlaps `{}` of Subnet {}, which is in force in Network {}; take \
                     another range, or delete the other Subnet",
                    subnet.spec.cidr,
                    other.cidr,
                    other.name(),
                    network.name
                ),
            );
        }
        self.reserve(subnet, parsed, &allocations, allocated, &parent)
    }

    /// Reserves the Subnet's own addresses and accepts it.
    fn reserve(
        &mut self,
        subnet: &Arc<Subnet>,
        mut parsed: ParsedSpec,
        allocations: &[&Arc<IPAllocation>],
        mut allocated: Allocated,
        parent: &ParentNetwork,
    ) -> Decision<SubnetStatus> {
        let mut status = bare_status(subnet);
        let mut gateway_in_use = None;
        if let Some(gateway) = parsed.gateway
            && let Some(holder) = allocated.get(&gateway)
            && *holder != Holder::Subnet
        {
            let namespace = subnet.namespace().unwrap_or_default();
            gateway_in_use = Some(format!(
                "gatewayIP `{gateway}` is held by {}; delete that, or choose another gateway",
                holder.describe(&namespace, &namespace)
            ));
            parsed.gateway = address(status.gateway_ip.as_ref());
        }
        let service = address(status.service_ip.as_ref())
            .filter(|service| Some(*service) != parsed.gateway)
            .or_else(|| choose_service(&parsed, &allocated));
        let Some(service) = service else {
            return Decision::not_ready(
                status,
                Reason::SubnetExhausted,
                format!(
                    "no address of `{}` is left in its pools for DHCP and metadata; widen \
                     allocationPools, or delete a Port",
                    subnet.spec.cidr
                ),
            );
        };
        let own: Vec<IpAddr> = parsed.gateway.into_iter().chain([service]).collect();
        let changes = &mut self.planning.allocations;
        for address in &own {
            if !allocated.contains_key(address) {
                changes.allocate.push(allocation(subnet, *address, None));
                allocated.insert(*address, Holder::Subnet);
            }
        }
        for allocation in allocations {
            if allocation.spec.port.is_none()
                && let Ok(address) = allocation.spec.address.parse::<IpAddr>()
                && !own.contains(&address)
            {
                changes.release.push((*allocation).clone());
                allocated.remove(&address);
            }
        }
        status.network_uid = parent.network.uid();
        status.gateway_ip = parsed.gateway.map(|a| a.to_string());
        status.service_ip = Some(service.to_string());
        self.accept(subnet, parsed, allocated, &status, true);
        if let Some(message) = gateway_in_use {
            return Decision::not_ready(status, Reason::AddressInUse, message);
        }
        let message = format!("addresses of {} are handed out", subnet.spec.cidr);
        Decision::ready(status, message)
    }

    /// Adds an accepted Subnet to the pools and to the compiler's input.
    fn accept(
        &mut self,
        subnet: &Arc<Subnet>,
        parsed: ParsedSpec,
        allocated: Allocated,
        status: &SubnetStatus,
        open: bool,
    ) {
        let Planning { cluster, ovn, .. } = *self.planning;
        let network = network_key(subnet);
        let cidr = parsed.cidr;
        let in_ovn = ovn.addresses.get(&switch_name(cluster, &network));
        let in_ovn = in_ovn.into_iter().flatten();
        self.planning.topology.subnets.push(SubnetIn {
            owner: owner(cluster, &**subnet),
            network: network.name.clone(),
            cidr,
            gateway: address(status.gateway_ip.as_ref()),
            service: address(status.service_ip.as_ref()),
            dns_servers: parsed.dns_servers,
            host_routes: parsed.host_routes,
            dhcp: subnet.spec.dhcp == Dhcp::Enabled,
        });
        let pool = AddressPool {
            subnet: subnet.clone(),
            cidr,
            hosts: parsed.hosts,
            ranges: parsed.pools,
            open,
            allocated,
            in_ovn: in_ovn
                .filter(|(address, _)| cidr.contains(*address))
                .map(|(address, port)| (*address, port.clone()))
                .collect(),
        };
        self.planning.pools.entry(network).or_default().push(pool);
    }

    fn delete(
        &mut self,
        subnet: &Arc<Subnet>,
        status: SubnetStatus,
        allocations: &[&Arc<IPAllocation>],
        allocated: Allocated,
    ) -> Decision<SubnetStatus> {
        let own = key(&**subnet);
        let holders = self.holders.get(&own).into_iter().flatten();
        // Ports of other namespaces do not keep it: they are unplugged.
        let (mut users, guests): (Vec<_>, Vec<_>) =
            holders.partition(|port| port.namespace == own.namespace);
        users.sort();
        let mut users: Vec<String> = users
            .into_iter()
            .map(|port| format!("Port {}/{}", port.namespace, port.name))
            .collect();
        let network = network_key(subnet);
        let parent = self.networks.get(&network);
        if !guests.is_empty() && parent.is_some_and(|p| is_deleting(&*p.network) && !p.leaving) {
            // They have their network as long as anybody has it.
            users.push(format!("Network {}, which is still in use", network.name));
        }
        if users.is_empty() {
            let changes = &mut self.planning.allocations;
            changes
                .release
                .extend(allocations.iter().map(|a| (*a).clone()));
        } else if is_accepted(subnet)
            && let Some(parsed) = spec::parse(&subnet.spec)
                .ok()
                .or_else(|| readable_part(subnet))
        {
            self.accept(subnet, parsed, allocated, &status, false);
        }
        Decision::deleting(status, "Subnet", users)
    }
}

fn readable_part(subnet: &Subnet) -> Option<ParsedSpec> {
    let gateway = subnet.status.as_ref().and_then(|s| s.gateway_ip.as_ref());
    spec::readable_part(&subnet.spec, address(gateway))
}

fn overlapping(cidr: IpNet, others: Option<&Vec<AddressPool>>) -> Option<&AddressPool> {
    others?
        .iter()
        .find(|other| other.cidr.contains(&cidr) || cidr.contains(&other.cidr))
}

/// The last free address of the pools.
fn choose_service(parsed: &ParsedSpec, allocated: &Allocated) -> Option<IpAddr> {
    let mut pools = parsed.pools.clone();
    pools.sort_by_key(|pool| std::cmp::Reverse(to_number(pool.last())));
    pools
        .iter()
        .find_map(|pool| last_free(pool, parsed, allocated))
}

fn last_free(pool: &AddressRange, parsed: &ParsedSpec, allocated: &Allocated) -> Option<IpAddr> {
    let length = to_number(pool.last()) - to_number(pool.first());
    let tries = u128::try_from(allocated.len()).ok()?.saturating_add(2);
    (0..tries.min(length + 1))
        .filter_map(|step| pool.nth(length - step))
        .find(|address| {
            let holder = allocated.get(address);
            Some(*address) != parsed.gateway && holder.is_none_or(|h| *h == Holder::Subnet)
        })
}
