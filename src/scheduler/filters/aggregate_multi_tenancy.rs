//! The host's aggregates are for the Server's namespace.

use super::{Ask, Filter, Host, Miss, Scope};

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

    fn applies(&self, ask: &Ask<'_>) -> bool {
        ask.snapshot.isolates()
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        let aggregates = &host.profile().aggregates;
        let mut kept = aggregates
            .iter()
            .filter(|a| !a.namespaces.is_empty())
            .peekable();
        kept.peek().is_none() || kept.any(|a| a.namespaces.contains(&ask.request.namespace))
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let _ = host;
        let namespace = &ask.request.namespace;
        Miss::Unfit(format!("is kept for other namespaces than {namespace}"))
    }
}
