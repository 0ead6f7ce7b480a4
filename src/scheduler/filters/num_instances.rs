//! The host has not too many Servers.

use super::{CycleState, Filter, Host, RejectReason, Scope};

/// Nova's `NumInstancesFilter`: fewer than `max_instances_per_host`.
pub struct NumInstancesFilter;

impl Filter for NumInstancesFilter {
    fn name(&self) -> &'static str {
        "NumInstancesFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        host.servers() < cycle.settings.max_instances_per_host
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let most = cycle.settings.max_instances_per_host;
        RejectReason::Unsuitable(format!(
            "has {} Servers; at most {most} are allowed",
            host.servers()
        ))
    }
}
