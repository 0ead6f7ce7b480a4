//! The host has enough free disk.

use super::{CycleState, Filter, Host, RejectReason, Scope, fits, explain_shortage};

/// Nova's `DiskFilter`: a Server never gets a bigger disk than the host has, whatever the
/// ratio.
pub struct DiskFilter;

impl Filter for DiskFilter {
    fn name(&self) -> &'static str {
        "DiskFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        fits(host, 2, cycle.request.requirements.resources.claim.disk_gib)
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        explain_shortage(
            host,
            2,
            cycle.request.requirements.resources.claim.disk_gib,
            "GiB of disk",
        )
    }
}
