//! The IP addresses of one Port: all that it asks for or none.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use kube::ResourceExt;

use super::plan::{Key, Planner, Refusal};
use crate::name_some;
use crate::network::subnet::ledger::{Holder, Ledger, subnet_uid};
use pileus_api::port::{AllocatedIp, FixedIp};
use pileus_api::{IPAllocation, Port, PortStatus, Reason};
use pileus_values::Mac;

/// Something wanted: an address of the ledger at this index.
struct Wanted {
    ledger: usize,
    address: IpAddr,
}

/// Finds the addresses of a Port and takes those that it has not taken yet.
pub(super) fn assign(
    planner: &mut Planner<'_, '_>,
    port: &Arc<Port>,
    network: &Key,
    id: &str,
    mac: Mac,
    status: &PortStatus,
) -> Result<Vec<AllocatedIp>, Refusal> {
    let uid = port.uid().unwrap_or_default();
    let held = planner.held.get(&key_of(port)).cloned().unwrap_or_default();
    let mut none = Vec::new();
    let ledgers = planner.ledgers.get_mut(network).unwrap_or(&mut none);
    let wanted = if status.fixed_ips.is_empty() {
        if ledgers.is_empty() {
            return Err((
                Reason::NoSubnet,
                format!(
                    "Network {} has no Subnet in force to take an address from; make one, or see \
                     the conditions of those it has",
                    network.1
                ),
            ));
        }
        choose(port, ledgers, &held, id, network)?
    } else {
        keep(port, ledgers, status)
    };
    check_holders(port, ledgers, &wanted)?;
    let mut found = Vec::new();
    for want in &wanted {
        let ledger = &mut ledgers[want.ledger];
        let allocation = ledger.allocation(want.address, Some((port, &mac)));
        found.push(AllocatedIp {
            subnet: ledger.name(),
            address: want.address.to_string(),
            allocation: allocation.name_any(),
        });
        let ours = matches!(ledger.taken.get(&want.address), Some(Holder::Port { uid: held, .. }) if *held == uid);
        if !ours {
            planner.out.create.push((uid.clone(), allocation));
            let (namespace, name) = key_of(port);
            let holder = Holder::Port {
                namespace,
                name,
                uid: uid.clone(),
            };
            ledger.taken.insert(want.address, holder);
        }
    }
    // Left over from a start that was broken off, or from a Port of this name that is gone.
    for allocation in held {
        let kept = found
            .iter()
            .any(|ip| ip.allocation == allocation.name_any());
        if allocation.spec.port_uid.as_ref() != Some(&uid) {
            planner.out.stale.push(allocation);
        } else if !kept && status.fixed_ips.is_empty() {
            planner.out.release.push(allocation);
        }
    }
    if !status.fixed_ips.is_empty() {
        // Those whose Subnet cannot be seen now are the Port's all the same.
        return Ok(status
            .fixed_ips
            .iter()
            .map(|ip| {
                let seen = found.iter().find(|f| f.address == ip.address);
                seen.unwrap_or(ip).clone()
            })
            .collect());
    }
    Ok(found)
}

fn key_of(port: &Port) -> Key {
    (port.namespace().unwrap_or_default(), port.name_any())
}

fn keep(_port: &Port, ledgers: &[Ledger], status: &PortStatus) -> Vec<Wanted> {
    status
        .fixed_ips
        .iter()
        .filter_map(|ip| {
            let address: IpAddr = ip.address.parse().ok()?;
            let ledger = ledgers
                .iter()
                .position(|l| l.name() == ip.subnet && l.has(address))?;
            Some(Wanted { ledger, address })
        })
        .collect()
}

fn check_holders(port: &Port, ledgers: &[Ledger], wanted: &[Wanted]) -> Result<(), Refusal> {
    let (namespace, name) = key_of(port);
    for want in wanted {
        let ledger = &ledgers[want.ledger];
        match ledger.taken.get(&want.address) {
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
                        "address `{}` of Subnet {} is held by {holder}; choose another address, or \
                         delete its holder",
                        want.address,
                        ledger.name()
                    ),
                ));
            }
        }
    }
    Ok(())
}

