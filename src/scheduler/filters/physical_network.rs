//! The host is connected to the physical networks of the Server's provider networks.

use super::{CycleState, Filter, Host, RejectReason, Scope};

/// Replaces Nova's query to Placement by physical network.
pub struct PhysicalNetworkFilter;

impl Filter for PhysicalNetworkFilter {
    fn name(&self) -> &'static str {
        "PhysicalNetworkFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Profile
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        !cycle.request.requirements.physical_networks.is_empty()
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        host.profile()
            .physical_networks
            .as_ref()
            .is_none_or(|has| cycle.request.requirements.physical_networks.is_subset(has))
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let wanted = &cycle.request.requirements.physical_networks;
        let has = host.profile().physical_networks.as_ref();
        let missing = wanted
            .iter()
            .filter(|n| has.is_some_and(|has| !has.contains(*n)));
        let missing: Vec<_> = missing.map(String::as_str).collect();
        RejectReason::Unsuitable(format!(
            "is not connected to physical network {}",
            missing.join(", ")
        ))
    }
}
