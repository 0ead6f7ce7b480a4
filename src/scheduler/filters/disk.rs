//! The host has disk left.

use super::{Ask, Filter, Host, Miss, Scope, fits, lacks};

/// Nova's `DiskFilter`: a Server never gets a bigger disk than the host has, whatever the
/// ratio.
pub struct DiskFilter;

impl Filter for DiskFilter {
    fn name(&self) -> &'static str {
        "DiskFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        fits(host, 2, ask.request.asks.shape.claim.disk_gib)
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        lacks(
            host,
            2,
            ask.request.asks.shape.claim.disk_gib,
            "GiB of disk",
        )
    }
}