fn choose(
    port: &Port,
    ledgers: &[Ledger],
    held: &[Arc<IPAllocation>],
    id: &str,
    network: &Key,
) -> Result<Vec<Wanted>, Refusal> {
    let mut wanted: Vec<Wanted> = Vec::new();
    if port.spec.fixed_ips.is_empty() {
        for v4 in [true, false] {
            let family: Vec<usize> = (0..ledgers.len())
                .filter(|i| ledgers[*i].parsed.cidr.addr().is_ipv4() == v4)
                .collect();
            if !family.is_empty() {
                wanted.push(any_of(ledgers, &family, held, id, &wanted)?);
            }
        }
        return Ok(wanted);
    }
    // Addresses asked for by value first, so that none of them is given to "any".
    let (exact, any): (Vec<&FixedIp>, Vec<&FixedIp>) = port
        .spec
        .fixed_ips
        .iter()
        .partition(|ip| ip.address.is_some());
    for fixed in exact {
        let want = exactly(fixed, ledgers, network)?;
        if wanted.iter().any(|w| w.address == want.address) {
            return Err((
                Reason::InvalidSpec,
                format!(
                    "fixedIPs[{}].address `{}` is asked for twice",
                    fixed.name, want.address
                ),
            ));
        }
        wanted.push(want);
    }
    for fixed in any {
        let candidates = match &fixed.subnet {
            Some(name) => vec![named(fixed, name, ledgers, network)?],
            None => (0..ledgers.len()).collect(),
        };
        wanted.push(any_of(ledgers, &candidates, held, id, &wanted)?);
    }
    Ok(wanted)
}

fn named(fixed: &FixedIp, name: &str, ledgers: &[Ledger], network: &Key) -> Result<usize, Refusal> {
    ledgers
        .iter()
        .position(|l| l.name() == name)
        .ok_or_else(|| {
            (
                Reason::NoSubnet,
                format!(
                    "fixedIPs[{}].subnet `{name}` is no Subnet in force in Network {}; it has {}",
                    fixed.name,
                    network.1,
                    name_some(ledgers.iter().map(Ledger::name).collect())
                ),
            )
        })
}

fn exactly(fixed: &FixedIp, ledgers: &[Ledger], network: &Key) -> Result<Wanted, Refusal> {
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
                network.1,
                name_some(ranges)
            ),
        )
    };
    let hosts = |l: &Ledger| {
        format!(
            "{} to {} in Subnet {}",
            l.parsed.hosts.first(),
            l.parsed.hosts.last(),
            l.name()
        )
    };
    let ledger = match &fixed.subnet {
        Some(name) => {
            let ledger = named(fixed, name, ledgers, network)?;
            if !ledgers[ledger].has(address) {
                return Err(outside(vec![hosts(&ledgers[ledger])]));
            }
            ledger
        }
        None => ledgers
            .iter()
            .position(|l| l.has(address))
            .ok_or_else(|| outside(ledgers.iter().map(hosts).collect()))?,
    };
    if !ledgers[ledger].open {
        return Err((
            Reason::NoSubnet,
            format!("Subnet {} is being deleted", ledgers[ledger].name()),
        ));
    }
    Ok(Wanted { ledger, address })
}

/// An address of the first of `candidates` that has one: one that the Port holds already,
/// one that OVN has for it, or a free one.
fn any_of(
    ledgers: &[Ledger],
    candidates: &[usize],
    held: &[Arc<IPAllocation>],
    id: &str,
    others: &[Wanted],
) -> Result<Wanted, Refusal> {
    let wanted_already = |address: IpAddr| others.iter().any(|w| w.address == address);
    for &ledger in candidates.iter().filter(|i| ledgers[**i].open) {
        let it = &ledgers[ledger];
        let uid = it.subnet.uid().unwrap_or_default();
        let own = held
            .iter()
            .filter(|a| subnet_uid(a) == uid)
            .filter_map(|a| a.spec.address.parse::<IpAddr>().ok())
            .find(|a| !wanted_already(*a));
        let hinted = it
            .hinted
            .iter()
            .filter(|(address, port)| *port == id && it.has(**address))
            .map(|(address, _)| *address)
            .filter(|a| !it.taken.contains_key(a) && !wanted_already(*a))
            .min();
        let free = || {
            if others.iter().all(|w| w.ledger != ledger) {
                return it.free(id);
            }
            let mut rest = it.clone();
            for want in others {
                rest.taken.insert(want.address, Holder::Subnet);
            }
            rest.free(id)
        };
        if let Some(address) = own.or(hinted).or_else(free) {
            return Ok(Wanted { ledger, address });
        }
    }
    let full = candidates.iter().map(|i| {
        let it = &ledgers[*i];
        format!("{} ({})", it.name(), it.parsed.cidr)
    });
    Err((
        Reason::SubnetExhausted,
        format!(
            "no address is left in Subnet {}; delete Ports that are not needed, widen its \
             allocationPools, or add a Subnet",
            name_some(full.collect())
        ),
    ))
}

/// Says so if the spec asks for other addresses than the Port has.
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
    let wanted = missing.map(|ip| ip.name.clone()).or_else(|| {
        let (asked, got) = (port.spec.fixed_ips.len(), status.fixed_ips.len());
        (asked != 0 && asked != got).then(|| format!("{asked} instead of {got}"))
    })?;
    Some(format!(
        "fixedIPs ({wanted}) was changed, but a Port keeps its addresses for life: it has {}; set it \
         back, or make a new Port",
        status.addresses.as_deref().unwrap_or("none")
    ))
}
