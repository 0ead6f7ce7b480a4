//! The host has processors left.

use super::{Ask, Filter, Host, Miss, Scope, fits, lacks};

/// Nova's `CoreFilter`, with its rule that a Server cannot be overcommitted against
/// itself: it never gets more processors than the host has.
pub struct CoreFilter;

impl Filter for CoreFilter {
    fn name(&self) -> &'static str {
        "CoreFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        fits(host, 0, ask.request.asks.shape.claim.vcpus)
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        lacks(host, 0, ask.request.asks.shape.claim.vcpus, "vCPUs")
    }
}
