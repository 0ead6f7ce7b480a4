//! The whole network at once: objects in, decisions, allocations and OVN's rows out. Pure.

use std::collections::BTreeSet;

use super::kinds::{AllocationChanges, Decisions, Observed, Planning, Problems, plan_each};
use super::ovn_addresses::OvnAddresses;
use super::port::placement;
use pileus_network::northbound::Desired;
use pileus_network::topology::compile;
use pileus_values::{ClusterId, Owner};

/// What is to be done.
#[derive(Debug, Default)]
pub struct Plan {
    /// What was decided about each object.
    pub decisions: Decisions,
    /// Addresses to allocate and to release.
    pub allocations: AllocationChanges,
    /// OVN's rows.
    pub desired: Desired,
    /// uids of objects whose deletion was observed and whose rows are to be removed, and of those
    /// that are unplugged.
    pub deleted: BTreeSet<String>,
    /// Objects that stay without the rows that they may have had.
    pub unplugged: Vec<Owner>,
}

/// Decides about everything. `max_mtu` is what a guest's packet may have in bytes.
#[must_use]
pub fn plan(cluster: &ClusterId, max_mtu: i32, observed: &Observed, ovn: &OvnAddresses) -> Plan {
    let mut planning = Planning::new(cluster, max_mtu, observed, ovn);
    plan_each(&mut planning);
    let Planning {
        mut decisions,
        allocations,
        mut topology,
        unplugged,
        problems,
        ..
    } = planning;
    placement::tie_to_hosts(&mut topology, observed, ovn);
    let compiled = compile(&topology);
    let problems: Problems = problems.into_iter().chain(compiled.problems).collect();
    let mut deleted: BTreeSet<_> = unplugged.iter().map(|owner| owner.uid.clone()).collect();
    for decided in decisions.each() {
        decided.apply_problems(observed, &problems);
        deleted.extend(decided.deleted(cluster).into_iter().map(|owner| owner.uid));
    }
    Plan {
        decisions,
        allocations,
        desired: compiled.desired,
        deleted,
        unplugged,
    }
}
