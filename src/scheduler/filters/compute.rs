//! The host is up and schedulable.

use super::{CycleState, Filter, Host, RejectReason, Scope};

/// Nova's `ComputeFilter`: service up, enabled, not in maintenance.
pub struct ComputeFilter;

impl Filter for ComputeFilter {
    fn name(&self) -> &'static str {
        "ComputeFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        let _ = cycle;
        host.is_up()
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let _ = cycle;
        RejectReason::Unsuitable(if let Some(problem) = &host.profile().problem {
            problem.clone()
        } else if !host.is_ready() {
            "is not Ready".to_owned()
        } else if host.in_maintenance() {
            "is in maintenance (spec.maintenance)".to_owned()
        } else {
            "is not schedulable (spec.schedulable is false)".to_owned()
        })
    }
}
