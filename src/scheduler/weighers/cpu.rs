//! Spreads by processors.

use super::{HostState, Request, Weigher};

/// Nova's `CPUWeigher`: more free processors are better.
pub struct CpuWeigher;

impl Weigher for CpuWeigher {
    fn name(&self) -> &'static str {
        "CpuWeigher"
    }

    fn weigh(&self, host: &HostState, _: &Request) -> i64 {
        host.free_vcpus()
    }
}
