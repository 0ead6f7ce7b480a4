//! The host answers the Server's query.

use super::{Ask, Filter, Host, Miss, Scope};

/// Nova's `JsonFilter`, hint `query`.
pub struct JsonFilter;

impl Filter for JsonFilter {
    fn name(&self) -> &'static str {
        "JsonFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn applies(&self, ask: &Ask<'_>) -> bool {
        ask.request.asks.query.is_some()
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        ask.request
            .asks
            .query
            .as_ref()
            .is_none_or(|q| q.holds(host))
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let _ = (host, ask);
        Miss::Unfit("does not answer the query".to_owned())
    }
}
