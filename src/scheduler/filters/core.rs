//! The host has enough free vCPUs.

use super::{CycleState, Filter, Host, RejectReason, Scope, fits, explain_shortage};

/// Nova's `CoreFilter`, with its rule that a Server is not overcommitted against itself: it
/// never gets more vCPUs than the host has CPUs.
pub struct CoreFilter;

impl Filter for CoreFilter {
    fn name(&self) -> &'static str {
        "CoreFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        fits(host, 0, cycle.request.requirements.resources.claim.vcpus)
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        explain_shortage(host, 0, cycle.request.requirements.resources.claim.vcpus, "vCPUs")
    }
}
