//! The host matches the Server's query.

use super::{CycleState, Filter, Host, RejectReason, Scope};

/// Nova's `JsonFilter`, hint `query`.
pub struct JsonFilter;

impl Filter for JsonFilter {
    fn name(&self) -> &'static str {
        "JsonFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        cycle.request.requirements.query.is_some()
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        cycle.request
            .requirements
            .query
            .as_ref()
            .is_none_or(|q| q.matches(host))
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let _ = (host, cycle);
        RejectReason::Unsuitable("does not match the query".to_owned())
    }
}
