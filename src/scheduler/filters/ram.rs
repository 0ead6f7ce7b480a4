//! The host has enough free memory, including QEMU's overhead.

use super::{CycleState, Filter, Host, RejectReason, Scope, fits, explain_shortage};

/// Nova's `RamFilter`: a Server never gets more memory than the host has, whatever the
/// ratio.
pub struct RamFilter;

impl Filter for RamFilter {
    fn name(&self) -> &'static str {
        "RamFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        fits(host, 1, cycle.request.requirements.resources.claim.memory_mib)
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        explain_shortage(
            host,
            1,
            cycle.request.requirements.resources.claim.memory_mib,
            "MiB of memory",
        )
    }
}
