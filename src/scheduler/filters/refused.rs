//! The host has not refused the Server.

use super::{CycleState, Filter, Host, RejectReason, Scope};

/// Nova's `RetryFilter`: the Server is not placed again on a host whose agent refused it, as
/// long as the refusal is in effect.
pub struct RefusedFilter;

impl Filter for RefusedFilter {
    fn name(&self) -> &'static str {
        "RefusedFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Request
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        !cycle.request.refused_by.is_empty()
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        !cycle.request.refused_by.contains_key(host.name())
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let reason = cycle.request.refused_by.get(host.name());
        RejectReason::Unsuitable(reason.cloned().unwrap_or_default())
    }
}
