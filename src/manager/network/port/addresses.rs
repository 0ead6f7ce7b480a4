//! The IP addresses of one Port: all that it asks for, or none. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use kube::ResourceExt;

use super::plan::{Planner, Refusal};
use crate::list_some;
use crate::network::address_pool::{AddressPool, Holder, subnet_uid};
use crate::network::kinds::key;
use pileus_api::port::{AllocatedIp, FixedIp};
use pileus_api::{IPAllocation, Port, PortStatus, Reason};
use pileus_network::topology::Key;
use pileus_values::Mac;

/// An address to allocate, of the pool at this index.
struct Choice {
    pool: usize,
    address: IpAddr,
}

/// Chooses the addresses of a Port and allocates those that it does not hold yet.
pub(super) fn assign(
    planner: &mut Planner<'_, '_>,
    port: &Arc<Port>,
    network: &Key,
    id: &str,
    mac: Mac,
    status: &PortStatus,
) -> Result<Vec<AllocatedIp>, Refusal> {
    let uid = port.uid().unwrap_or_default();
    let held = planner.held.get(&key(&**port)).cloned().unwrap_or_default();
    let mut none = Vec::new();
    let pools = planner.planning.pools.get_mut(network).unwrap_or(&mut none);
    let changes = &mut planner.planning.allocations;
    let chosen = if status.fixed_ips.is_empty() {
        if pools.is_empty() {
            return Err((
                Reason::NoSubnet,
                format!(
                    "Network {} has no Subnet in force to take an address from; make one, or see \
                     the conditions of those it has",
                    network.name
                ),
            ));
        }
        choose(port, pools, &held, id, network)?
    } else {
        keep(pools, status)
    };
    check_holders(port, network, pools, &chosen)?;
    let mut found = Vec::new();
    for choice in &chosen {
        let pool = &mut pools[choice.pool];
        let allocation = pool.allocation(choice.address, port, mac);
        found.push(AllocatedIp {
            subnet: pool.name(),
            address: choice.address.to_string(),
            allocation: allocation.name_any(),
        });
        let own = matches!(pool.allocated.get(&choice.address), Some(Holder::Port { uid: held, .. }) if *held == uid);
        // Nobody else gets an address of a Subnet that is being deleted.
        if !own && pool.open {
            changes.allocate.push(allocation);
            let Key { namespace, name } = key(&**port);
            let holder = Holder::Port {
                namespace,
                name,
                uid: uid.clone(),
            };
            pool.allocated.insert(choice.address, holder);
        }
    }
    // Left from a pass that was interrupted, or from an earlier Port of this name.
    for allocation in held {
        let kept = found
            .iter()
            .any(|ip| ip.allocation == allocation.name_any());
        if allocation.spec.port_uid.as_ref() != Some(&uid) {
            changes.replaced.push(allocation);
        } else if !kept && status.fixed_ips.is_empty() {
            changes.release.push(allocation);
        }
    }
    if !status.fixed_ips.is_empty() {
        // Addresses whose Subnet is not in force now stay the Port's all the same.
        return Ok(status
            .fixed_ips
            .iter()
            .map(|ip| {
                let known = found.iter().find(|f| f.address == ip.address);
                known.unwrap_or(ip).clone()
            })
            .collect());
    }
    Ok(found)
}

fn keep(pools: &[AddressPool], status: &PortStatus) -> Vec<Choice> {
    status
        .fixed_ips
        .iter()
        .filter_map(|ip| {
            let address: IpAddr = ip.address.parse().ok()?;
            let pool = pools
                .iter()
                .position(|l| l.name() == ip.subnet && l.has(address))?;
            Some(Choice { pool, address })
        })
        .collect()
}

fn check_holders(
    port: &Port,
    network: &Key,
    pools: &[AddressPool],
    chosen: &[Choice],
) -> Result<(), Refusal> {
    let Key { namespace, name } = key(port);
    for choice in chosen {
        let pool = &pools[choice.pool];
        match pool.allocated.get(&choice.address) {
            None => {}
            Some(Holder::Port {
                namespace: ns,
                name: n,
                ..
            }) if *ns == namespace && *n == name => {}
            Some(holder) => {
                return Err((
                    Reason::AddressInUse,
                    format!(
                        "address `{}` of Subnet {} is held by {}; choose another address, or \
                         delete its holder",
                        choice.address,
                        pool.name(),
                        holder.describe(&namespace, &network.namespace)
                    ),
                ));
            }
        }
    }
    Ok(())
}

fn choose(
    port: &Port,
    pools: &[AddressPool],
    held: &[Arc<IPAllocation>],
    id: &str,
    network: &Key,
) -> Result<Vec<Choice>, Refusal> {
    let mut chosen: Vec<Choice> = Vec::new();
    if port.spec.fixed_ips.is_empty() {
        for v4 in [true, false] {
            let family: Vec<usize> = (0..pools.len())
                .filter(|i| pools[*i].cidr.addr().is_ipv4() == v4)
                .collect();
            if !family.is_empty() {
                chosen.push(any_of(pools, &family, held, id, &chosen)?);
            }
        }
        return Ok(chosen);
    }
    // Addresses asked for by value first, so that "any" does not choose one of them.
    let (exact, any): (Vec<&FixedIp>, Vec<&FixedIp>) = port
        .spec
        .fixed_ips
        .iter()
        .partition(|ip| ip.address.is_some());
    for fixed in exact {
        let choice = named_address(fixed, pools, network)?;
        if chosen.iter().any(|w| w.address == choice.address) {
            return Err((
                Reason::InvalidSpec,
                format!(
                    "fixedIPs[{}].address `{}` is asked for twice",
                    fixed.name, choice.address
                ),
            ));
        }
        chosen.push(choice);
    }
    for fixed in any {
        let candidates = match &fixed.subnet {
            Some(name) => vec![named_subnet(fixed, name, pools, network)?],
            None => (0..pools.len()).collect(),
        };
        chosen.push(any_of(pools, &candidates, held, id, &chosen)?);
    }
    Ok(chosen)
}

