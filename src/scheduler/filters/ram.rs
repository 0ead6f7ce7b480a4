//! The host has memory left, QEMU's own included.

use super::{Ask, Filter, Host, Miss, Scope, fits, lacks};

/// Nova's `RamFilter`: a Server never gets more memory than the host has, whatever the
/// ratio.
pub struct RamFilter;

impl Filter for RamFilter {
    fn name(&self) -> &'static str {
        "RamFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        fits(host, 1, ask.request.asks.shape.claim.memory_mib)
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        lacks(
            host,
            1,
            ask.request.asks.shape.claim.memory_mib,
            "MiB of memory",
        )
    }
}
