//! Avoids hosts with failed builds.

use super::{CycleState, RawWeights, Weigher};

/// Nova's `BuildFailureWeigher`, whose multiplier outweighs all others.
pub struct BuildFailureWeigher;

impl Weigher for BuildFailureWeigher {
    fn name(&self) -> &'static str {
        "BuildFailureWeigher"
    }

    fn multiplier(&self) -> i64 {
        1_000_000_000
    }

    fn aggregate_key(&self) -> Option<&'static str> {
        Some("build_failure_weight_multiplier")
    }

    fn weigh<'a>(&self, cycle: &CycleState<'a>) -> RawWeights<'a> {
        // Nova negates the multiplier; here the column is negative, see the snapshot.
        RawWeights::Column(cycle.snapshot.failed_column())
    }
}