fn named_subnet(
    fixed: &FixedIp,
    name: &str,
    pools: &[AddressPool],
    network: &Key,
) -> Result<usize, Refusal> {
    pools.iter().position(|l| l.name() == name).ok_or_else(|| {
        (
            Reason::NoSubnet,
            format!(
                "fixedIPs[{}].subnet `{name}` is no Subnet in force in Network {}; it has {}",
                fixed.name,
                network.name,
                list_some(pools.iter().map(AddressPool::name).collect())
            ),
        )
    })
}

fn named_address(fixed: &FixedIp, pools: &[AddressPool], network: &Key) -> Result<Choice, Refusal> {
    let text = fixed.address.as_deref().unwrap_or_default();
    let address: IpAddr = text.parse().map_err(|_| {
        (
            Reason::InvalidSpec,
            format!(
                "fixedIPs[{}].address `{text}` is not an IP address",
                fixed.name
            ),
        )
    })?;
    let outside = |ranges: Vec<String>| {
        (
            Reason::AddressOutsideSubnet,
            format!(
                "fixedIPs[{}].address `{address}` is outside what Network {} has: {}",
                fixed.name,
                network.name,
                list_some(ranges)
            ),
        )
    };
    let hosts = |l: &AddressPool| {
        format!(
            "{} to {} in Subnet {}",
            l.hosts.first(),
            l.hosts.last(),
            l.name()
        )
    };
    let pool = match &fixed.subnet {
        Some(name) => {
            let pool = named_subnet(fixed, name, pools, network)?;
            if !pools[pool].has(address) {
                return Err(outside(vec![hosts(&pools[pool])]));
            }
            pool
        }
        None => pools
            .iter()
            .position(|l| l.has(address))
            .ok_or_else(|| outside(pools.iter().map(hosts).collect()))?,
    };
    if !pools[pool].open {
        return Err((
            Reason::NoSubnet,
            format!("Subnet {} is being deleted", pools[pool].name()),
        ));
    }
    Ok(Choice { pool, address })
}

/// An address of the first of `candidates` that has one: one that the Port holds already,
/// one that OVN has for it, or a free one.
fn any_of(
    pools: &[AddressPool],
    candidates: &[usize],
    held: &[Arc<IPAllocation>],
    id: &str,
    others: &[Choice],
) -> Result<Choice, Refusal> {
    let already_chosen = |address: IpAddr| others.iter().any(|w| w.address == address);
    for &pool in candidates.iter().filter(|i| pools[**i].open) {
        let it = &pools[pool];
        let uid = it.subnet.uid().unwrap_or_default();
        let own = held
            .iter()
            .filter(|a| subnet_uid(a) == uid)
            .filter_map(|a| a.spec.address.parse::<IpAddr>().ok())
            .find(|a| !already_chosen(*a));
        let in_ovn = it
            .in_ovn
            .iter()
            .filter(|(address, port)| *port == id && it.has(**address))
            .map(|(address, _)| *address)
            .filter(|a| !it.allocated.contains_key(a) && !already_chosen(*a))
            .min();
        let free = || {
            if others.iter().all(|w| w.pool != pool) {
                return it.free(id);
            }
            let mut rest = it.clone();
            for choice in others {
                rest.allocated.insert(choice.address, Holder::Subnet);
            }
            rest.free(id)
        };
        if let Some(address) = own.or(in_ovn).or_else(free) {
            return Ok(Choice { pool, address });
        }
    }
    let full = candidates.iter().map(|i| {
        let it = &pools[*i];
        format!("{} ({})", it.name(), it.cidr)
    });
    Err((
        Reason::SubnetExhausted,
        format!(
            "no address is left in Subnet {}; delete Ports that are not needed, widen its \
             allocationPools, or add a Subnet",
            list_some(full.collect())
        ),
    ))
}

/// The message if the spec asks for other addresses than the Port has.
pub(super) fn changed(port: &Port, status: &PortStatus) -> Option<String> {
    let has: BTreeSet<IpAddr> = status
        .fixed_ips
        .iter()
        .filter_map(|ip| ip.address.parse().ok())
        .collect();
    let missing = port.spec.fixed_ips.iter().find(|ip| {
        let by_address = ip
            .address
            .as_ref()
            .is_some_and(|a| a.parse().map_or(true, |a: IpAddr| !has.contains(&a)));
        let by_subnet = ip.address.is_none()
            && ip
                .subnet
                .as_ref()
                .is_some_and(|s| status.fixed_ips.iter().all(|got| got.subnet != *s));
        by_address || by_subnet
    });
    let chosen = missing.map(|ip| ip.name.clone()).or_else(|| {
        let (asked, got) = (port.spec.fixed_ips.len(), status.fixed_ips.len());
        (asked != 0 && asked != got).then(|| format!("{asked} instead of {got}"))
    })?;
    Some(format!(
        "fixedIPs ({chosen}) was changed, but a Port keeps its addresses for life: it has {}; set it \
         back, or make a new Port",
        status.addresses.as_deref().unwrap_or("none")
    ))
}
