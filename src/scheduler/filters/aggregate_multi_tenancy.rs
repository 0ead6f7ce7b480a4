//! The host's aggregates allow the Server's namespace.

use super::{CycleState, Filter, Host, RejectReason, Scope};

/// Nova's `AggregateMultiTenancyIsolation`: namespaces take the place of
/// `filter_tenant_id`.
pub struct AggregateMultiTenancyIsolation;

impl Filter for AggregateMultiTenancyIsolation {
    fn name(&self) -> &'static str {
        "AggregateMultiTenancyIsolation"
    }

    fn scope(&self) -> Scope {
        Scope::RequestProfile
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        cycle.snapshot.has_tenant_isolation()
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        let aggregates = &host.profile().aggregates;
        let mut isolated = aggregates
            .iter()
            .filter(|a| !a.namespaces.is_empty())
            .peekable();
        isolated.peek().is_none() || isolated.any(|a| a.namespaces.contains(&cycle.request.namespace))
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let _ = host;
        let namespace = &cycle.request.namespace;
        RejectReason::Unsuitable(format!("is reserved for other namespaces than {namespace}"))
    }
}
