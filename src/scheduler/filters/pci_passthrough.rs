//! The host has enough free PCI devices.

use super::{CycleState, Filter, Host, RejectReason, Scope, insufficient};
use crate::placement::devices::free;

fn left(host: Host<'_>, alias: &str) -> i64 {
    i64::try_from(free(host, alias).count()).unwrap_or(i64::MAX)
}

/// Nova's `PciPassthroughFilter`.
pub struct PciPassthroughFilter;

impl Filter for PciPassthroughFilter {
    fn name(&self) -> &'static str {
        "PciPassthroughFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        !cycle.request.requirements.resources.pci.is_empty()
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        cycle.request
            .requirements
            .resources
            .pci
            .iter()
            .all(|(d, n)| *n <= left(host, d))
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let short_of = |(d, n): &(&String, &i64)| **n > left(host, d);
        let found = cycle.request.requirements.resources.pci.iter().find(short_of);
        let (needs, has) = found.map_or((0, 0), |(d, n)| (*n, left(host, d)));
        insufficient(needs, has, "PCI devices")
    }
}
