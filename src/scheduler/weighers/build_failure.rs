//! Avoids hosts where builds failed lately.

use super::{CycleState, RawWeights, Weigher};

/// Nova's `BuildFailureWeigher`, whose multiplier outweighs everything else.
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
        // Nova turns the multiplier around; here the figures are, see the snapshot.
        RawWeights::Column(cycle.snapshot.failed_column())
    }
}
