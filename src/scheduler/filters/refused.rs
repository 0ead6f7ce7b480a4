//! The host has not refused the Server.

use super::{Ask, Filter, Host, Miss, Scope};

/// Nova's `RetryFilter`: a host whose agent refused the Server is not asked again, for as
/// long as the refusal lasts.
pub struct RefusedFilter;

impl Filter for RefusedFilter {
    fn name(&self) -> &'static str {
        "RefusedFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Request
    }

    fn applies(&self, ask: &Ask<'_>) -> bool {
        !ask.request.refused_by.is_empty()
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        !ask.request.refused_by.contains_key(host.name())
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let said = ask.request.refused_by.get(host.name());
        Miss::Unfit(said.cloned().unwrap_or_default())
    }
}
