//! Spreads by memory.

use super::{HostState, Request, Weigher};

/// Nova's `RAMWeigher`: more free memory is better.
pub struct RamWeigher;

impl Weigher for RamWeigher {
    fn name(&self) -> &'static str {
        "RamWeigher"
    }

    fn weigh(&self, host: &HostState, _: &Request) -> i64 {
        host.free_memory_mib()
    }
}
