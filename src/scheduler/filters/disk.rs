//! The host has disk left.

use super::{Filter, HostState, Miss, Request, short};

/// Nova's `DiskFilter`: a Server never gets a bigger disk than the host has, whatever the
/// ratio.
pub struct DiskFilter;

fn available(host: &HostState) -> i64 {
    host.free_disk_gib().min(host.facts.capacity.disk_gib)
}

impl Filter for DiskFilter {
    fn name(&self) -> &'static str {
        "DiskFilter"
    }

    fn passes(&self, host: &HostState, request: &Request) -> bool {
        // A Server that asks for none is not turned away by a disk that is overfull.
        request.claim.disk_gib <= available(host).max(0)
    }

    fn miss(&self, host: &HostState, request: &Request) -> Miss {
        short(request.claim.disk_gib, available(host), "GiB of disk")
    }
}
