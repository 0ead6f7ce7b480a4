//! Spreads by disk.

use super::{HostState, Request, Weigher};

/// Nova's `DiskWeigher`: more free disk is better.
pub struct DiskWeigher;

impl Weigher for DiskWeigher {
    fn name(&self) -> &'static str {
        "DiskWeigher"
    }

    fn weigh(&self, host: &HostState, _: &Request) -> i64 {
        host.free_disk_gib()
    }
}
