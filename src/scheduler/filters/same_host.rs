//! The host has one of the given Servers.

use super::{CycleState, Filter, Host, RejectReason, Scope, names};

/// Nova's `SameHostFilter`.
pub struct SameHostFilter;

impl Filter for SameHostFilter {
    fn name(&self) -> &'static str {
        "SameHostFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Request
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        !cycle.same.is_empty() || !cycle.request.same_host.is_empty()
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        u32::try_from(host.slot()).is_ok_and(|slot| cycle.same.contains(&slot))
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let _ = host;
        RejectReason::Unsuitable(format!("has none of the Servers {}", names(&cycle.request.same_host)))
    }
}
