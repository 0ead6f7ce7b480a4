//! The host is not too busy.

use super::{CycleState, Filter, Host, RejectReason, Scope};

/// Nova's `IoOpsFilter`: fewer than `max_io_ops_per_host` Servers are being built, migrated or
/// resized.
pub struct IoOpsFilter;

impl Filter for IoOpsFilter {
    fn name(&self) -> &'static str {
        "IoOpsFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        host.busy() < cycle.settings.max_io_ops_per_host
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let most = cycle.settings.max_io_ops_per_host;
        RejectReason::Unsuitable(format!(
            "is building, migrating or resizing {} Servers; at most {most} are allowed",
            host.busy()
        ))
    }
}
