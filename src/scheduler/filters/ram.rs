//! The host has memory left, QEMU's own included.

use super::{Filter, HostState, Miss, Request, short};

/// Nova's `RamFilter`: a Server never gets more memory than the host has, whatever the
/// ratio.
pub struct RamFilter;

fn available(host: &HostState) -> i64 {
    host.free_memory_mib().min(host.facts.capacity.memory_mib)
}

impl Filter for RamFilter {
    fn name(&self) -> &'static str {
        "RamFilter"
    }

    fn passes(&self, host: &HostState, request: &Request) -> bool {
        request.claim.memory_mib <= available(host)
    }

    fn miss(&self, host: &HostState, request: &Request) -> Miss {
        short(request.claim.memory_mib, available(host), "MiB of memory")
    }
}
