//! The host reaches the Server's volumes.

use super::{CycleState, Filter, Host, RejectReason, Scope};

/// Local volumes bind a Server to the hosts that hold them.
pub struct VolumeLocalityFilter;

impl Filter for VolumeLocalityFilter {
    fn name(&self) -> &'static str {
        "VolumeLocalityFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        cycle.request.requirements.volume_hosts.is_some()
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        let at = cycle.request.requirements.volume_hosts.as_ref();
        at.is_none_or(|hosts| hosts.contains(host.name()))
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let _ = (host, cycle);
        RejectReason::Unsuitable("does not reach a volume of the Server".to_owned())
    }
}
