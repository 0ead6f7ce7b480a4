//! Prefers hosts without `PreferNoSchedule` taints.

use super::{CycleState, RawWeights, Weigher};
use crate::filters::tolerates;

/// The score of Kubernetes' `TaintToleration`: fewer `PreferNoSchedule` taints that are not
/// tolerated are better.
pub struct TaintTolerationWeigher;

impl Weigher for TaintTolerationWeigher {
    fn name(&self) -> &'static str {
        "TaintTolerationWeigher"
    }

    fn weigh<'a>(&self, cycle: &CycleState<'a>) -> RawWeights<'a> {
        let weights: Vec<_> = cycle
            .snapshot
            .prefer_no_schedule()
            .iter()
            .map(|slot| {
                let taints = cycle.snapshot.host_at(slot).profile().taints.iter();
                let unwanted = taints
                    .filter(|t| t.effect == "PreferNoSchedule" && !tolerates(&cycle.request.requirements, t));
                let count = i32::try_from(unwanted.count()).unwrap_or(i32::MAX);
                (u32::try_from(slot).unwrap_or(u32::MAX), -count)
            })
            .collect();
        if weights.is_empty() {
            RawWeights::Equal
        } else {
            RawWeights::Sparse(weights)
        }
    }
}
