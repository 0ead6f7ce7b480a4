//! The host's aggregates allow the flavor.

use super::{CycleState, Filter, Host, RejectReason, Scope};

/// Nova's `AggregateTypeAffinityFilter`: the aggregate's `instance_type` lists flavors.
pub struct AggregateTypeAffinityFilter;

impl Filter for AggregateTypeAffinityFilter {
    fn name(&self) -> &'static str {
        "AggregateTypeAffinityFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Profile
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        let aggregates = &host.profile().aggregates;
        let types = aggregates
            .iter()
            .filter_map(|a| a.properties.get("instance_type"));
        let mut types = types.flat_map(|t| t.split(',')).map(str::trim).peekable();
        let flavor = cycle.request.requirements.flavor.as_deref();
        types.peek().is_none() || types.any(|t| Some(t) == flavor)
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let _ = (host, cycle);
        RejectReason::Unsuitable("is reserved for other flavors".to_owned())
    }
}
