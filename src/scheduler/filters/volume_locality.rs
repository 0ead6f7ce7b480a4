//! The host can use the Server's volumes.

use super::{CycleState, Filter, Host, RejectReason, Scope};

/// A Server with local volumes can be placed only on the hosts that have them.
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
        RejectReason::Unsuitable("cannot use a volume of the Server".to_owned())
    }
}
