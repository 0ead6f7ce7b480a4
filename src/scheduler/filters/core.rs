//! The host has processors left.

use super::{CycleState, Filter, Host, RejectReason, Scope, fits, lacks};

/// Nova's `CoreFilter`, with its rule that a Server cannot be overcommitted against
/// itself: it never gets more processors than the host has.
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
        lacks(host, 0, cycle.request.requirements.resources.claim.vcpus, "vCPUs")
    }
}
