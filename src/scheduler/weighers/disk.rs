//! Spreads by disk.

use super::{CycleState, RawWeights, Weigher};

/// Nova's `DiskWeigher`: more free disk is better.
pub struct DiskWeigher;

impl Weigher for DiskWeigher {
    fn name(&self) -> &'static str {
        "DiskWeigher"
    }

    fn aggregate_key(&self) -> Option<&'static str> {
        Some("disk_weight_multiplier")
    }

    fn weigh<'a>(&self, cycle: &CycleState<'a>) -> RawWeights<'a> {
        RawWeights::Column(cycle.snapshot.free_column(2))
    }
}
