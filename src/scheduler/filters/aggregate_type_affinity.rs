//! The host's aggregates allow the flavor.

use super::{Ask, Filter, Host, Miss, Scope};

/// Nova's `AggregateTypeAffinityFilter`: the aggregate's `instance_type` lists flavors.
pub struct AggregateTypeAffinityFilter;

impl Filter for AggregateTypeAffinityFilter {
    fn name(&self) -> &'static str {
        "AggregateTypeAffinityFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Profile
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        let aggregates = &host.profile().aggregates;
        let types = aggregates
            .iter()
            .filter_map(|a| a.properties.get("instance_type"));
        let mut types = types.flat_map(|t| t.split(',')).map(str::trim).peekable();
        let flavor = ask.request.asks.flavor.as_deref();
        types.peek().is_none() || types.any(|t| Some(t) == flavor)
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let _ = (host, ask);
        Miss::Unfit("is kept for other flavors".to_owned())
    }
}
