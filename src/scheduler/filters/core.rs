//! The host has processors left.

use super::{Filter, HostState, Miss, Request, short};

/// Nova's `CoreFilter`, with its rule that a Server cannot be overcommitted against
/// itself: it never gets more processors than the host has.
pub struct CoreFilter;

fn available(host: &HostState) -> i64 {
    host.free_vcpus().min(host.facts.capacity.vcpus)
}

impl Filter for CoreFilter {
    fn name(&self) -> &'static str {
        "CoreFilter"
    }

    fn passes(&self, host: &HostState, request: &Request) -> bool {
        request.claim.vcpus <= available(host)
    }

    fn miss(&self, host: &HostState, request: &Request) -> Miss {
        short(request.claim.vcpus, available(host), "vCPUs")
    }
}
