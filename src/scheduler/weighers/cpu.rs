//! Spreads by vCPUs.

use super::{CycleState, RawWeights, Weigher};

/// Nova's `CPUWeigher`: more free vCPUs are better.
pub struct CpuWeigher;

impl Weigher for CpuWeigher {
    fn name(&self) -> &'static str {
        "CPUWeigher"
    }

    fn aggregate_key(&self) -> Option<&'static str> {
        Some("cpu_weight_multiplier")
    }

    fn weigh<'a>(&self, cycle: &CycleState<'a>) -> RawWeights<'a> {
        RawWeights::Column(cycle.snapshot.free_column(0))
    }
}
