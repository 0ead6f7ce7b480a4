//! Spreads by memory.

use super::{CycleState, RawWeights, Weigher};

/// Nova's `RAMWeigher`: more free memory is better.
pub struct RamWeigher;

impl Weigher for RamWeigher {
    fn name(&self) -> &'static str {
        "RAMWeigher"
    }

    fn aggregate_key(&self) -> Option<&'static str> {
        Some("ram_weight_multiplier")
    }

    fn weigh<'a>(&self, cycle: &CycleState<'a>) -> RawWeights<'a> {
        RawWeights::Column(cycle.snapshot.free_column(1))
    }
}
