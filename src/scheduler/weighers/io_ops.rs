//! Prefers hosts that build, migrate or resize fewer Servers.

use super::{CycleState, RawWeights, Weigher};

/// Nova's `IoOpsWeigher`.
pub struct IoOpsWeigher;

impl Weigher for IoOpsWeigher {
    fn name(&self) -> &'static str {
        "IoOpsWeigher"
    }

    fn multiplier(&self) -> i64 {
        -1000
    }

    fn aggregate_key(&self) -> Option<&'static str> {
        Some("io_ops_weight_multiplier")
    }

    fn weigh<'a>(&self, cycle: &CycleState<'a>) -> RawWeights<'a> {
        RawWeights::Column(cycle.snapshot.busy_column())
    }
}
