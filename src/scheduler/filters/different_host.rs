//! The host has none of the given Servers.

use super::{CycleState, Filter, Host, RejectReason, Scope, names};

/// Nova's `DifferentHostFilter`.
pub struct DifferentHostFilter;

impl Filter for DifferentHostFilter {
    fn name(&self) -> &'static str {
        "DifferentHostFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Request
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        !cycle.different.is_empty()
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        u32::try_from(host.slot()).is_ok_and(|slot| !cycle.different.contains(&slot))
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let _ = host;
        RejectReason::Unsuitable(format!(
            "has one of the Servers {}",
            names(&cycle.request.different_host)
        ))
    }
}
